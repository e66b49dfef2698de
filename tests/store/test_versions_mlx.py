"""Session files of version 1 with real caches open forever, too: one of each kind is kept."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest

from kit.drafts import check_draft
from kit.logits import check_next_logits
from kit.old_sessions import MLX_KINDS, MLX_QUESTIONS, begin_mlx
from kit.paths import OLD_SESSIONS
from kit.probe import draft_ids, engine_of, ledger_of, pretend_fingerprint
from segue import ChatSession, SessionFile


def test_one_of_each_kind_is_kept():
    assert {path.name for path in OLD_SESSIONS.glob("mlx-v1-*")} == {
        f"mlx-v1-{k}.segue" for k in MLX_KINDS
    }


@pytest.mark.parametrize("kind", MLX_KINDS)
def test_version_1_goes_on_as_if_it_had_never_stopped(kind, tmp_path):
    path = Path(shutil.copy(OLD_SESSIONS / f"mlx-v1-{kind}.segue", tmp_path))
    file = SessionFile.read(path)
    assert file.damage == {}
    never_stopped, draft = begin_mlx(kind)
    engine = engine_of(never_stopped)
    # The last bits of random weights may differ between machines, and with them the fingerprint.
    pretend_fingerprint(engine, file.origin.fingerprint)
    overrides = {}
    if draft is not None:
        stored = SessionFile.read(path, load=True).stored["draft"]
        pretend_fingerprint(draft, stored.values["state"]["fingerprint"])
        overrides["draft"] = draft
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = ChatSession.open(path, engine, **overrides)
    for question in MLX_QUESTIONS:
        never_stopped.respond(question)
    assert session.history == never_stopped.history
    assert ledger_of(session) == ledger_of(never_stopped)
    assert session.usage.checkpoints == never_stopped.usage.checkpoints
    if not MLX_KINDS[kind][2]:
        check_next_logits(session)
    if kind == "draft":
        assert draft_ids(session) == draft_ids(never_stopped)
        check_draft(session)
    assert session.respond("and then") == never_stopped.respond("and then")
    assert session.usage.turns[-1].fed_tokens == never_stopped.usage.turns[-1].fed_tokens
    session.close()
