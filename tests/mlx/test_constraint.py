"""Replies held to a grammar: masks, forced tokens, drafts; exact on every kind of cache."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from kit.contexts import (
    KINDS,
    PINNED,
    SEEDED,
    cache_of,
    check_fresh,
    config_of,
    context_for,
    engine_for,
    words,
)
from kit.contexts import Line as PlainLine
from kit.probe import force_nothing, note_passes
from segue import ConfigurationError
from segue.engine import Request
from segue.testing import ToyTokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "the weather": {"enum": ["hello world", "rain"]},
        "days": {"type": "integer", "minimum": 0, "maximum": 999},
        "note": {"type": "string", "maxLength": 5},
    },
    "required": ["the weather", "days", "note"],
    "additionalProperties": False,
    "x-guidance": {
        "whitespace_flexible": False,
        "item_separator": ", ",
        "key_separator": ": ",
    },
}
GRAMMAR = f"start: %json {json.dumps(SCHEMA)}"
END = ToyTokenizer().end_id
# The draft of a reply: none, the conversation itself, a model of the same kind.
DRAFTS = [None, "prompt-lookup", "model"]


class Line(PlainLine):
    """A context whose replies are held to a grammar."""

    def say(self, new, config, grammar=GRAMMAR):
        prompt = [*self.ids, *new]
        run = self.context.run(Request(prompt, config, grammar=grammar, pinned=PINNED))
        steps = []
        for step in run:
            steps.append(step)
            if step.token == END:
                break
        run.close()
        said = [step.token for step in steps]
        self.ids = [*prompt, *said]
        self.steps = steps
        return said


def begun(kind, draft=None):
    engine = engine_for(kind)
    drafter = engine_for("full") if draft == "model" else draft
    return engine, Line(context_for(engine, cache_of(kind), draft=drafter))


def text(engine, ids):
    return engine.tokenizer.decode([token for token in ids if token != END])


@pytest.mark.proof
@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{}, SEEDED], ids=["greedy", "seeded"])
def test_a_reply_matches_its_grammar_and_the_cache_is_a_fresh_ones(kind, draft, settings):
    engine, line = begun(kind, draft)
    line.say(words(1, 14), config_of(), None)
    for turn in range(2):
        said = line.say(words(turn, 9), config_of(max_tokens=120, **settings))
        value = json.loads(text(engine, said))
        assert list(value) == ["the weather", "days", "note"]
        assert value["the weather"] in ("hello world", "rain")
        assert said[-1] == END
    check_fresh(line, engine, cache_of(kind))


@pytest.mark.proof
@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{}, SEEDED], ids=["greedy", "seeded"])
def test_forced_tokens_change_no_token_and_save_passes(kind, draft, settings):
    said, passes = [], []
    for forcing in (True, False):
        _, line = begun(kind, draft if forcing else None)
        if not forcing:
            force_nothing(line.context)
        passes.append(note_passes(line.context))
        said.append(line.say(words(1, 14), config_of(max_tokens=120, **settings)))
    if draft != "model" or not settings:
        assert said[0] == said[1]
    if draft is None:
        assert len(passes[0]) < 0.8 * len(passes[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop_after", [1, 2, 5, 9])
def test_a_reply_cut_within_forced_tokens_leaves_the_cache_exact(kind, stop_after):
    engine, line = begun(kind)
    prompt = words(1, 14)
    steps = line.context.run(Request(prompt, config_of(max_tokens=60), grammar=GRAMMAR))
    line.ids = [*prompt, *(next(steps).token for _ in range(stop_after))]
    steps.close()
    assert line.context.offset <= len(line.ids)
    line.ids = line.ids[: line.context.offset]
    check_fresh(line, engine, cache_of(kind))


def test_processors_and_log_probabilities_go_with_a_grammar():
    engine, line = begun("full")
    seen = []

    def watch(tokens, logits):
        seen.append(len(tokens))
        return logits

    said = line.say(words(1, 14), config_of(max_tokens=120, logits_processors=[watch], logprobs=2))
    json.loads(text(engine, said))
    assert seen[: len(said)] == list(range(14, 14 + len(said)))
    assert all(step.token in step.logprobs for step in line.steps)
    plain = begun("full")[1]
    assert plain.say(words(1, 14), config_of(max_tokens=120)) == said


def test_a_wrong_grammar_is_refused_before_anything_is_fed():
    engine, line = begun("full")
    for grammar in ("start: nowhere", 'start: "a', "", 'start: %json {"type": "nope"}'):
        with pytest.raises(ConfigurationError, match="grammar"):
            line.context.run(Request([1, 2], config_of(), grammar=grammar))
        with pytest.raises(ConfigurationError, match="grammar"):
            engine.compile_grammar(grammar)
    assert line.context.offset == 0


def test_drafts_are_cut_to_what_the_grammar_allows():
    engine, line = begun("full", "prompt-lookup")
    config = config_of(max_tokens=200)
    first = line.say(words(1, 14), config)
    for _ in range(3):
        assert line.say(words(2, 9), replace(config, num_draft_tokens=8))
    proposed, accepted = line.context.acceptance
    assert text(engine, first)
    assert accepted <= proposed
