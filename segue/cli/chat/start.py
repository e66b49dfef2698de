"""What a chat begins with."""

from __future__ import annotations

import os
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path

from ...config import PROMPT_LOOKUP, GenerationConfig, SpeculativeDecodingConfig
from ...engine import Engine
from ...errors import SessionFileError, SessionLockedError
from ...files.lock import FileLock
from ...session import ChatSession
from ...store.prompt_cache import load_prompt_cache
from ...store.session_file import SessionFile
from ..sessions.folder import SavedSession, check_target, lock_session, session_path
from .branches import FIRST, Branch, Branches


@dataclass(frozen=True, slots=True)
class Place:
    """The session that a chat goes on with or begins.

    Attributes:
        name: Its name, or its path as it was typed.
        path: Its file.
        saved: What that tells; ``None`` if there is none yet.
        lock: Keeps other processes from it; ``None`` where its folder can't be written.
    """

    name: str
    path: Path
    saved: SavedSession | None
    lock: FileLock | None

    @classmethod
    def take(cls, target: str) -> Place:
        """Look at a session, and keep others from it.

        Raises:
            ConfigurationError: That can't be its name.
            SessionLockedError: Another process has it open.
            SessionFileError: It can't be read; or it is not there, and can't be written.
        """
        target = check_target(target)
        path, lock = session_path(target), None
        try:
            lock = lock_session(path)
        except SessionLockedError:
            raise
        except SessionFileError:
            # What can't be written may be read all the same.
            if not os.path.lexists(path):
                raise
        place = cls(target, path, None, lock)
        if not os.path.lexists(path):
            return place
        try:
            saved = SavedSession.of(target, SessionFile.read(path, check=False))
        except BaseException:
            place.release()
            raise
        return replace(place, saved=saved)

    def release(self) -> None:
        """Let others have it, unless a session has it open."""
        if self.lock is not None:
            self.lock.release()


@dataclass(frozen=True, slots=True)
class Start:
    """What a chat begins with, as the command line names it.

    Attributes:
        system: The system message.
        cache: A prompt cache file.
        draft: ``"prompt-lookup"``, or the name of a model that drafts.
        num_draft_tokens: How many tokens it drafts at a time.
        session: The session to go on with or to begin: its name, or a path.
        given: The settings that were given, by their names; where a session is opened, the others
            stay as they were saved.
    """

    system: str | None = None
    cache: Path | None = None
    draft: str | None = None
    num_draft_tokens: int = 5
    session: str | None = None
    given: AbstractSet[str] = frozenset()

    def place(self) -> Place | None:
        """Where the session is.

        Raises:
            ConfigurationError, SessionFileError: See `Place.take`.
        """
        return None if self.session is None else Place.take(self.session)

    def branches(
        self, engine: Engine, generation: GenerationConfig, place: Place | None
    ) -> Branches:
        """The chat's first branch."""
        speculative = self._speculative()
        given = {name: getattr(generation, name) for name in self.given}
        overrides = {} if speculative is None else {"speculative": speculative}

        def reopen(path: Path) -> ChatSession:
            session = ChatSession.open(path, engine, **overrides)
            try:
                session.generation = replace(session.generation, **given)
            except BaseException:
                session.close()
                raise
            return session

        if place is not None and place.saved is not None:
            session = reopen(place.path)
        else:
            cache = None if self.cache is None else load_prompt_cache(self.cache, engine)
            session = ChatSession(
                engine, generation=generation, speculative=speculative, cache=cache
            )
        if self.system is not None:
            session.instructions = self.system
        if place is None:
            return Branches(Branch(session, FIRST), reopen)
        first = Branch(session, place.name, place.path, place.lock, place.saved)
        return Branches(first, reopen)

    def _speculative(self) -> SpeculativeDecodingConfig | None:
        from ...loading import load

        if self.draft is None:
            return None
        lookup = self.draft.replace("_", "-") == PROMPT_LOOKUP
        draft = PROMPT_LOOKUP if lookup else load(self.draft)
        return SpeculativeDecodingConfig(draft, self.num_draft_tokens)
