"""Writing a session to a file, under the file's lock."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, runtime_checkable

from ..conversation import Conversation
from ..engine import Engine, StoredState
from ..files.lock import FileLock
from ..ledger import TokenLedger
from ..usage import Usage
from .session_layout import Origin, unusable, write_session_file
from .settings import SessionSettings
from .texts import ledger_to_json, usage_to_json


def write_session(
    path: Path,
    engine: Engine,
    conversation: Conversation,
    settings: SessionSettings,
    usage: Usage,
    ledger: TokenLedger | None,
    stored: Mapping[str, StoredState],
) -> FileLock:
    """Write a session to a file.

    Args:
        path: The file.
        engine: The session's model.
        conversation: What was said.
        settings: The session's settings.
        usage: What it has cost.
        ledger: The ids in its KV cache, if that is among `stored`.
        stored: What its context holds.

    Returns:
        The file's lock.

    Raises:
        SessionLockedError: if another process has the file open.
        SessionFileError: if it can't be written, or something in it can't be expressed.
    """
    texts = {
        "settings": settings.to_json(),
        "usage": usage_to_json(usage),
        "origin": Origin(_source(engine), engine.fingerprint, datetime.now(UTC)).to_json(),
    }
    if ledger is not None:
        texts["tokens"] = ledger_to_json(ledger)
    try:
        lock = FileLock(path)
    except (OSError, ValueError) as error:
        raise unusable(path, "written", error) from error
    try:
        # Not where a link leads by now, but to what is locked.
        write_session_file(lock.target, conversation, texts, stored)
    except BaseException:
        lock.release()
        raise
    return lock


@runtime_checkable
class _Located(Protocol):
    """An engine that knows what loads it from any folder."""

    location: str


def _source(engine: Engine) -> str:
    """Return a name by which the model can be loaded again."""
    return (isinstance(engine, _Located) and engine.location) or engine.source
