"""Usage, and its JSON in files."""

from __future__ import annotations

import json
import typing

import pytest

from segue import TurnUsage, Usage
from segue.store.texts import usage_from_json, usage_to_json

TURN = TurnUsage(10, 4, 6, 5, 0.25, 0.5)


def test_sums_are_over_all_turns():
    usage = Usage((TURN, TURN))
    assert (usage.prompt_tokens, usage.cached_tokens, usage.fed_tokens) == (20, 8, 12)
    assert (usage.generated_tokens, usage.prefill_seconds, usage.decode_seconds) == (10, 0.5, 1.0)


def test_files_keep_what_was_spent_and_no_checkpoints():
    usage = Usage((TURN,), 7, checkpoints=3, checkpoint_bytes=99, proposed_tokens=4)
    text = usage_to_json(usage)
    assert usage_from_json(text) == Usage((TURN,), 7, proposed_tokens=4)
    assert json.loads(text).keys() == {
        "turns",
        "prewarmed_tokens",
        "proposed_tokens",
        "accepted_tokens",
    }


def test_older_files_count_what_was_read_ahead_in_two_fields():
    old = {"turns": [], "prewarmed_tokens": 5, "settled_tokens": 2, "proposed_tokens": 1}
    assert usage_from_json(json.dumps(old)) == Usage(prewarmed_tokens=7, proposed_tokens=1)
    assert usage_from_json(json.dumps({"settled_tokens": 2})).prewarmed_tokens == 2


@pytest.mark.parametrize("field", ["prewarmed_tokens", "settled_tokens", "accepted_tokens"])
@pytest.mark.parametrize("count", [-1, 0.5, True, None, "1", 2**53 + 1, [1]])
def test_counts_that_can_not_be_are_refused(field, count):
    with pytest.raises(ValueError, match="counted"):
        usage_from_json(json.dumps({field: count}))


def test_type_hints_resolve_under_another_module_name(monkeypatch):
    for value in (TurnUsage, Usage):
        monkeypatch.setattr(value, "__module__", "segue")
        assert typing.get_type_hints(value)
