"""What a chat starts with: a new conversation, a prompt cache, or a saved session.

A saved session is read in two steps. `Start.claim` locks the file and reads its header before the
model is loaded, because the header names the model, and because a session that can't be opened
should be reported at once. `Opener` then opens the session with the engine, cache included.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from ...config import CacheConfig, GenerationConfig
from ...engine import Engine
from ...errors import ConfigurationError, SessionFileError, SessionLockedError, SessionWarning
from ...files.lock import FileLock
from ...recommended import Recommends, changed_settings
from ...session import ChatSession
from ...store.prompt_cache import load_prompt_cache
from ...store.session_file import SessionFile
from ..options import CACHE_FORM, option_name
from ..process.input import without_mark
from ..sessions.folder import SavedSession, check_target, lock_session, session_path
from .branches import FIRST, Branch, Branches
from .commands.settings import set_instructions

PROMPT_LOOKUP: Literal["prompt-lookup"] = "prompt-lookup"

OverflowPolicy = Literal["error", "drop-oldest"]
Draft = Engine | Literal["prompt-lookup"]
Settings = TypeVar("Settings", GenerationConfig, CacheConfig)


@dataclass(frozen=True, slots=True)
class Claim:
    """The session that a chat resumes or starts, before its model is loaded."""

    name: str
    """The session's name, or its path as it was typed."""
    path: Path
    saved: SavedSession | None
    """The session as its header describes it; ``None`` for a new one."""
    lock: FileLock | None
    """Keeps other processes from the file; ``None`` if its folder can't be written."""

    @classmethod
    def take(cls, target: str) -> Claim:
        """Lock a session's file, and read its header.

        Args:
            target: The session's name, or a path.

        Raises:
            ConfigurationError: if `target` is neither a path nor a valid name.
            SessionLockedError: if another process has the file open.
            SessionFileError: if the file can't be read, or is missing and can't be written.
        """
        target = check_target(target)
        path, lock = session_path(target), None
        try:
            lock = lock_session(path)
        except SessionLockedError:
            raise
        except SessionFileError:
            # A file in a folder that can't be written may be readable.
            if not os.path.lexists(path):
                raise
        claim = cls(target, path, None, lock)
        if not os.path.lexists(path):
            return claim
        try:
            saved = SavedSession.of(target, SessionFile.read(path, check=False))
        except BaseException:
            claim.release()
            raise
        return replace(claim, saved=saved)

    def release(self) -> None:
        """Release the lock. If a session has the file open, that session still locks it."""
        if self.lock is not None:
            self.lock.release()


@dataclass(frozen=True, slots=True)
class Start:
    """What a chat starts with, as the command line names it."""

    system: str | None = None
    """The system message."""
    prompt_cache: Path | None = None
    """A prompt cache file."""
    draft: str | None = None
    """``"prompt-lookup"``, or the name of a draft model."""
    session: str | None = None
    """The session to resume or start: its name, or a path."""
    given: AbstractSet[str] = frozenset()
    """The settings that were given. A saved session keeps its own values of the others."""
    recommended: bool = False
    """Whether to use what the model's publisher recommends, where nothing was given."""
    lines: bool = False
    """True if each line of standard input is a message, and not all of it is one."""
    on_overflow: OverflowPolicy | None = None
    """What to do about a full context; ``None`` for what a saved session does."""

    def claim(self) -> Claim | None:
        """Claim the session, if one is named; errors are those of `Claim.take`."""
        return None if self.session is None else Claim.take(self.session)

    def branches(
        self,
        engine: Engine,
        generation: GenerationConfig,
        cache: CacheConfig,
        claim: Claim | None,
    ) -> Branches:
        """Start or resume the conversation.

        Args:
            engine: The model.
            generation: The settings of replies on the command line, defaults included.
            cache: The settings of the KV cache, likewise.
            claim: The session, if one is named.

        Returns:
            The chat's branches: so far, the first one.
        """
        draft = self._draft()
        advice = {
            name: value
            for name, value in recommendations(engine).items()
            if self.recommended and name not in self.given
        }
        generation = replace(generation, **advice)
        given = {**advice, **self._given(generation)}
        opener = Opener(engine, given, self._given(cache), draft, self.on_overflow)
        if claim is not None and claim.saved is not None:
            session = opener(claim.saved)
        else:
            prompt_cache = None
            if self.prompt_cache is not None:
                prompt_cache = load_prompt_cache(self.prompt_cache, engine)
            session = ChatSession(
                engine,
                generation=generation,
                cache=cache,
                draft=draft,
                prompt_cache=prompt_cache,
                on_overflow=self.on_overflow or "error",
            )
        if self.system is not None:
            try:
                set_instructions(session, without_mark(self.system) or None)
            except BaseException:
                session.close()
                raise
        if claim is None:
            return Branches(Branch(session, FIRST), opener)
        first = Branch(session, claim.name, claim.path, claim.lock, claim.saved)
        return Branches(first, opener)

    def _given(self, settings: GenerationConfig | CacheConfig) -> Mapping[str, Any]:
        names = [field.name for field in fields(settings) if field.name in self.given]
        return {name: getattr(settings, name) for name in names}

    def _draft(self) -> Draft | None:
        from ...loading import load

        if self.draft is None:
            return None
        return PROMPT_LOOKUP if self.draft.replace("_", "-") == PROMPT_LOOKUP else load(self.draft)


def recommendations(engine: Engine) -> dict[str, Any]:
    """Return the settings that a model's publisher recommends, by name."""
    return changed_settings(engine.recommended) if isinstance(engine, Recommends) else {}


def in_force(engine: Engine, generation: GenerationConfig) -> str:
    """Return what a model's publisher recommends, and if that is in force; empty if nothing.

    Args:
        engine: The model.
        generation: The settings of replies.
    """
    found = recommendations(engine)
    if not found:
        return ""
    named = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in found.items())
    followed = [name for name, value in found.items() if getattr(generation, name) == value]
    if len(followed) == len(found):
        return f"In force, as the model's publisher recommends: {named}."
    how = "some of it is in force" if followed else "--recommended uses it"
    return f"The model's publisher recommends {named}; {how}."


@dataclass(frozen=True, slots=True)
class Opener:
    """Opens saved sessions with the model and the given options of a chat.

    An option that was given applies to every session that the chat opens, and replaces the saved
    setting. If it asks for another kind of KV cache, the saved cache can't be used. The option
    wins, as ``--model`` does, because it was asked for and a cache costs only time: the cache is
    left out with a warning. The file keeps it until the next turn is saved.
    """

    engine: Engine
    generation: Mapping[str, Any]
    """The settings of replies that were given, by name."""
    cache: Mapping[str, Any]
    """The settings of the KV cache that were given, by name."""
    draft: Draft | None = None
    """The draft; ``None`` for the session's own."""
    on_overflow: OverflowPolicy | None = None
    """What to do about a full context; ``None`` for what the session does."""

    def __call__(self, saved: SavedSession) -> ChatSession:
        """Open a session.

        Raises:
            ConfigurationError: if a setting that was given can't be combined with a saved one.
            SessionFileError: if the file can't be opened.

        Warns:
            SessionWarning: if something in the file could not be used, such as its KV cache.
        """
        assert saved.file is not None
        before = saved.file.settings.cache
        cache = _with_given(before, self.cache)
        overrides: dict[str, Any] = {} if self.draft is None else {"draft": self.draft}
        if cache != before:
            overrides["cache"] = cache
        if self.on_overflow is not None:
            overrides["on_overflow"] = self.on_overflow
        session = ChatSession.open(saved.path, self.engine, **overrides)
        try:
            session.generation = _with_given(session.generation, self.generation)
            # With another model, `open` has warned of the cache already.
            same_model = saved.file.origin.fingerprint == self.engine.fingerprint
            if saved.file.ledger.ids and same_model and cache.kind != before.kind:
                self._warn_of_unused_cache(saved.path, before)
        except BaseException:
            session.close()
            raise
        return session

    def _warn_of_unused_cache(self, path: Path, before: CacheConfig) -> None:
        changed = [
            name
            for name in CACHE_FORM
            if name in self.cache and self.cache[name] != getattr(before, name)
        ]
        saved = _as_options({name: getattr(before, name) for name in changed})
        given = _as_options({name: self.cache[name] for name in changed})
        warnings.warn(
            f"{path}: The KV cache was saved with {saved}, and can't be used with {given}. The "
            "next turn reads the conversation again. Leave the option out to keep the cache.",
            SessionWarning,
            stacklevel=3,
        )


def _with_given(settings: Settings, given: Mapping[str, Any]) -> Settings:
    try:
        return replace(settings, **given)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"An option can't be combined with a setting of the saved session: {error.what}",
            remedy="Leave the option out, or start a new session.",
        ) from error


def _as_options(settings: Mapping[str, Any]) -> str:
    return " ".join(
        f"{option_name(name)} {'off' if value is None else value}"
        for name, value in settings.items()
    )
