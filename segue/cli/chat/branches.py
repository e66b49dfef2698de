"""The branches of a chat, and the session files that some of them are kept in."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ...conversation import turns_taken
from ...errors import ConfigurationError, SessionNotFoundError
from ...files.lock import FileLock
from ...interrupt import InterruptHold
from ...session import ChatSession
from ..sessions.folder import (
    SavedSession,
    age,
    check_name,
    check_target,
    count,
    existing_path,
    lock_session,
    session_path,
)

FIRST = "main"

Reopen = Callable[[Path], ChatSession]
"""Opens a session's file with the engine and the settings of the chat."""


class Branch:
    """One branch of a chat.

    Args:
        session: The conversation.
        name: What the person calls it.
        path: The file that it is kept in, if it has one.
        lock: Keeps that file for it before it is first written.
        found: What that file told, if it was opened from there.

    Attributes:
        session: The conversation; ``None`` while it is in its file alone.
        found: What its file told when it was last opened from there.
    """

    def __init__(
        self,
        session: ChatSession | None,
        name: str = FIRST,
        path: Path | None = None,
        lock: FileLock | None = None,
        found: SavedSession | None = None,
    ) -> None:
        self.session = session
        self.name = name
        self.path = path
        self.found = found
        self._lock = lock
        self._kept = self._state()

    @property
    def told(self) -> str:
        """What it holds and where, in one line."""
        if self.found is not None:
            parts = f"{count(self.found.turns, 'turn')}, {count(self.found.tokens, 'token')}"
            ago = age(self.found.saved)
            return f"{self.name} goes on: {parts}, saved {ago} ago; saved after every turn."
        if self.path is not None:
            return f"{self.name} begins; it is saved after every turn."
        assert self.session is not None
        return f"{self.name}: {count(len(turns_taken(self.session.history)), 'turn')}."

    def reopen(self, reopen: Reopen) -> None:
        """Bring it back from its file, unless it is here."""
        if self.session is None:
            assert self.path is not None
            self.session = reopen(self.path)
            self._kept = self._state()
            self.found = SavedSession.look_up(self.name, self.path)

    def keep(self) -> None:
        """Bring its file up to date, if it has one that is not.

        Raises:
            SessionFileError: It can't be written; the next call tries again.
        """
        if self.path is not None and self._kept != self._state():
            self.save(self.path)

    def save(self, path: Path) -> None:
        """Save it to a file, which is its own from here on.

        Raises:
            SessionFileError: The file can't be written; nothing changed.
        """
        assert self.session is not None
        self.session.save(path)
        self.path, self._kept = path, self._state()
        self._release()

    def leave(self) -> None:
        """Leave it to its file alone, if it is in one: other processes may have that now."""
        if self.path is not None and self.path.exists():
            self.close()
            self.session = None

    def close(self) -> None:
        """Let other processes have its file."""
        if self.session is not None:
            self.session.close()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _state(self) -> object:
        """What changes whenever there is something to save."""
        session = self.session
        if session is None:
            return None
        return session.history, session.instructions, len(session.usage.turns)


class Branches:
    """The branches of one chat; one of them is where it goes on.

    A branch that has a file is saved whenever it is left, and is open only while it is the current
    one. The others live in memory, and end with the chat.

    Args:
        first: The branch that the chat begins in.
        reopen: Opens the file of another one.

    Attributes:
        current: Where the chat goes on.
    """

    def __init__(self, first: Branch, reopen: Reopen) -> None:
        self.current = first
        self._reopen = reopen
        self._branches = {first.name: first}

    @property
    def session(self) -> ChatSession:
        """The conversation of the current branch."""
        assert self.current.session is not None
        return self.current.session

    @property
    def names(self) -> list[str]:
        """What the branches are called, oldest first."""
        return list(self._branches)

    def keep(self) -> None:
        """Bring the current branch's file up to date, if it has one.

        Raises:
            SessionFileError: It can't be written; the next call tries again.
            KeyboardInterrupt: Ctrl-C came meanwhile; it is written all the same.
        """
        hold = InterruptHold()
        with hold:
            self.current.keep()
        hold.deliver()

    def save(self, target: str) -> None:
        """Save the current branch as a session, under whose name it goes on.

        Args:
            target: Its name, or a path; empty for the file that it has.

        Raises:
            ConfigurationError: That can't be its name, or the name is taken; nothing changed.
            SessionFileError: It can't be written; nothing changed.
        """
        branch = self.current
        if not target and branch.path is None:
            raise ConfigurationError("This chat has no file yet.", remedy="Name it: /save NAME")
        target = check_target(target) if target else branch.name
        path = (
            session_path(target) if target != branch.name else branch.path or session_path(target)
        )
        with InterruptHold():
            if branch.path is not None and os.path.realpath(path) == os.path.realpath(branch.path):
                branch.save(branch.path)
                return
            if target != branch.name:
                self._check_free(target)
            with _new_file(target, path):
                branch.save(path)
            del self._branches[branch.name]
            branch.name = target
            self._branches[target] = branch

    def fork(self, target: str) -> None:
        """Go on in a new branch that begins as the current one is now.

        Args:
            target: Its name; of a session, or a path, if the current branch has a file.

        Raises:
            ConfigurationError: That can't be its name, or the name is taken; nothing changed.
            SessionFileError: A file can't be written; nothing changed.
        """
        if self.current.path is None:
            target = check_name(target)
            self._check_free(target)
            self._go_to(Branch(self.session.fork(), target))
            return
        target = check_target(target)
        self._check_free(target)
        path = session_path(target)
        twin = Branch(self.session.fork(), target)
        with InterruptHold():
            self.current.keep()
            with _new_file(target, path):
                twin.save(path)
        self._go_to(twin)

    def switch(self, target: str) -> None:
        """Go on in another branch; from one that has a file, also in a saved session.

        Raises:
            ConfigurationError: That can't be its name.
            SessionNotFoundError: There is no such branch, or session.
            SessionFileError: The file of either can't be written or read; nothing changed.
        """
        target = check_target(target)
        branch = self._branches.get(target)
        if branch is not None:
            self._go_to(branch)
        elif self.current.path is None:
            raise SessionNotFoundError(
                f"There is no branch {target!r} here, only {', '.join(self.names)}.",
                remedy="/fork NAME makes one, and /open NAME opens a saved session.",
            )
        else:
            self.open(target)

    def open(self, target: str) -> None:
        """Go on in a saved session.

        Args:
            target: Its name, or a path.

        Raises:
            ConfigurationError: That can't be its name, or a branch in memory has it.
            SessionNotFoundError: There is no such session.
            SessionFileError: It can't be read, or another process has it open; nothing changed.
        """
        target = check_target(target)
        path = existing_path(target)
        known = self._branches.get(target)
        if known is not None and known.path is None and known.session and known.session.history:
            raise ConfigurationError(
                f"A branch of this chat is called {target!r}, and is in no file yet.",
                remedy="/save it under another name, or open the session by its path.",
            )
        self._go_to(Branch(None, target, path))

    def close(self) -> None:
        """Save the current branch, if it has a file, and let other processes have all files.

        Raises:
            SessionFileError: It can't be written.
        """
        with InterruptHold():
            try:
                self.current.keep()
            finally:
                for branch in self._branches.values():
                    branch.close()

    def _go_to(self, branch: Branch) -> None:
        left = self.current
        if branch is left:
            return
        with InterruptHold():
            left.keep()
            branch.reopen(self._reopen)
            self._branches[branch.name] = self.current = branch
            left.leave()

    def _check_free(self, name: str) -> None:
        if name in self._branches:
            raise ConfigurationError(
                f"There is a branch {name!r} in this chat already.",
                remedy="Use another name, or /switch to it.",
            )


@contextmanager
def _new_file(target: str, path: Path) -> Iterator[None]:
    """Keep a file's name for us while it is first written.

    Raises:
        ConfigurationError: There is such a file already.
        SessionLockedError: Another process is about to write it.
        SessionFileError: Its folder is missing, or can't be written.
    """
    lock = lock_session(path)
    try:
        if os.path.lexists(path):
            raise ConfigurationError(
                f"There is a session {target!r} already.",
                remedy="Use another name, or /open it.",
            )
        yield
    finally:
        lock.release()
