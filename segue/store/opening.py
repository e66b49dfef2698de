"""What lies between a session and its file."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..engine import Engine, StoredPart
from ..errors import ConfigurationError, SessionWarning
from ..files.lock import FileLock
from ..ledger import TokenLedger
from ..usage import Usage
from .session_file import SessionFile
from .session_layout import Origin, unusable, write_session_file
from .settings import SessionSettings
from .texts import Conversation, ledger_to_json

LOSSES = {
    "header": "Something in its header is damaged: {}.",
    "file": "The file is damaged: {}.",
    "tokens": "The KV cache was set aside, because it is not known what it holds: {}. The next "
    "turn reads the conversation again.",
    "cache": "The KV cache was set aside: {}. The next turn reads the conversation again.",
    "prefix": "The prefix that stood in front of the conversation is lost: {}. The conversation "
    "goes on without it.",
    "marks": "The places that its KV cache could come back to were set aside: {}.",
    "draft": "What its draft had read was set aside: {}. It will be read again.",
    "settings": "Its settings were set aside: {}. It goes on with the defaults.",
    "usage": "What it has cost was set aside: {}.",
    "origin": "It is not known which model it was saved with: {}.",
}

# Why a folder may take no lock: it can't be written, or its file system has none.
NO_LOCK = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
NO_LOCK |= {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}

OVERRIDES = ("instructions", "generation", "template_kwargs", "speculative", "on_overflow")


def write_session(
    path: Path,
    engine: Engine,
    conversation: Conversation,
    settings: SessionSettings,
    usage: Usage,
    ledger: TokenLedger | None,
    parts: Mapping[str, StoredPart],
) -> FileLock:
    """Write all that a session is.

    Args:
        path: The file.
        engine: The session's model.
        conversation: What was said.
        settings: The session's settings.
        usage: What it has cost.
        ledger: The ids in its KV cache, if that is among the parts.
        parts: The engine's parts.

    Returns:
        The file's lock.

    Raises:
        SessionLockedError: Another process has the file open.
        SessionFileError: It can't be written, or something in it can't be expressed.
    """
    texts = {
        "settings": settings.to_json(),
        "usage": usage.to_json(),
        "origin": Origin(engine.source, engine.fingerprint, datetime.now(UTC)).to_json(),
    }
    if ledger is not None:
        texts["tokens"] = ledger_to_json(ledger)
    try:
        lock = FileLock(path)
    except (OSError, ValueError) as error:
        raise unusable(path, "written", error) from error
    try:
        # Not where a link leads by now, but to what is locked.
        write_session_file(lock.target, conversation, texts, parts)
    except BaseException:
        lock.release()
        raise
    return lock


@contextmanager
def lock_to_read(path: Path) -> Iterator[FileLock | None]:
    """Yields the lock of a file; ``None`` if that is missing, or its folder can't be written.

    The lock is released if the block raises, and kept otherwise.

    Raises:
        SessionLockedError: Another process holds it.
        SessionFileError: It can't be locked for another reason.
    """
    lock = None
    try:
        if path.is_file():
            lock = FileLock(path)
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) not in NO_LOCK:
            raise unusable(path, "read", error) from error
    try:
        yield lock
    except BaseException:
        if lock is not None:
            lock.release()
        raise


def constructor_arguments(file: SessionFile, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ChatSession that bring a saved one back, but for its history and cache.

    Raises:
        ConfigurationError: Something can't be overridden.
    """
    if unknown := overrides.keys() - set(OVERRIDES):
        raise ConfigurationError(
            f"A saved session can't be opened with {', '.join(sorted(unknown))}.",
            remedy=f"Override any of: {', '.join(OVERRIDES)}.",
        )
    told = {
        "instructions": file.instructions,
        "generation": file.generation,
        "template_kwargs": file.template_kwargs,
        "speculative": file.settings.speculative,
        "on_overflow": file.settings.on_overflow,
    }
    return {**told, **overrides}


def warn_of_losses(
    file: SessionFile, aside: Mapping[str, str], overrides: Mapping[str, Any]
) -> None:
    """Say what of a file could not be taken up, if anything."""
    losses = {**file.damage, **aside}
    if losses.get("file") == losses.get("cache"):
        losses.pop("file", None)  # told with what it costs
    for part, why in losses.items():
        told = LOSSES.get(part, f"Its part {part} was left out: {{}}.").format(why.rstrip("."))
        _warn(file, told)
    settings = file.settings
    if settings.draft_model is not None and "speculative" not in overrides:
        _warn(
            file,
            f"It drafted with the model {settings.draft_model}, and goes on without; pass "
            "speculative= to draft again.",
        )
    for name in settings.left_out:
        if name not in overrides and not (
            name == "logits_processors" and "generation" in overrides
        ):
            _warn(file, f"Its {name} were code, which is not saved; pass them anew.")


def _warn(file: SessionFile, told: str) -> None:
    # As if from where the session was opened.
    warnings.warn(f"{file.path}: {told}", SessionWarning, stacklevel=4)
