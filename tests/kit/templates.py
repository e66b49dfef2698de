"""Chat templates, ours and published ones, with tokenizers that have their special tokens."""

from __future__ import annotations

import json
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import trainers as tokenizer_trainers
from transformers import PreTrainedTokenizerFast

from segue import TemplateError
from segue.tokenizers.hugging_face import HuggingFaceTokenizer

# Turns that are bounded by special tokens.
CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
# Ends the prompt in the middle of a thought, and keeps no thought of earlier turns.
THINKING = """\
{%- for message in messages %}
    {%- set said = message.content %}
    {%- if message.role == 'assistant' %}{%- set said = said.split('</think>')[-1].lstrip() %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + said + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {{- '<think>\\n\\n</think>\\n\\n' if enable_thinking is false else '<think>\\n' }}
{%- endif %}
"""
# Turns that are bounded by plain text, in one line; the space before a reply is the template's.
ONE_LINE = """\
{%- for message in messages %}
    {%- if message.role == 'system' %}{{- message.content }}
    {%- elif message.role == 'user' %}
        {{- ('' if loop.first else ' ') + 'USER: ' + message.content }}
    {%- else %}{{- ' ASSISTANT: ' + message.content + eos_token }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- ' ASSISTANT:' }}{%- endif %}
"""
# Plain text in headings; the end of a reply that the model samples is never written.
HEADINGS = """\
{%- set titles = {'user': 'Instruction', 'assistant': 'Response', 'system': 'Setting'} %}
{%- for message in messages %}
    {{- '### ' + titles[message.role] + ':\\n' + message.content + '\\n\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '### Response:\\n' }}{%- endif %}
"""
# Refuses a system message, and whoever speaks out of turn.
STRICT = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{{- raise_exception('There is no system here') }}{%- endif %}
    {%- if message.role != ['user', 'assistant'][loop.index0 % 2] %}
        {{- raise_exception('User and assistant take turns') }}
    {%- endif %}
    {%- set speaker = 'model' if message.role == 'assistant' else 'user' %}
    {{- '<start_of_turn>' + speaker + '\\n' + message.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}
"""
# Trims what is said, and knows tools.
TOOLS = """\
{%- macro turn(role, said) %}
    {{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' + said + '<|eot_id|>' }}
{%- endmacro %}
{{- bos_token }}
{%- if tools %}{{- turn('system', 'Tools: ' + tools | tojson) }}{%- endif %}
{%- for message in messages %}
    {%- if message.tool_calls %}
        {%- set call = message.tool_calls[0].function %}
        {{- turn('assistant', {'name': call.name, 'parameters': call.arguments} | tojson) }}
    {%- elif message.role == 'tool' %}{{- turn('ipython', message.content | tojson) }}
    {%- else %}{{- turn(message.role, message.content | trim) }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
# Replies of several messages in channels; refuses what gpt-oss's own template refuses.
HARMONY = """\
{%- macro check(said) %}
    {%- for channel in ('analysis', 'final') %}
        {%- if '<|channel|>' + channel + '<|message|>' in said %}
            {{- raise_exception('No channels in messages') }}
        {%- endif %}
    {%- endfor %}
{%- endmacro %}
{%- set ns = namespace(tool=none) %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- check(message.content) + check(message.thinking or '') }}
        {%- if message.tool_calls %}
            {%- set call = message.tool_calls[0].function %}
            {%- if message.content and message.thinking %}
                {{- raise_exception('No content beside thinking') }}
            {%- endif %}
            {%- if message.content or message.thinking %}
                {{- '<|start|>assistant<|channel|>analysis<|message|>' }}
                {{- (message.content or message.thinking) + '<|end|>' }}
            {%- endif %}
            {{- '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json' }}
            {{- '<|message|>' + call.arguments | tojson + '<|call|>' }}
            {%- set ns.tool = call.name %}
        {%- else %}
            {{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}
            {%- set ns.tool = none %}
        {%- endif %}
    {%- elif message.role == 'tool' %}
        {%- if ns.tool is none %}{{- raise_exception('No tool was called') }}{%- endif %}
        {{- '<|start|>functions.' + ns.tool + ' to=assistant<|channel|>commentary<|message|>' }}
        {{- message.content | tojson + '<|end|>' }}
    {%- else %}{{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}
{#- <|return|> ends a reply, and <|constrain|> comes before the type of a body. #}
"""
# Writes tags around the answer, and keeps no thought.
WRAPPED = """\
{%- for message in messages %}
    {%- set said = message.content %}
    {%- if message.role == 'assistant' %}
        {%- set said = '<|START_RESPONSE|>\\n' + said + '\\n<|END_RESPONSE|>' %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + said + '<|END_OF_TURN_TOKEN|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
{#- Models write <think> and </think>. #}
"""

OURS = {
    "chatml": CHATML,
    "thinking": THINKING,
    "one-line": ONE_LINE,
    "headings": HEADINGS,
    "strict": STRICT,
    "tools": TOOLS,
    "harmony": HARMONY,
    "wrapped": WRAPPED,
}
# How many published templates lie beside the project.
PUBLISHED = 22

SPECIAL = re.compile(
    r"""<\|[^\s<>|{}'+]+\|?>      # <|im_start|>, <|turn>, <|"|>
    |<[a-z_]+\|>                  # <turn|>
    |<｜[^\s<>｜]+｜>             # <｜User｜>
    |<(?:start|end)_of_turn>|<SPECIAL_\d+>
    |</?seed:\w+>
    |</?think>|</?tool_call>|</?tool_response>|</?TOOLCALL>|</?TOOL_RESPONSE>
    |\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|CALL_ID|ARGS)\]
    """,
    re.VERBOSE,
)
BOS, EOS, UNKNOWN = "<s>", "</s>", "<unk>"
UNDERSCORE = "▁"
TEXT = (
    "the quick brown fox says hello to the world, and the lazy dog answers the fox: hello there!",
    "What is the weather in Paris? The weather in Paris is fine. You are a helpful assistant.",
    "USER: user ASSISTANT: assistant system Instruction Response",
) * 4


def our_templates() -> dict[str, str]:
    """Eight templates that we wrote, in the styles of published ones."""
    return dict(OURS)


def published_templates() -> dict[str, str]:
    """What publishers ship, by name; none where that data is not at hand."""
    data = os.environ.get("SEGUE_DATA")
    if not data:
        return {}
    return {path.stem: path.read_text() for path in sorted(Path(data, "templates").glob("*.jinja"))}


def all_templates() -> list[Any]:
    """Parameters of a test: every template there is, and a plain word where some are not."""
    missing = pytest.param(
        "published",
        None,
        marks=pytest.mark.skip("SEGUE_DATA is not set: no published chat templates to test."),
    )
    found = {**our_templates(), **published_templates()}
    return [
        *(pytest.param(name, source, id=name) for name, source in found.items()),
        *([] if published_templates() else [missing]),
    ]


def special_tokens(template: str) -> list[str]:
    """The special tokens that occur in a template."""
    return sorted(set(SPECIAL.findall(template)))


@lru_cache
def _byte_level() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = tokenizer_trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer.to_str()


@lru_cache
def _sentencepiece(kind: str) -> str:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = tokenizer_trainers.BpeTrainer(vocab_size=250, show_progress=False)
    trained.train_from_iterator(TEXT, trainer)
    model = json.loads(trained.to_str())["model"]
    pieces = [UNKNOWN, *(f"<0x{value:02X}>" for value in range(256)), UNDERSCORE]
    pieces += [chr(value) for value in range(33, 127)]
    pieces += [piece for piece in model["vocab"] if piece not in pieces]
    tokenizer = Tokenizer(
        models.BPE(
            {piece: index for index, piece in enumerate(pieces)},
            [tuple(merge) for merge in model["merges"]],
            unk_token=UNKNOWN,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = normalizers.Replace(" ", UNDERSCORE)
    if kind == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(UNDERSCORE), spaces])
    elif kind == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = spaces
    parts = [decoders.Replace(UNDERSCORE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind != "bare":
        parts.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer.to_str()


# Byte-level BPE; SentencePiece's kind as llama 2 has it (a space before whatever is encoded), as
# mistral has it (a space at the very front), and as gemma has it (none).
KINDS = ("byte-level", "prepend", "metaspace", "bare")


def make_tokenizer(template: str, kind: str) -> HuggingFaceTokenizer:
    """A tokenizer for a chat template, with every special token that occurs in it.

    Args:
        template: The template's source.
        kind: One of `KINDS`.
    """
    base = _byte_level() if kind == "byte-level" else _sentencepiece(kind)
    specials = dict.fromkeys([BOS, EOS, UNKNOWN, *special_tokens(template)])

    def made(eos: str) -> HuggingFaceTokenizer:
        tokenizer = Tokenizer.from_str(base)
        tokenizer.add_special_tokens(
            [AddedToken(token, normalized=False, special=True) for token in specials]
        )
        plain = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token=BOS,
            eos_token=eos,
            unk_token=UNKNOWN,
            chat_template=template,
            clean_up_tokenization_spaces=False,
        )
        return HuggingFaceTokenizer(plain, name="the tokenizer under test")

    return made(_end_of_turn(made(EOS), template))


def _end_of_turn(tokenizer: HuggingFaceTokenizer, template: str) -> str:
    """The token that ends a reply: what the template writes behind one."""
    for told in ("<|return|>", "<|END_OF_TURN_TOKEN|>"):  # written otherwise, or further behind
        if told in template:
            return told
    said = [{"role": role, "content": f"({role})"} for role in ("user", "assistant", "user")]
    text = tokenizer.render(said, add_generation_prompt=True, template_kwargs={"tools": []})
    rest = text.split("(assistant)", 1)[1].split("(user)", 1)[0].lstrip()
    if rest.startswith(EOS):
        return EOS
    found = SPECIAL.match(rest)
    return found[0] if found else EOS


def can_spell(kind: str, template: str) -> bool:
    """Whether a kind of tokenizer can: SentencePiece's takes an underscore for a space."""
    return kind == "byte-level" or UNDERSCORE not in template


def renders(
    tokenizer: HuggingFaceTokenizer, messages: list[dict[str, Any]], **template_kwargs: Any
) -> str:
    """A render with the generation prompt; empty where the template refuses."""
    try:
        return tokenizer.render(
            messages, add_generation_prompt=True, template_kwargs=template_kwargs
        )
    except TemplateError:
        return ""


def in_pieces(tokenizer: HuggingFaceTokenizer, text: str) -> list[int]:
    """Ids that spell a text by its characters: what a model may sample, and no one encodes."""
    vocabulary = tokenizer.vocabulary
    byte_level = "Ġ" in vocabulary
    ids: list[int] = []
    at = 0
    for found in [*SPECIAL.finditer(text), None]:
        end = len(text) if found is None else found.start()
        for character in text[at:end]:
            if byte_level:
                (word,) = pre_tokenizers.ByteLevel(
                    add_prefix_space=False, use_regex=False
                ).pre_tokenize_str(character)
                ids += [vocabulary[letter] for letter in word[0]]
            elif (piece := UNDERSCORE if character == " " else character) in vocabulary:
                ids.append(vocabulary[piece])
            else:
                ids += [vocabulary[f"<0x{value:02X}>"] for value in character.encode()]
        if found is not None:
            if found[0] in vocabulary:
                ids.append(vocabulary[found[0]])
            else:
                ids += in_pieces_of_plain(tokenizer, found[0])
            at = found.end()
    return ids


def in_pieces_of_plain(tokenizer: HuggingFaceTokenizer, text: str) -> list[int]:
    """The pieces of what looks like a special token and is none here."""
    return [token for letter in text for token in in_pieces(tokenizer, letter)]
