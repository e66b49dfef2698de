"""Models of every type: never wrong, and never twice, whatever their caches are."""

from __future__ import annotations

import pytest

from kit import architectures, oracle
from kit.architectures import DATA, NO_DATA, CannotRunError, examine
from kit.models import tiny_llama
from kit.oracle import TOLERANCE
from kit.paths import ROOT
from segue import CacheConfig

# The script's template writes other words for some, which is said, and meant.
pytestmark = pytest.mark.filterwarnings("ignore::segue.TemplateWarning")

PAGE = ROOT / "docs" / "architectures.md"


@pytest.mark.skipif(DATA is None, reason=NO_DATA)
@pytest.mark.parametrize("name", architectures.configurations() or [None])
def test_a_scripted_conversation(name):
    try:
        result = examine(name)
    except CannotRunError as error:
        # Not a way out: the page lists what can't run, and why.
        if f"- {name}: {error}" not in PAGE.read_text(encoding="utf-8"):
            raise
        pytest.skip(f"mlx-lm can't run {name} on this machine: {error}")
    assert result.worst < TOLERANCE
    # What is refused, and what can only be compared with mlx-lm, is known.
    if f"- {name}:" not in PAGE.read_text(encoding="utf-8"):
        assert result.row(name) in PAGE.read_text(encoding="utf-8"), "run: make architectures"


def test_the_script_finds_a_cache_that_is_not_rewound(monkeypatch):
    """The check itself: a context that says it went back, and did not, is found out."""
    from segue.mlx.kv.state import KVState

    engine = oracle.wrap(tiny_llama(262))
    oracle.Talk(engine, CacheConfig()).run()

    def pretend(state, offset, mark=None):
        state.offset = min(offset, state.offset)
        return state.offset

    monkeypatch.setattr(KVState, "rewind", pretend)
    with pytest.raises(AssertionError, match="relative error"):
        oracle.Talk(engine, CacheConfig()).run()


@pytest.mark.parametrize("off", [-1, 1])
def test_the_script_finds_a_turn_that_feeds_another_number_of_tokens(monkeypatch, off):
    from segue.turn import cache as session_cache

    engine = oracle.wrap(tiny_llama(262))
    keep = session_cache.tokens_to_keep
    monkeypatch.setattr(
        session_cache, "tokens_to_keep", lambda *args: max(0, keep(*args) + off * bool(keep(*args)))
    )
    with pytest.raises(AssertionError):
        oracle.Talk(engine, CacheConfig()).run()
