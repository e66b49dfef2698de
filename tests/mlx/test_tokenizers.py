"""Replies through tokenizers of every kind: no character split, no tail lost."""

from __future__ import annotations

from typing import Any

import pytest
from mlx_lm.tokenizer_utils import (
    NaiveStreamingDetokenizer,
    SPMStreamingDetokenizer,
    TokenizerWrapper,
)
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from kit.models import byte_level_tokenizer
from kit.probe import hugging_face, ids_of
from segue import ChatSession, GenerationConfig, Message, MlxEngine, TemplateError
from segue.testing.mlx import CachingModel
from segue.tokenizers.hugging_face import HuggingFaceTokenizer

# A template whose turns are bounded by plain text, as vicuna's are.
PLAIN = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ 'USER: ' + message['content'] + ' ASSISTANT:' }}{% else %}"
    "{{ ' ' + message['content'] + '</s>' }}{% endif %}{% endfor %}"
)


def sentencepiece_tokenizer(template: str = PLAIN) -> TokenizerWrapper:
    """As llama 2 has it: words marked by an underscore, unknown characters as bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256)), "▁"]
    pieces += [chr(value) for value in range(33, 127)]
    words = ["▁h", "▁he", "▁hel", "▁hell", "▁hello"]
    merges = [(before, after[-1]) for before, after in zip(["▁", *words], words, strict=False)]
    vocabulary = {piece: index for index, piece in enumerate([*pieces, *words])}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )
    return TokenizerWrapper(wrapped, SPMStreamingDetokenizer)


def naive_tokenizer() -> TokenizerWrapper:
    return TokenizerWrapper(hugging_face(byte_level_tokenizer()), NaiveStreamingDetokenizer)


KINDS = {
    "byte-level": byte_level_tokenizer,
    "sentencepiece": sentencepiece_tokenizer,
    "naive": naive_tokenizer,
}


@pytest.fixture(params=KINDS)
def tokenizer(request) -> TokenizerWrapper:
    return KINDS[request.param]()


def saying(tokenizer: TokenizerWrapper, tokens: list[int], **settings: Any) -> ChatSession:
    """A session whose model says these tokens in every turn, then ends it."""
    prompts: list[int] = []

    def rule(ids: list[int]) -> int:
        start = prompts[-1]
        said = len(ids) - start
        return [*tokens, tokenizer.eos_token_id][said] if 0 <= said <= len(tokens) else 0

    session = ChatSession(
        MlxEngine(CachingModel(rule, len(tokenizer)), tokenizer),
        generation=GenerationConfig(**settings),
    )
    stream = session.stream

    def counted(prompt, **kwargs):
        reply = stream(prompt, **kwargs)
        prompts.append(reply.prompt_tokens)
        return reply

    session.stream = counted  # type: ignore[method-assign]
    return session


TEXT = "hello é 世 😀 ok"


def test_no_character_is_split_and_no_tail_is_lost(tokenizer):
    tokens = tokenizer.encode(TEXT, add_special_tokens=False)
    session = saying(tokenizer, tokens)
    with session.stream("hi") as reply:
        pieces = [response.text for response in reply]
    assert "".join(pieces) == TEXT
    assert session.history[-1] == Message.assistant(TEXT)
    for character in "é世😀":
        assert sum(character in piece for piece in pieces) == 1


@pytest.mark.parametrize("count", range(1, 14))
def test_a_reply_closed_anywhere_is_recorded_whole(tokenizer, count):
    tokens = tokenizer.encode(TEXT, add_special_tokens=False)
    session = saying(tokenizer, tokens)
    streamed = ""
    with session.stream("hi") as reply:
        for _, response in zip(range(count), reply, strict=False):
            streamed += response.text
    said = tokenizer.decode(list(reply.tokens), skip_special_tokens=False)
    assert reply.text.startswith(streamed)
    assert session.history[-1].content == reply.text
    # Decoders differ in how many replacement characters an incomplete one gets.
    whole, mark = said.removesuffix(tokenizer.eos_token), "\ufffd"
    assert reply.text.rstrip(mark) == whole.rstrip(mark)
    assert reply.text.endswith(mark) == whole.endswith(mark)


def test_the_next_turn_is_incremental_and_fed_what_the_template_wrote(tokenizer):
    tokens = tokenizer.encode("hello", add_special_tokens=False)
    session = saying(tokenizer, tokens)
    session.respond("hi")
    before = session.cached_tokens
    with session.stream("hello") as reply:
        list(reply)
    assert reply.cached_tokens >= before - 1
    ours = HuggingFaceTokenizer(tokenizer)
    rendered = ours.render(
        [message.to_template() for message in session.history[:-1]],
        add_generation_prompt=True,
        template_kwargs={},
    )
    fed = ids_of(session)[: reply.prompt_tokens]
    assert ours.decode(fed) == rendered


def test_templates_get_their_arguments_and_fail_by_name():
    template = "{{ mood }}{{ raise_exception('no') if mood == 'bad' }}"
    ours = HuggingFaceTokenizer(byte_level_tokenizer(template), name="moody")
    arguments = {"add_generation_prompt": False, "template_kwargs": {"mood": "good"}}
    messages = [Message.user("hi").to_template()]
    assert ours.render(messages, **arguments) == "good"
    with pytest.raises(TemplateError, match="chat template of moody failed"):
        ours.render(messages, add_generation_prompt=False, template_kwargs={"mood": "bad"})


def test_indentation_survives_with_a_plain_sentencepiece_tokenizer():
    plain = HuggingFaceTokenizer(hugging_face(sentencepiece_tokenizer()))
    streaming = plain.detokenizer()
    text = "x\n    y"
    shown = "".join(streaming.add(token) for token in plain.encode(text)) + streaming.finish()
    assert shown == text


def test_no_space_is_invented_behind_special_tokens():
    ours = HuggingFaceTokenizer(sentencepiece_tokenizer())
    for text in ("<s>USER: hello", "hello</s>\nUSER: hi</s>", "<s><s> hello</s>  é", "hello", ""):
        assert ours.decode(ours.encode(text)) == text


def test_special_tokens_stay_whole_beside_a_line_break():
    ours = HuggingFaceTokenizer(sentencepiece_tokenizer())
    begin, end = (ours.wrapped.convert_tokens_to_ids(token) for token in ("<s>", "</s>"))
    ids = ours.encode("<s>hello</s>\n<s>")
    assert [token for token in ids if token in (begin, end)] == [begin, end, begin]
    assert ids[0] == begin


def test_special_tokens_that_swallow_white_space_do_so_as_their_publisher_says():
    made = sentencepiece_tokenizer()
    made.add_tokens(AddedToken("<|end|>", rstrip=True, normalized=False), special_tokens=True)
    text = "hello<|end|>\nUSER: hi"
    ids = HuggingFaceTokenizer(made).encode(text)
    assert ids == made.encode(text, add_special_tokens=False)
    assert made.convert_tokens_to_ids("<0x0A>") not in ids
