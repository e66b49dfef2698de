"""The text of a reply as it comes: what its ids spell, whatever vocabulary and decoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import SPMStreamingDetokenizer, TokenizerWrapper
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kit.gguf_files import byte_level_vocabulary
from kit.models import CHATML
from kit.probe import hugging_face
from kit.templates import TEXT
from segue import ChatSession
from segue.gguf.header import GGUFFile
from segue.gguf.tokenizer import load_tokenizer
from segue.testing import FakeEngine
from segue.tokenizers.hugging_face import HuggingFaceTokenizer

ADDED = ("<é>", "<|im_end|>", "ĠÉté", "</s>")
SENTENCEPIECE = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
STRIPPING = [*SENTENCEPIECE, decoders.Strip(" ", 1, 0)]


def trained(trainer: Callable[..., Any], model: Any, **parts: Any) -> Tokenizer:
    tokenizer = Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def byte_level(decoder: Any) -> Tokenizer:
    from tokenizers.trainers import BpeTrainer

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = trained(
        BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False),
        models.BPE(),
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False),
    )
    if decoder is not None:
        tokenizer.decoder = decoder
    return tokenizer


def pieces(decoder: Any, *, bytes_too: bool = True) -> Tokenizer:
    names = ["<unk>", *(f"<0x{value:02X}>" for value in range(256) if bytes_too), "▁", "é", "▁the"]
    names += [chr(value) for value in range(33, 127)]
    model = models.BPE(
        {name: index for index, name in enumerate(names)},
        [],
        unk_token="<unk>",
        byte_fallback=bytes_too,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoder
    return tokenizer


def words(decoder: Any, names: list[str]) -> Tokenizer:
    vocabulary = {name: index for index, name in enumerate(["<unk>", *names])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if decoder is not None:
        tokenizer.decoder = decoder
    return tokenizer


BYTE_LEVEL: dict[str, Callable[[], Tokenizer]] = {
    "its own decoder": lambda: byte_level(decoders.ByteLevel()),
    "its own among others": lambda: byte_level(
        decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])
    ),
    "as Devstral's conversions": lambda: byte_level(decoders.Sequence(STRIPPING)),
    "SentencePiece without strip": lambda: byte_level(decoders.Sequence(SENTENCEPIECE)),
    "its own after others": lambda: byte_level(
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteLevel(), decoders.Fuse()])
    ),
    "metaspace": lambda: byte_level(decoders.Metaspace()),
    "no decoder": lambda: byte_level(None),
}
OTHERS: dict[str, Callable[[], Tokenizer]] = {
    "llama 2": lambda: pieces(decoders.Sequence(STRIPPING)),
    "gemma": lambda: pieces(decoders.Sequence(SENTENCEPIECE)),
    "metaspace pieces": lambda: pieces(decoders.Metaspace(), bytes_too=False),
    "word pieces": lambda: words(decoders.WordPiece(), ["un", "##able", "a", "##b", ".", "'", "s"]),
    "suffixes": lambda: words(decoders.BPEDecoder("</w>"), ["un", "able</w>", "a</w>", "b", "."]),
    "joined words": lambda: words(None, ["un", "able", "a", "b", "é", "."]),
}


@lru_cache
def made(kind: str) -> HuggingFaceTokenizer:
    tokenizer = {**BYTE_LEVEL, **OTHERS}[kind]()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in ADDED])
    plain = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
    )
    return HuggingFaceTokenizer(plain)


def streamed(tokenizer: HuggingFaceTokenizer, ids: list[int]) -> str:
    streaming = tokenizer.detokenizer()
    return "".join(map(streaming.add, ids)) + streaming.finish()


def some_ids(kind: str) -> st.SearchStrategy[list[int]]:
    # Some that the vocabulary lacks, too.
    return st.lists(st.integers(0, max(made(kind).vocabulary.values()) + 20), max_size=60)


@pytest.mark.parametrize("kind", BYTE_LEVEL)
@given(data=st.data())
def test_byte_level_ids_are_streamed_as_they_are_decoded(kind, data):
    tokenizer, ids = made(kind), data.draw(some_ids(kind))
    assert streamed(tokenizer, ids) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", BYTE_LEVEL)
@given(text=st.text(max_size=40), added=st.sampled_from(ADDED))
def test_byte_level_text_is_streamed_as_it_was_written(kind, text, added):
    tokenizer = made(kind)
    whole = f"{text}{added}{text}"
    assert streamed(tokenizer, tokenizer.encode(whole)) == whole
    assert tokenizer.decode(tokenizer.encode(whole)) == whole


@pytest.mark.parametrize("kind", OTHERS)
@given(data=st.data())
def test_other_ids_are_streamed_as_they_are_decoded_after_a_prompt(kind, data):
    tokenizer, ids = made(kind), data.draw(some_ids(kind))
    names = {index: name for name, index in tokenizer.vocabulary.items()}
    before = tokenizer.encode("a")
    whole = tokenizer.decode([*before, *ids]).removeprefix(tokenizer.decode(before))
    if any(names.get(token, "").startswith("<0x") for token in ids):
        # A run of bytes with a broken one is spelled by replacement characters alone: characters
        # that were complete before it have been shown by then.
        run: list[int] = []
        for token in [*ids, -1]:
            if names.get(token, "").startswith("<0x"):
                run.append(token)
            else:
                if "\ufffd" in tokenizer.decode(run):
                    return
                run = []
    assert streamed(tokenizer, ids) == whole


@pytest.mark.parametrize("kind", ["llama 2", "gemma"])
@given(text=st.text("ab é世😀\n<>", max_size=80))
def test_text_of_pieces_is_streamed_as_it_was_written(kind, text):
    tokenizer = made(kind)
    assert streamed(tokenizer, tokenizer.encode("x" + text)) == "x" + text


@given(st.lists(st.sampled_from(["世", "😀", "\xe9", "x"]), max_size=30))
def test_complete_characters_never_wait_for_the_next(characters):
    tokenizer = made("llama 2")
    streaming = tokenizer.detokenizer()
    for character in characters:
        shown = "".join(map(streaming.add, tokenizer.encode("x" + character)[1:]))
        assert shown == character


def test_broken_bytes_are_withheld_only_as_long_as_they_may_become_a_character():
    tokenizer = made("llama 2")
    broken = tokenizer.vocabulary["<0x80>"]
    streaming = tokenizer.detokenizer()
    shown = [streaming.add(broken) for _ in range(100)]
    assert sum(map(len, shown)) > 80
    assert "".join(shown) + streaming.finish() == "\ufffd" * 100


def test_the_work_per_token_does_not_grow():
    tokenizer = made("llama 2")
    decoded: list[int] = []
    plain = hugging_face(tokenizer.wrapped)
    decode = plain.decode

    def counting(ids: list[int], **kwargs: Any) -> Any:
        decoded.append(len(ids))
        return decode(ids, **kwargs)

    plain.decode = counting
    try:
        ids = tokenizer.encode("the line goes on 世 " * 200)
        streamed(tokenizer, ids)
    finally:
        del plain.decode
    assert max(decoded) < 40
    assert len(decoded) < 1.5 * len(ids) + 10


def test_a_reply_in_a_byte_level_vocabulary_with_another_decoder_is_said_once_and_right():
    tokenizer = made("as Devstral's conversions")
    said = "hello to the <é> world: é 世"
    session = ChatSession(FakeEngine([tokenizer.encode(said)] * 2, tokenizer=tokenizer))
    assert session.respond("hi") == said
    before = session.cached_tokens
    with session.stream("and?") as reply:
        assert "".join(response.text for response in reply) == said
    assert reply.cached_tokens == before


def test_added_tokens_with_accents_in_gguf_files():
    vocabulary = byte_level_vocabulary()
    vocabulary["tokens"] += ["<é>", "<|réponse|>"]
    vocabulary["token_type"] += [4, 3]
    metadata = {f"tokenizer.ggml.{key}": value for key, value in vocabulary.items()}
    file = GGUFFile(Path("x.gguf"), {**metadata, "tokenizer.chat_template": CHATML}, {})
    tokenizer = HuggingFaceTokenizer(load_tokenizer(file))
    text = "a<é>é<|réponse|>a"
    ids = tokenizer.encode(text)
    assert len(vocabulary["tokens"]) - 1 in ids
    assert len(vocabulary["tokens"]) - 2 in ids
    assert streamed(tokenizer, ids) == tokenizer.decode(ids) == text


# Gaps, and more ids than tokens


def gapped(base: Callable[[], Tokenizer]) -> Any:
    """A tokenizer whose upper half of ids comes after a gap."""
    entry = json.loads(base().to_str())
    vocabulary = entry["model"]["vocab"]
    middle = len(vocabulary) // 2
    for token, index in vocabulary.items():
        vocabulary[token] = index + (7 if index >= middle else 0)
    plain = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(entry)), chat_template=CHATML
    )
    return plain, middle + 3


@pytest.mark.parametrize("base", [BYTE_LEVEL["its own decoder"], OTHERS["llama 2"]])
def test_gaps_between_ids_and_ids_beyond_them_spell_nothing(base):
    plain, gap = gapped(base)
    tokenizer = HuggingFaceTokenizer(plain)
    assert gap not in tokenizer.vocabulary.values()
    ids = tokenizer.encode("x~the z")
    assert streamed(tokenizer, ids) == "x~the z"
    for unknown in (gap, max(tokenizer.vocabulary.values()) + 1, 10**6):
        assert streamed(tokenizer, [*ids, unknown, *ids]) == "x~the zx~the z"
        assert tokenizer.decode([*ids, unknown, *ids]) == "x~the zx~the z"


def test_mlx_lm_s_own_detokenizer_is_not_relied_on():
    plain = hugging_face(made("llama 2").wrapped)
    wrapped = TokenizerWrapper(plain, SPMStreamingDetokenizer)
    assert streamed(HuggingFaceTokenizer(wrapped), plain.encode("x é")) == "x é"
