"""Opening a saved session: what of a file can be used, and what was lost.

Only the conversation must be sound. Whatever else is damaged, or belongs to another model, is left
out, and becomes a *loss*: the name of a section, and the reason. Losses are collected while the
file is opened, and reported at the end, one warning each.
"""

from __future__ import annotations

import errno
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import CacheConfig, check_cache
from ..engine import Engine, StoredState, StoresPrompts
from ..errors import ConfigurationError, PromptCacheError, SessionWarning
from ..files.lock import FileLock
from ..prompt_cache import PromptCache
from .session_file import SessionFile
from .session_layout import STATES, unusable

# What the loss of a section means.
CONSEQUENCES = {
    "header": "Something in its header is damaged.",
    "file": "The file is damaged.",
    "tokens": "The KV cache is left out, because its tokens are unknown; the next turn reads the "
    "conversation again.",
    "cache": "The KV cache is left out; the next turn reads the conversation again.",
    "prefix": "The prefix before the conversation is lost; the conversation continues without it.",
    "checkpoints": "The checkpoints of its KV cache are left out.",
    "draft": "What its draft had read is left out; the draft reads it again.",
    "settings": "Its settings are left out; it continues with the defaults.",
    "usage": "What it has cost so far is left out.",
    "origin": "It is unknown which model it was saved with.",
}

# Why a folder may take no lock: it can't be written, or its file system has none.
NO_LOCK = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
NO_LOCK |= {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}

OVERRIDES = (
    "instructions",
    "template_kwargs",
    "generation",
    "cache",
    "draft",
    "on_overflow",
    "date",
    "allow_control_tokens",
)


@contextmanager
def lock_to_read(path: Path) -> Iterator[FileLock | None]:
    """Lock a file for a block; the lock is released if the block raises, and stays otherwise.

    Yields:
        The lock; ``None`` if the file is missing, or its folder can't be written.

    Raises:
        SessionLockedError: if another process has it.
        SessionFileError: if it can't be locked for another reason.
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


def opening_arguments(file: SessionFile, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments that bring a saved session back, but for its cache.

    Returns:
        ``conversation``, and arguments of ChatSession.

    Raises:
        ConfigurationError: if something can't be overridden.
    """
    if unknown := overrides.keys() - set(OVERRIDES):
        raise ConfigurationError(
            f"A saved session can't be opened with {', '.join(sorted(unknown))}.",
            remedy=f"Override any of: {', '.join(OVERRIDES)}.",
        )
    arguments = {
        "generation": file.settings.generation,
        "cache": file.settings.cache,
        "draft": file.settings.draft,
        "on_overflow": file.settings.on_overflow,
        **overrides,
    }
    check_cache(arguments["cache"])
    instructions = arguments.pop("instructions", file.conversation.instructions)
    template_kwargs = arguments.pop("template_kwargs", file.conversation.template_kwargs)
    conversation = replace(
        file.conversation,
        instructions=instructions,
        template_kwargs={} if template_kwargs is None else template_kwargs,
        date=arguments.pop("date", file.date),
        allow_control_tokens=arguments.pop(
            "allow_control_tokens", file.conversation.allow_control_tokens
        ),
    )
    return {**arguments, "conversation": conversation}


class SavedState:
    """The saved state of a session's context, as far as an engine can use it.

    Args:
        file: The session, its sections loaded.
        engine: The model.
    """

    def __init__(self, file: SessionFile, engine: Engine) -> None:
        self._stored = dict(file.stored)
        self._cache = file.settings.cache
        sections = (*STATES, "tokens")
        self.losses = {name: file.damage[name] for name in sections if name in file.damage}
        """The sections that are left out, and why."""
        if self._stored and file.origin.fingerprint != engine.fingerprint:
            reason = "it is of another model, or of another precision"
            self.losses |= dict.fromkeys(self._stored, reason)
            self._stored.clear()
        self.prefix = self._read_prefix(engine)
        """The opaque prefix that the session began with, if it did."""
        # Without its prefix, what was read after it is worth nothing; nor without its tokens.
        if "prefix" in self.losses or "tokens" in self.losses:
            self._stored.clear()

    def usable_with(self, cache: CacheConfig) -> Mapping[str, StoredState]:
        """Return the sections for a context of this kind; none for one of another kind."""
        return self._stored if cache.kind == self._cache.kind else {}

    def missing_with(self, cache: CacheConfig) -> str:
        """Return why there is no KV cache for a context of this kind, in words."""
        for section in ("cache", "tokens", "prefix"):
            if section in self.losses:
                return f"the saved KV cache can't be used: {self.losses[section]}"
        if cache.kind != self._cache.kind:
            return "the settings of the KV cache are others than in the file"
        return "the file has no KV cache"

    def _read_prefix(self, engine: Engine) -> PromptCache | None:
        section = self._stored.get("prefix")
        if section is None:
            return None
        try:
            if not isinstance(engine, StoresPrompts):
                raise PromptCacheError(
                    f"The engine {engine.name} has no prompt caches.", remedy="Use another engine."
                )
            return PromptCache(engine, engine.read_prefix(section, self._cache))
        except PromptCacheError as error:
            self.losses["prefix"] = error.what
            return None


def warn_of_losses(
    file: SessionFile, losses: Mapping[str, str], overrides: Mapping[str, Any]
) -> None:
    """Warn of what could not be used of a file, if anything."""
    losses = {**file.damage, **losses}
    if losses.get("file") == losses.get("cache"):
        losses.pop("file", None)  # the cache's loss has the same reason, and says what it costs
    for section, reason in losses.items():
        consequence = CONSEQUENCES.get(section, f"Its section {section} is left out.")
        _warn(file, f"{consequence} Reason: {reason.rstrip('.')}.")
    settings = file.settings
    if settings.draft_model is not None and "draft" not in overrides:
        _warn(
            file,
            f"The session used the draft model {settings.draft_model}, which files don't keep. "
            "Pass draft= to use one again.",
        )
    for name in settings.left_out:
        if name not in overrides and not (
            name == "logits_processors" and "generation" in overrides
        ):
            _warn(file, f"Its {name} were code, which is not saved. Pass them again.")


def _warn(file: SessionFile, message: str) -> None:
    # As if from where the session was opened.
    warnings.warn(f"{file.path}: {message}", SessionWarning, stacklevel=4)
