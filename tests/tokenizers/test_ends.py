"""What ends a reply: the ends that a model names, and what ends turns in its template."""

from __future__ import annotations

from pathlib import Path

import pytest

from kit.gguf_files import byte_level_vocabulary
from kit.probe import hugging_face
from kit.templates import CHATML, EOS, KINDS, UNKNOWN, all_templates, make_tokenizer, our_templates
from segue import ChatSession, GenerationConfig
from segue.gguf.header import GGUFFile
from segue.gguf.tokenizer import load_tokenizer
from segue.testing import FakeEngine
from segue.tokenizers.hugging_face import HuggingFaceTokenizer

NO_END = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}<|assistant|>"
NEWLINES = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}assistant:"
AFTER_ALL = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% else %}{{ '<|endoftext|>' }}{% endif %}"
)
PARTS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role }}{% for part in m.content %}"
    "{{ part.text }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}<|im_start|>assistant"
)
WRAPPED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role }}{% if m.role == 'assistant' %}"
    "{{ '<|answer|>' + m.content + '<|/answer|>' }}{% else %}{{ m.content }}{% endif %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)


def with_eos(template: str, kind: str, *eos: str) -> HuggingFaceTokenizer:
    """A tokenizer whose folder names these ends."""
    made = make_tokenizer(template, kind)
    ids = [made.vocabulary[token] for token in eos]
    tokenizer = HuggingFaceTokenizer(hugging_face(made.wrapped))
    tokenizer.wrapped.eos_token_ids = ids
    return tokenizer


def ends(tokenizer: HuggingFaceTokenizer) -> set[str]:
    names = {index: token for token, index in tokenizer.vocabulary.items()}
    return {names[index] for index in tokenizer.eos_token_ids}


@pytest.mark.parametrize(("name", "source"), all_templates())
def test_the_end_of_turns_is_found_whatever_the_folder_names(name, source):
    right = ends(make_tokenizer(source, "byte-level"))
    found = ends(with_eos(source, "byte-level", UNKNOWN)) - {UNKNOWN}
    if name == "headings":  # turns end by plain text
        assert found == set()
    elif name.startswith("openai-gpt-oss"):
        assert found == right | {"<|call|>"} == {"<|return|>", "<|call|>"}
    else:
        assert found == right
    # If it names the right one, nothing is added.
    if not name.startswith("openai-gpt-oss"):
        assert ends(with_eos(source, "byte-level", *right)) == right


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("template", "eos", "added"),
    [
        (NO_END, EOS, "<|user|>"),
        (NEWLINES, EOS, None),
        (AFTER_ALL, "<|endoftext|>", "<|im_end|>"),
        (AFTER_ALL, EOS, "<|im_end|>"),
        (PARTS, EOS, "<|im_end|>"),
        (WRAPPED, EOS, "<|im_end|>"),
        (WRAPPED, "<|im_end|>", None),
    ],
)
def test_templates_of_other_kinds(kind, template, eos, added):
    vocabulary = template + ("<|user|><|assistant|>" if template is NO_END else "")
    made = make_tokenizer(AFTER_ALL if template is PARTS else vocabulary, kind)
    plain = hugging_face(made.wrapped)
    plain.chat_template = template
    tokenizer = HuggingFaceTokenizer(plain)
    tokenizer.wrapped.eos_token_ids = [made.vocabulary[eos]]
    assert ends(tokenizer) == {eos} | ({added} if added else set())


def test_a_model_does_not_talk_on_in_the_person_s_name():
    tokenizer = with_eos(our_templates()["chatml"], "byte-level", EOS)
    said = tokenizer.encode("Hello.<|im_end|>\n<|im_start|>user\nAnd you?<|im_end|>")
    session = ChatSession(
        FakeEngine([said, said], tokenizer=tokenizer), generation=GenerationConfig(max_tokens=99)
    )
    assert session.respond("Hi") == "Hello."
    before = session.cached_tokens
    with session.stream("Hi") as reply:
        list(reply)
    assert reply.text == "Hello."
    assert reply.finish_reason == "stop"
    assert reply.cached_tokens == before


@pytest.mark.parametrize("harmony", [True, False])
def test_what_ends_one_message_of_several_ends_no_reply_from_gguf_files(harmony):
    vocabulary = byte_level_vocabulary()
    names = ["<|end|>", "<|return|>", "<|call|>"] if harmony else ["<|end|>"]
    vocabulary["tokens"] += names
    vocabulary["token_type"] += [3] * len(names)
    metadata = {f"tokenizer.ggml.{key}": value for key, value in vocabulary.items()}
    file = GGUFFile(Path("x.gguf"), metadata, {})
    known = {vocabulary["tokens"].index(name): name for name in names}
    found = {known[index] for index in load_tokenizer(file).eos_token_ids if index in known}
    assert found == ({"<|return|>", "<|call|>"} if harmony else {"<|end|>"})


BY_ROLE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def test_tokens_that_bound_turns_are_in_no_reply_though_the_template_puts_them_together():
    names = "<|system|><|user|><|assistant|><|tool|><|end|><|box|>"
    plain = hugging_face(make_tokenizer(CHATML + "{# " + names + " #}", "byte-level").wrapped)
    plain.chat_template = BY_ROLE
    tokenizer = HuggingFaceTokenizer(plain)
    assert "<|system|>" in tokenizer.control_tokens
    assert "<|box|>" in tokenizer.reply_tokens  # which the template never writes
    assert not {"<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>"} & (
        tokenizer.reply_tokens
    )
