"""Ids that the tokenizer has no token for: never sampled, however a reply is sampled."""

from __future__ import annotations

import dataclasses
import json
import threading

import mlx.core as mx
import pytest
from mlx_lm.utils import save_model
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import segue
from kit.models import CHATML, byte_level_tokenizer, tiny_llama, write_folder
from kit.probe import forge, ids_of
from segue import (
    ChatSession,
    GenerationConfig,
    MlxEngine,
    PromptCacheFormatError,
    SessionWarning,
)
from segue.testing import FakeEngine, ToyTokenizer
from segue.testing.mlx import CachingModel

TOKENS = len(ToyTokenizer())
PADDED = TOKENS + 40
SETTINGS = {
    "greedy": {},
    "sampled": {"temperature": 1.0, "seed": 3},
    "hot": {"temperature": 50.0, "seed": 3},
    "top-k": {"temperature": 1.0, "seed": 3, "top_k": PADDED},
    "min-p": {"temperature": 9.0, "seed": 3, "min_p": 0.001, "min_tokens_to_keep": PADDED},
    "xtc": {"temperature": 1.0, "seed": 3, "xtc_probability": 1.0, "xtc_threshold": 0.0},
    "bias": {"logit_bias": {TOKENS + 1: 1e6}},
    "processor": {"logits_processors": [lambda _, logits: logits + (mx.arange(PADDED) > TOKENS)]},
    "logprobs": {"logprobs": PADDED},
    "penalty": {"repetition_penalty": 1.3},
}


class Preferring(CachingModel):
    """A model whose logits are highest where there are no tokens."""

    def __call__(self, inputs, cache=None):
        logits = super().__call__(inputs, cache)
        return logits * 3 + 10.0 * (mx.arange(logits.shape[-1]) >= TOKENS)


def engine() -> MlxEngine:
    return MlxEngine(Preferring(lambda ids: (ids[-1] * 7 + 11) % 120, PADDED), ToyTokenizer())


@pytest.mark.parametrize("draft", [None, "prompt-lookup", "model"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_they_are_never_sampled(settings, draft):
    config = GenerationConfig(max_tokens=30, **settings)
    session = ChatSession(
        engine(), generation=config, draft=engine() if draft == "model" else draft
    )
    for prompt in ("hello", "hello hello hello"):
        with session.stream(prompt) as reply:
            for response in reply:
                assert response.token < TOKENS
                if response.logprobs is not None:
                    assert all(token < TOKENS for token in response.logprobs)
                    assert sum(map(pow_e, response.logprobs.values())) == pytest.approx(1, abs=1e-3)
    assert max(ids_of(session)) < TOKENS


def pow_e(value: float) -> float:
    return 2.718281828459045**value


def test_a_draft_that_proposes_by_the_same_rule_is_accepted():
    config = GenerationConfig(max_tokens=60)
    alone = ChatSession(engine(), generation=config).respond("hello")
    session = ChatSession(engine(), generation=config, draft=engine())
    assert session.respond("hello") == alone
    assert session.acceptance_rate == 1.0


def test_a_vocabulary_without_holes_is_sampled_as_ever():
    model = tiny_llama(TOKENS)
    whole = MlxEngine(model, ToyTokenizer())
    config = GenerationConfig(max_tokens=20, temperature=1.0, seed=5, logprobs=3)

    class Silent(ToyTokenizer):
        vocabulary = {}  # It does not say what it has.

    silent = MlxEngine(model, Silent())
    for prompt in ("hello", "the world"):
        ours, theirs = (
            [(response.token, response.logprobs) for response in session.stream(prompt)]
            for session in (
                ChatSession(whole, generation=config),
                ChatSession(silent, generation=config),
            )
        )
        assert ours == theirs


def test_an_end_of_replies_is_known_in_any_case():
    class LateEnd(ToyTokenizer):
        @property
        def eos_token_ids(self):
            return {TOKENS + 5}

    model = CachingModel(lambda ids: TOKENS + 5, PADDED)
    session = ChatSession(MlxEngine(model, LateEnd()))
    with session.stream("hi") as reply:
        assert "".join(response.text for response in reply) == ""
    assert reply.finish_reason == "stop"


def test_an_engine_first_used_on_one_thread_serves_others():
    shared = engine()
    config = GenerationConfig(max_tokens=5, temperature=1.0, seed=1)
    replies: list[str] = []

    def talk() -> None:
        replies.append(ChatSession(shared, generation=config).respond("hi"))

    for _ in range(2):
        thread = threading.Thread(target=talk)
        thread.start()
        thread.join()
    talk()
    assert len(set(replies)) == 1
    assert len(replies) == 3


def test_a_folder_whose_vocabulary_has_a_gap(tmp_path):
    """As its files have it: pieces of SentencePiece's kind, which mlx-lm itself fails on."""
    write_folder(tmp_path)
    entry = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {"type": "BPE", "vocab": {}, "merges": [], "unk_token": "<unk>"},
    }
    names = ["<unk>", "▁", "\n", *(chr(value) for value in range(33, 127)), "</s>"]
    entry["model"]["vocab"] = {
        name: index + (20 if index > 30 else 0) for index, name in enumerate(names)
    }
    plain = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(entry)),
        chat_template=CHATML.replace("<|im_end|>", "</s>").replace("<|im_start|>", ""),
        eos_token="</s>",
        unk_token="<unk>",
    )
    plain.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"vocab_size": 160, "eos_token_id": plain.eos_token_id}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_model(tmp_path, tiny_llama(160))
    loaded = segue.load(tmp_path)
    settings = dataclasses.replace(GenerationConfig(max_tokens=40), temperature=2.0, seed=1)
    session = ChatSession(loaded, generation=settings)
    known = set(loaded.tokenizer.vocabulary.values())
    for prompt in ("hi", "more"):
        with session.stream(prompt) as reply:
            text = "".join(response.text for response in reply)
        assert set(reply.tokens) <= known
        assert text == session.history[-1].text


def test_byte_level_folders_with_padded_embeddings(tmp_path):
    tokenizer = byte_level_tokenizer()
    width = len(tokenizer) + 64
    loaded = MlxEngine(tiny_llama(width), tokenizer)
    settings = GenerationConfig(max_tokens=200, temperature=3.0, seed=2)
    with ChatSession(loaded, generation=settings).stream("hi") as reply:
        tokens = [response.token for response in reply]
    assert max(tokens) < len(tokenizer)


def test_a_saved_session_that_names_one_is_read_again(tmp_path):
    path = tmp_path / "a.segue"
    session = ChatSession(FakeEngine(["hello"]))
    session.respond("hi")
    forge(session, TOKENS + 9)
    session.save(path)
    session.close()
    with pytest.warns(SessionWarning, match=f"has no token {TOKENS + 9}"):
        opened = ChatSession.open(path, FakeEngine(["fine"]))
    assert opened.cached_tokens == 0
    assert opened.respond("and?") == "fine"


def test_a_prompt_cache_that_names_one_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    engine = FakeEngine(["hello"])
    session = ChatSession(engine)
    session.respond("hi")
    forge(session, TOKENS + 9)
    session.save_cache(path)
    with pytest.raises(PromptCacheFormatError, match=f"names token {TOKENS + 9}"):
        segue.load_prompt_cache(path, engine)
