"""Tokenizers of GGUF files: both kinds against their makers, BOS, and what is refused."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import segue
from kit.gguf_files import (
    GEMMA_TEMPLATE,
    byte_level_vocabulary,
    gemma_vocabulary,
    sentencepiece_model,
    write_model,
)
from kit.models import CHATML
from kit.paths import RECORDED
from segue import (
    ChatSession,
    Conversation,
    GenerationConfig,
    Message,
    ModelFormatError,
    UnsupportedModelError,
)
from segue.gguf.header import GGUFFile
from segue.gguf.tokenizer import load_tokenizer
from segue.gguf.words import WORDS
from segue.tokenizers.hugging_face import HuggingFaceTokenizer
from segue.turn.prompts.rendering import Renderer

WORDS_AND_IDS = json.loads((RECORDED / "gguf_words.json").read_text())


def header(vocabulary: dict[str, Any], template: str | None = CHATML, **changes: Any) -> GGUFFile:
    """A file that holds a vocabulary and nothing else."""
    told = {key: value for key, value in {**vocabulary, **changes}.items() if value is not None}
    metadata = {f"tokenizer.ggml.{key}": value for key, value in told.items()}
    if template is not None:
        metadata["tokenizer.chat_template"] = template
    return GGUFFile(Path("tiny.gguf"), metadata, {})


def encode(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


# --- byte-level BPE -----------------------------------------------------------------------------


def words(pre: str | None) -> Any:
    tokens = WORDS_AND_IDS["tokens"]
    types = [3, 3] + [1] * (len(tokens) - 2)
    told = {"tokens": tokens, "merges": WORDS_AND_IDS["merges"], "token_type": types}
    return load_tokenizer(header({"model": "gpt2", "eos_token_id": 1, **told}, pre=pre))


def test_a_reply_in_channels_does_not_end_with_its_first_message():
    marks = ["<|start|>", "<|end|>", "<|channel|>", "<|message|>", "<|return|>", "<|call|>"]
    tokens = [*WORDS_AND_IDS["tokens"], *marks]
    types = [1] * len(WORDS_AND_IDS["tokens"]) + [3] * len(marks)
    told = {"tokens": tokens, "merges": WORDS_AND_IDS["merges"], "token_type": types}
    ended = tokens.index("<|return|>")
    wrapped = load_tokenizer(
        header({"model": "gpt2", "eos_token_id": ended, "pre": "qwen2", **told})
    )
    ends = HuggingFaceTokenizer(wrapped).eos_token_ids
    assert {ended, tokens.index("<|call|>")} <= ends
    assert tokens.index("<|end|>") not in ends


def test_every_rule_was_recorded():
    assert {WORDS[rule] for rule in WORDS_AND_IDS["ids"]} == set(WORDS.values())


@pytest.mark.parametrize("rule", WORDS_AND_IDS["ids"])
def test_words_are_cut_as_llama_cpp_cuts_them(rule):
    tokenizer = words(rule)
    for text, ids in zip(WORDS_AND_IDS["texts"], WORDS_AND_IDS["ids"][rule], strict=True):
        assert encode(tokenizer, text) == ids
        assert tokenizer.decode(ids) == text


def test_no_two_rules_cut_alike():
    cut = [json.dumps(ids) for ids in WORDS_AND_IDS["ids"].values()]
    assert len(set(cut)) == len(cut)


def test_a_file_without_a_rule_has_the_default_one():
    text = WORDS_AND_IDS["texts"][0]
    assert encode(words(None), text) == encode(words("default"), text)


# --- SentencePiece ------------------------------------------------------------------------------

TEXTS = [
    "hello to the world",
    " the  quick   brown ",
    "naïve café",
    "世界 😀 é",
    "aaaaaaa aab bbbbb aaabbbaaa",
    "again123 and321",
    "▁ mark",
    "",
    " ",
]


@pytest.fixture(scope="module", params=[False, True], ids=["bare", "prefixed"])
def pieces(request) -> tuple[Any, Any]:
    space_prefix = request.param
    return (
        load_tokenizer(header(gemma_vocabulary(space_prefix=space_prefix))),
        sentencepiece_model(space_prefix=space_prefix),
    )


def check(ours: Any, theirs: Any, text: str) -> None:
    ids = encode(ours, text)
    assert ids == theirs.encode(text)
    spelt = text.replace("▁", " ")
    assert ours.decode(ids) == spelt
    streaming = HuggingFaceTokenizer(ours).detokenizer()
    streamed = "".join(map(streaming.add, ids)) + streaming.finish()
    # A reply stands behind a prompt: there, a prefixed space is one, and this template leaves it.
    prefixed = theirs.id_to_piece(theirs.encode("a"))[0] != "a"
    assert streamed == (" " + spelt if prefixed and text else spelt)


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_those_of_sentencepiece(pieces, text):
    check(*pieces, text)


# Where a space is prefixed, llama.cpp and Hugging Face's tokenizers prefix one behind these too.
@pytest.mark.parametrize("text", ["x\ny\n\nz\n\n\n\nw\t", "a <tag> b<tag><tag>"])
def test_pieces_that_the_user_defined(text):
    check(load_bare(), sentencepiece_model(space_prefix=False), text)


@given(text=st.text(st.sampled_from("ab theloworgain123 \n<tag>é世😀"), max_size=40))
def test_any_text_is_cut_as_sentencepiece_cuts_it(text):
    check(load_bare(), sentencepiece_model(space_prefix=False), text)


def load_bare(made: list[Any] = []) -> Any:  # noqa: B006 (kept from example to example)
    if not made:
        made.append(load_tokenizer(header(gemma_vocabulary())))
    return made[0]


def test_control_tokens_are_matched_whole():
    tokenizer = load_bare()
    start = tokenizer.convert_tokens_to_ids("<start_of_turn>")
    assert encode(tokenizer, "a<start_of_turn>a").count(start) == 1
    assert tokenizer.eos_token_ids == {1, tokenizer.convert_tokens_to_ids("<end_of_turn>")}


def test_a_session_on_pieces_feeds_only_what_is_new(tmp_path):
    path = tmp_path / "tiny.gguf"
    write_model(path, "gemma3", metadata={"tokenizer.ggml.add_bos_token": True})
    engine = segue.load(path)
    # Random bytes are rarely characters.
    types = enumerate(gemma_vocabulary()["token_type"])
    bias = {token: -100.0 for token, kind in types if kind != 1}
    config = GenerationConfig(max_tokens=5, temperature=1.0, seed=2, logit_bias=bias)
    session = ChatSession(engine, generation=config)
    with session.stream("hello") as reply:
        streamed = "".join(response.text for response in reply)
    assert session.history[-1].content == streamed
    before = session.cached_tokens
    with session.stream("the  world") as reply:
        list(reply)
    assert reply.cached_tokens == before
    messages = [message.to_template() for message in session.history]
    tokenizer = engine.tokenizer
    text = tokenizer.render(messages, add_generation_prompt=True, template_kwargs={})
    assert list(tokenizer.encode(text)).count(2) == 1


# --- BOS ----------------------------------------------------------------------------------------

WITHOUT_BOS = GEMMA_TEMPLATE.replace("{{ bos_token }}", "")
LITERAL_BOS = WITHOUT_BOS.replace("{% for", "<s>{% for", 1)
CONVERSATION = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "the"},
    {"role": "user", "content": "again"},
]


def prompt(file: GGUFFile) -> list[int]:
    tokenizer = HuggingFaceTokenizer(load_tokenizer(file))
    text = tokenizer.render(CONVERSATION, add_generation_prompt=True, template_kwargs={})
    return list(tokenizer.encode(text))


@pytest.mark.parametrize("template", [GEMMA_TEMPLATE, WITHOUT_BOS, LITERAL_BOS])
@pytest.mark.parametrize("demanded", [True, False, None])
def test_a_prompt_has_one_bos_if_the_file_demands_it_or_the_template_writes_it(template, demanded):
    ids = prompt(header(gemma_vocabulary(), template, add_bos_token=demanded))
    # Files of this kind that say nothing demand it.
    expected = 1 if demanded is not False or template is not WITHOUT_BOS else 0
    assert ids.count(2) == expected
    assert (ids[0] == 2) == bool(expected)


@pytest.mark.parametrize(("pre", "count"), [("gpt-2", 0), ("llama-bpe", 1), ("tekken", 1)])
def test_byte_level_files_demand_bos_by_their_rule(pre, count):
    vocabulary = byte_level_vocabulary(pre)
    vocabulary["bos_token_id"] = bos = vocabulary["tokens"].index("z")
    assert prompt(header(vocabulary)).count(bos) == count
    assert prompt(header(vocabulary, add_bos_token=not count)).count(bos) == 1 - count


def test_bos_stands_nowhere_but_in_front():
    tokenizer = HuggingFaceTokenizer(load_tokenizer(header(gemma_vocabulary(), WITHOUT_BOS)))
    assert 2 not in tokenizer.encode("hello")
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"


@pytest.mark.parametrize("demanded", [True, False])
def test_a_template_that_writes_the_date_has_that_of_the_conversation(demanded):
    template = "{{- strftime_now('%d.%m.%Y') }}\n" + CHATML
    file = header(gemma_vocabulary(), template, add_bos_token=demanded)
    tokenizer = HuggingFaceTokenizer(load_tokenizer(file))
    assert tokenizer.writes_date
    said = Conversation(None, [Message.user("Hi")], date=datetime(2024, 2, 29))
    assert "29.02.2024\n" in Renderer(tokenizer).render(said)


def test_a_template_that_renders_nothing_still_does():
    tokenizer = HuggingFaceTokenizer(load_tokenizer(header(gemma_vocabulary(), "{{ '' }}")))
    rendered = tokenizer.render(CONVERSATION, add_generation_prompt=True, template_kwargs={})
    assert rendered == ""


def test_a_file_without_a_template_gets_none():
    assert not load_tokenizer(header(gemma_vocabulary(), None)).has_chat_template


def test_old_files_leave_out_what_sentencepiece_numbers_itself():
    absent = dict.fromkeys(("bos_token_id", "eos_token_id", "unknown_token_id"))
    tokenizer = load_tokenizer(header(gemma_vocabulary(), **absent))
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"model": "t5"}, UnsupportedModelError, "kind 't5'"),
        ({"scores": None}, ModelFormatError, "no usable tokenizer.ggml.scores"),
        ({"scores": [0.0]}, ModelFormatError, "contradicts itself"),
        ({"token_type": [1]}, ModelFormatError, "contradicts itself"),
        ({"tokens": ["a", "a"], "token_type": [1, 1]}, ModelFormatError, "contradicts itself"),
        ({"tokens": "abc"}, ModelFormatError, "no usable tokenizer.ggml.tokens"),
    ],
)
def test_a_broken_vocabulary(changes, error, told):
    with pytest.raises(error, match=told) as raised:
        load_tokenizer(header(gemma_vocabulary(), **changes))
    assert raised.value.remedy


@pytest.mark.parametrize(
    ("merges", "told"), [(["ab"], "contradicts itself"), (["no such"], "can't be used")]
)
def test_broken_merges(merges, told):
    with pytest.raises(ModelFormatError, match=told):
        load_tokenizer(header(byte_level_vocabulary(), merges=merges))
