"""Session files of version 1 with real caches open forever, too: one of each kind is kept."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest
from cache_models import tiny_chunked, tiny_lists
from drafts import check_draft, draft_of
from tiny import check_next_logits, disturbed, tiny_hybrid, tiny_llama, tiny_mamba, toy_engine

from segue import ChatSession, GenerationConfig, SessionFile, SpeculativeDecodingConfig

FOLDER = Path(__file__).parent / "data" / "sessions"
QUESTIONS = ("hello the world", "why?")
# The model, and settings of the cache.
KINDS = {
    "full": (tiny_llama, {}, {}),
    "sliding": (tiny_llama, {"window": 16}, {}),
    "recurrent": (tiny_mamba, {}, {}),
    "hybrid": (tiny_hybrid, {}, {}),
    "chunked": (tiny_chunked, {}, {}),
    "cache-lists": (tiny_lists, {}, {}),
    "bounded": (tiny_llama, {}, {"max_kv_size": 48}),
    "quantized": (tiny_llama, {}, {"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 0}),
    "draft": (tiny_llama, {}, {}),
}


def begin(kind: str) -> tuple[ChatSession, SpeculativeDecodingConfig | None]:
    """A session as the kept one was, before anything was said."""
    make, shape, settings = KINDS[kind]
    engine = toy_engine(make, **shape)
    speculative = None
    if kind == "draft":
        speculative = SpeculativeDecodingConfig(disturbed(engine, noise=0.05), 3)
    config = GenerationConfig(max_tokens=6, max_marks=3, **settings)
    session = ChatSession(
        engine, instructions="Be brief.", generation=config, speculative=speculative
    )
    return session, speculative


def test_one_of_each_kind_is_kept():
    assert {path.name for path in FOLDER.glob("mlx-v1-*")} == {f"mlx-v1-{k}.segue" for k in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_version_1_goes_on_as_if_it_had_never_stopped(kind, tmp_path):
    path = Path(shutil.copy(FOLDER / f"mlx-v1-{kind}.segue", tmp_path))
    file = SessionFile.read(path)
    assert file.damage == {}
    never_stopped, speculative = begin(kind)
    engine = never_stopped._engine
    # The last bits of random weights may differ between machines, and with them the fingerprint.
    engine.__dict__["fingerprint"] = file.origin.fingerprint
    overrides = {}
    if speculative is not None:
        part = SessionFile.read(path, load=True).parts["draft"]
        speculative.draft.__dict__["fingerprint"] = part.values["state"]["fingerprint"]
        overrides["speculative"] = speculative
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = ChatSession.open(path, engine, **overrides)
    for question in QUESTIONS:
        never_stopped.respond(question)
    assert session.history == never_stopped.history
    assert session._cache.ledger == never_stopped._cache.ledger
    assert session.usage.marks == never_stopped.usage.marks
    if not KINDS[kind][2]:
        check_next_logits(session)
    if kind == "draft":
        assert draft_of(session)._held == draft_of(never_stopped)._held
        check_draft(session)
    assert session.respond("and then") == never_stopped.respond("and then")
    assert session.usage.turns[-1].fed_tokens == never_stopped.usage.turns[-1].fed_tokens
    session.close()
