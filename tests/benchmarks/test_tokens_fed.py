"""No change may make Segue read again: the benchmark's counts, on tiny models.

They have no noise, so they are asserted to be exact. `optimum.py` says what they are held against.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

import segue
from benchmarks.chat_templates import CHAT_TEMPLATES
from benchmarks.driver import Scribe, do_workload
from benchmarks.models import WINDOW, tiny_model
from benchmarks.optimum import Optimum
from benchmarks.peers.protocol import Measure
from benchmarks.peers.segue_session import SeguePeer
from benchmarks.texts import our_texts
from benchmarks.workloads import Workload, all_workloads, growing
from kit.models import tiny_llama
from kit.probe import hugging_face
from segue import names
from segue.gguf.header import GGUFFile
from segue.gguf.tokenizer import load_tokenizer

QUICK = {workload.name: workload for workload in all_workloads(our_texts(), quick=True)}


@pytest.fixture(scope="module")
def engine_of():
    """Engines of tiny models with SmolLM2's tokenizer, by model and template."""
    made: dict[str, segue.MlxEngine] = {}
    file = GGUFFile.open(names.find("smollm2"))

    def engine(place: str) -> segue.MlxEngine:
        if place not in made:
            model, template = place.split("/")
            tokenizer = load_tokenizer(file)
            hugging_face(tokenizer).chat_template = CHAT_TEMPLATES[template]
            vocabulary = len(hugging_face(tokenizer))
            tiny = tiny_llama if model == "smollm2" else lambda size: tiny_model(model, size)
            made[place] = segue.MlxEngine(tiny(vocabulary), tokenizer, name=place)
        return made[place]

    return engine


class InThisProcess:
    """Segue's side of the benchmark, without a process of its own."""

    def __init__(self, load: Any) -> None:
        self._load = load
        self.restart()

    def restart(self) -> None:
        self._peer = SeguePeer(self._load)

    def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        said = getattr(self._peer, operation)(**arguments)
        return asdict(said) if isinstance(said, Measure) else said or {}


def done(workload: Workload, engine_of: Any) -> list[dict[str, Any]]:
    """What became of the turns of a workload."""
    place = f"{workload.model}/{workload.template}"
    scribe = Scribe(workload, hugging_face(engine_of(place).tokenizer.wrapped))
    paths = {place: place}
    return do_workload("segue", InThisProcess(engine_of), workload, paths, scribe)["turns"]


@pytest.mark.parametrize("name", QUICK)
def test_every_turn_feeds_what_a_perfect_cache_would(engine_of, name):
    turns = done(QUICK[name], engine_of)
    assert len(turns) == QUICK[name].turns
    assert [turn["fed_tokens"] for turn in turns] == [turn["best_fed"] for turn in turns]
    assert [turn["prompt_tokens"] for turn in turns] == [turn["best_prompt"] for turn in turns]


def test_the_window_is_left_behind(engine_of):
    turns = done(QUICK["window"], engine_of)
    assert turns[-1]["prompt_tokens"] > WINDOW


def test_what_a_turn_feeds_does_not_grow(engine_of):
    steps = growing(24, tokens=4)
    # Cut, no reply can end by itself: the messages are all that differs, and by no token.
    steps = [replace(step, cut=3) for step in steps]
    turns = done(Workload(12, "growth", "", tuple(steps)), engine_of)
    assert len({turn["fed_tokens"] for turn in turns[1:]}) == 1
    assert turns[-1]["prompt_tokens"] > 20 * turns[-1]["fed_tokens"]


def ids(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def spelled(held: Any) -> str:
    return "".join(map(chr, held))


@pytest.fixture
def optimum():
    """A perfect cache where each character is an id, and a full stop ends a reply."""
    return Optimum(ids, spelled, frozenset({ord(".")}))


def test_the_optimum_feeds_what_is_new(optimum):
    assert optimum.ask("ab:") == (3, 3)
    optimum.answer("cd", ids("cd."))
    assert optimum.ask("ab:cd.ef:") == (9, 3)


def test_the_optimum_feeds_at_least_one(optimum):
    optimum.ask("ab:")
    optimum.answer("cd", ids("cd."))
    assert optimum.ask("ab:") == (3, 1)


def test_the_optimum_keeps_sampled_ids_where_the_text_is_the_same():
    two_in_one = Optimum(ids, lambda held: spelled(held).replace("!", "cd"), frozenset())
    two_in_one.ask("ab:")
    two_in_one.answer("cd", ids("!"))
    assert two_in_one.ask("ab:cdef:") == (7, 3)


def test_the_optimum_goes_back_to_where_the_text_differs(optimum):
    optimum.ask("ab:<>")
    optimum.answer("cd", ids("cd."))
    assert optimum.ask("ab:cd.ef:<>") == (11, 8)


def test_the_optimum_remembers_what_was_taken_back(optimum):
    optimum.ask("ab:")
    optimum.answer("cd", ids("cd."))
    optimum.ask("xy:")
    optimum.answer("z", ids("z."))
    assert optimum.ask("ab:cd.ef:") == (9, 3)


def test_the_optimum_of_a_branch_knows_nothing_of_its_siblings(optimum):
    optimum.ask("ab:")
    optimum.answer("cd", ids("cd."))
    optimum.mark()
    optimum.ask("ab:cd.ef:")
    optimum.answer("g", ids("g."))
    optimum.branch()
    assert optimum.ask("ab:cd.eh:") == (9, 3)


def test_the_optimum_lets_go_of_trimmed_white_space_alone(optimum):
    optimum.ask("ab:")
    optimum.answer("cd ", ids("cd ."))
    assert optimum.ask("ab:cd.ef:") == (9, 4)
