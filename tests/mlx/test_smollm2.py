"""The real SmolLM2: its tokenizer against llama.cpp's, its answers, its cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from kit.logits import check_next_logits
from kit.paths import RECORDED
from kit.probe import ids_of
from segue import ChatSession, FinishReason, GenerationConfig, SessionFile

pytestmark = pytest.mark.smollm2

CASES = json.loads((RECORDED / "smollm2_token_ids.json").read_text())["cases"]


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


QUESTIONS = ("Go on.", "Why?", "A word, please.", "And then?", "In French!", "Shorter.", "Who?")


@pytest.mark.proof
@pytest.mark.timeout(900)
def test_two_hundred_hot_turns_read_nothing_again(smollm2):
    """Sampled ids that no one would encode stay, turn after turn."""
    tokenizer, turns, lost = smollm2.tokenizer, 0, 0
    for conversation in range(5):
        session = ChatSession(smollm2, instructions="Be odd.")
        for turn in range(40):
            seed = 40 * conversation + turn
            session.generation = GenerationConfig(max_tokens=4, temperature=1.3, seed=seed)
            held = ids_of(session)
            with session.stream(QUESTIONS[seed % len(QUESTIONS)]) as reply:
                list(reply)
            turns += 1
            assert reply.cached_tokens == len(held)
            render = tokenizer.render(
                [
                    {"role": "system", "content": "Be odd."},
                    *(message.to_template() for message in session.history[:-1]),
                ],
                add_generation_prompt=True,
                template_kwargs={},
            )
            fed = ids_of(session)[: reply.prompt_tokens]
            assert tokenizer.decode(fed) == render
            # Encoded anew, as everyone else does.
            lost += tuple(tokenizer.encode(render)[: len(held)]) != held
    assert turns == 200
    assert lost > turns // 2, f"encoding anew would have kept the cache in {turns - lost} turns"


@pytest.mark.proof
def test_a_session_goes_on_in_another_process_as_if_it_had_never_stopped(smollm2, tmp_path):
    """The real command: what it says, and what it reads, is what one session would."""
    config = GenerationConfig(max_tokens=10, temperature=1.0, seed=5, prefill_step_size=512)
    never_stopped = ChatSession(smollm2, instructions="Be odd.", generation=config)
    said = []
    options = ["--session", "rivers", "--system", "Be odd.", "--seed", "5", "--temperature", "1"]
    for question in ("Name a river.", "Another.", "Why?"):
        said.append(never_stopped.respond(question))
        answered = subprocess.run(
            [sys.executable, "-m", "segue.cli.main", "chat", *options, "--max-tokens", "10"],
            input=question + "\n",
            env={**os.environ, "XDG_DATA_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert answered.stdout == said[-1] + "\n"
    (path,) = (tmp_path / "segue" / "sessions").glob("*.segue")
    file = SessionFile.read(path)
    assert file.history == never_stopped.history
    assert file.damage == {}
    assert [turn.fed_tokens for turn in file.usage.turns] == [
        turn.fed_tokens for turn in never_stopped.usage.turns
    ]
    with ChatSession.open(path, smollm2) as session:
        check_next_logits(session, probe=28)
        assert session.retry() == said[-1]
        assert session.usage.turns[-1].fed_tokens == 1
