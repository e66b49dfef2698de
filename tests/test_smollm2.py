"""The real SmolLM2: its tokenizer against llama.cpp's, its answers, its cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import check_next_logits

from segue import ChatSession, FinishReason, GenerationConfig

pytestmark = pytest.mark.smollm2

CASES = json.loads((Path(__file__).parent / "data" / "smollm2_token_ids.json").read_text())["cases"]


def test_there_are_two_hundred_strings():
    assert len({case["text"] for case in CASES}) == 200


def test_ids_are_llama_cpp_s_for_the_same_file(smollm2):
    wrong = [
        case["text"]
        for case in CASES
        if list(smollm2.tokenizer.encode(case["text"])) != case["ids"]
    ]
    assert wrong == []


def test_ids_decode_to_their_text(smollm2):
    wrong = [
        case["text"] for case in CASES if smollm2.tokenizer.decode(case["ids"]) != case["text"]
    ]
    assert wrong == []


def test_the_capital_of_france(smollm2):
    session = ChatSession(smollm2)
    with session.stream("What is the capital of France? Answer briefly.") as reply:
        responses = list(reply)
    assert reply.text == "The capital of France is Paris."
    assert responses[-1].finish_reason is FinishReason.STOP
    check_next_logits(session, probe=28)


def test_later_turns_feed_only_their_new_tokens_and_never_go_wrong(smollm2):
    config = GenerationConfig(max_tokens=12, temperature=1.3, seed=3)
    session = ChatSession(smollm2, instructions="You are a poet.", generation=config)
    with session.stream("Write a line about rivers.") as reply:
        assert list(reply)[-1].finish_reason is FinishReason.LENGTH
    for prompt in ("And one about stones.", "Now both together, in French."):
        before = session.cached_tokens
        with session.stream(prompt) as reply:
            next(reply)
        assert reply.cached_tokens == before
        # The message, and what the template writes around it (the last reply was cut short).
        new = f"<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
        assert reply.prompt_tokens - before == len(smollm2.tokenizer.encode(new))
        check_next_logits(session, probe=28)
