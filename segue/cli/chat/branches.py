"""The branches of a chat, and the session files of those that have one.

How it works
    A chat is in one branch at a time. A branch without a file lives in memory and ends with the
    chat. A branch with a file is saved after every turn, and its session is open, and its file
    locked, only while the chat is in it. So other processes can open the sessions that a chat has
    left, and a branch that is entered again is read from its file, with whatever others added.

    Entering a branch takes three steps, in this order: save the branch that is left, open the one
    that is entered, close the one that is left. If either of the first two fails, the chat is where
    it was and nothing is lost. The steps run under an `InterruptHold`: a Ctrl-C between them would
    leave a file written and its branch not renamed, or two branches open.

    A new file is locked before anything is written to it, and its name is checked under the lock.
    So two processes that choose the same name at the same time can't overwrite each other.

What does not work
    - Checking that a name is free, and locking it afterwards: another process may write the file in
      between.
    - Keeping the sessions of all branches open: other processes would be refused until the chat
      ends, and two sessions in one process would overwrite each other's turns.
    - Saving whenever a session is another object, or after every command: most commands change
      nothing, and a file with a long KV cache takes seconds to write. So a branch compares what a
      command may change (conversation, settings, number of turns) with what was saved last.
"""

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
from ...store.session_file import SessionFile
from ..sessions.folder import (
    SavedSession,
    check_name,
    check_target,
    existing_path,
    lock_session,
    session_path,
)
from ..words import age, count
from .changes import Changes

FIRST = "main"

OpenSession = Callable[[SavedSession], ChatSession]
"""Opens a saved session with the engine and the settings of the chat."""


class Branch:
    """One branch of a chat.

    Args:
        session: The conversation.
        name: The branch's name.
        path: The branch's file, if it has one.
        lock: The lock of a file that is not written yet.
        saved: The saved session that the branch was opened from, if it was.

    Attributes:
        session: The conversation; ``None`` while the chat is in another branch, for a branch with a
            file.
        saved: The saved session that the branch was last opened from.
        changes: What commands took away from the conversation.
    """

    def __init__(
        self,
        session: ChatSession | None,
        name: str = FIRST,
        path: Path | None = None,
        lock: FileLock | None = None,
        saved: SavedSession | None = None,
    ) -> None:
        self.session = session
        self.name = name
        self.path = path
        self.saved = saved
        self.changes = Changes()
        self._lock = lock
        self._saved_state = self._state()

    @property
    def summary(self) -> str:
        """The branch in one line: its name, how long it is, and whether it is saved."""
        if self.saved is not None:
            size = f"{count(self.saved.turns, 'turn')}, {count(self.saved.tokens, 'token')}"
            ago = age(self.saved.saved)
            return f"Resuming {self.name}: {size}, saved {ago} ago; saved after every turn."
        if self.path is not None:
            return f"Starting {self.name}; saved after every turn."
        assert self.session is not None
        return f"{self.name}: {count(len(turns_taken(self.session.history)), 'turn')}."

    @property
    def behind(self) -> bool:
        """True if the branch's file lacks something, because it could not be written."""
        here = self.path is not None and self.session is not None
        return here and self._saved_state != self._state()

    def open(self, open_session: OpenSession) -> None:
        """Open the branch's file, if the session is not in memory."""
        if self.session is None:
            assert self.path is not None
            saved = SavedSession.of(self.name, SessionFile.read(self.path, check=False))
            self.session = open_session(saved)
            self._saved_state = self._state()
            self.saved = saved

    def save_changes(self) -> None:
        """Save the branch, if it has a file and something changed since that was written.

        Raises:
            SessionFileError: if the file can't be written; the next call tries again.
        """
        if self.behind and self.path is not None:
            self.save(self.path)

    def save(self, path: Path) -> None:
        """Save the branch to a file, which is the branch's own from now on.

        Raises:
            SessionFileError: if the file can't be written; nothing changed.
        """
        assert self.session is not None
        self.session.save(path)
        self.path, self._saved_state = path, self._state()
        self._release()

    def leave(self) -> None:
        """Close the session if it is in a file, so that other processes may open it."""
        if self.path is not None and self.path.exists():
            self.changes.drop_forks()
            self.close()
            self.session = None

    def close(self) -> None:
        """Close the session and release its file."""
        if self.session is not None:
            self.session.close()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _state(self) -> object:
        """A value that changes whenever there is something to save."""
        session = self.session
        if session is None:
            return None
        turns = len(session.usage.turns)
        return session.conversation, session.generation, session.on_overflow, turns


class Branches:
    """The branches of one chat, one of which is current.

    Args:
        first: The branch that the chat starts in.
        open_session: Opens the files of others.

    Attributes:
        current: The branch that the chat is in.
    """

    def __init__(self, first: Branch, open_session: OpenSession) -> None:
        self.current = first
        self._open_session = open_session
        self._branches = {first.name: first}

    @property
    def session(self) -> ChatSession:
        """The session of the current branch."""
        assert self.current.session is not None
        return self.current.session

    @property
    def names(self) -> list[str]:
        """The names of the branches, oldest first."""
        return list(self._branches)

    @property
    def unsaved(self) -> list[Branch]:
        """The branches that end with the chat, although something was said in them.

        A branch that has no file counts only if the chat has others: whoever leaves the only one
        sees it.
        """
        several = len(self._branches) > 1
        return [
            branch
            for branch in self._branches.values()
            if branch.session
            and branch.session.history
            and (branch.behind or (several and branch.path is None))
        ]

    def save_changes(self) -> None:
        """Save the current branch, if it has a file and changed.

        Raises:
            SessionFileError: if the file can't be written; the next call tries again.
            KeyboardInterrupt: if Ctrl-C came meanwhile; the file is written all the same.
        """
        hold = InterruptHold()
        with hold:
            self.current.save_changes()
        hold.deliver()

    def save(self, target: str) -> None:
        """Save the current branch as a session, and name the branch after it.

        Args:
            target: The session's name, or a path; empty for the file that the branch has.

        Raises:
            ConfigurationError: if the name is not valid, or taken; nothing changed.
            SessionFileError: if the file can't be written; nothing changed.
        """
        branch = self.current
        if not target and branch.path is None:
            raise ConfigurationError(
                "This chat is not saved yet.", remedy="Give it a name: /save NAME"
            )
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
        """Continue in a new branch, which begins as a copy of the current one.

        Args:
            target: The new branch's name; if the current branch has a file, also a path.

        Raises:
            ConfigurationError: if the name is not valid, or taken; nothing changed.
            SessionFileError: if a file can't be written; nothing changed.
        """
        if self.current.path is None:
            target = check_name(target)
            self._check_free(target)
            self._enter(Branch(self.session.fork(), target))
            return
        target = check_target(target)
        self._check_free(target)
        path = session_path(target)
        twin = Branch(self.session.fork(), target)
        with InterruptHold():
            self.current.save_changes()
            with _new_file(target, path):
                twin.save(path)
        self._enter(twin)

    def switch(self, target: str) -> None:
        """Continue in another branch; from a branch with a file, also in a saved session.

        Raises:
            ConfigurationError: if the name is not valid.
            SessionNotFoundError: if there is no such branch or session.
            SessionFileError: if a file can't be written or read; nothing changed.
        """
        target = check_target(target)
        branch = self._branches.get(target)
        if branch is not None:
            self._enter(branch)
        elif self.current.path is None:
            raise SessionNotFoundError(
                f"This chat has no branch {target!r}, only {', '.join(self.names)}.",
                remedy="/fork NAME makes one, and /open NAME opens a saved session.",
            )
        else:
            self.open(target)

    def open(self, target: str) -> None:
        """Continue in a saved session.

        Args:
            target: The session's name, or a path.

        Raises:
            ConfigurationError: if the name is not valid, or a branch in memory has it.
            SessionNotFoundError: if there is no such session.
            SessionFileError: if the file can't be read, or another process has it open; nothing
                changed.
        """
        target = check_target(target)
        path = existing_path(target)
        known = self._branches.get(target)
        if known is not None and known.path is None and known.session and known.session.history:
            raise ConfigurationError(
                f"{target!r} is also a branch of this chat, and is not saved yet.",
                remedy="/save that one under another name, or open the session by its path.",
            )
        self._enter(Branch(None, target, path))

    def close(self) -> None:
        """Save the current branch, if it has a file, and release the files of all branches.

        Raises:
            SessionFileError: if the file can't be written.
        """
        with InterruptHold():
            try:
                self.current.save_changes()
            finally:
                for branch in self._branches.values():
                    branch.close()

    def _enter(self, branch: Branch) -> None:
        left = self.current
        if branch is left:
            return
        with InterruptHold():
            left.save_changes()
            branch.open(self._open_session)
            self._branches[branch.name] = self.current = branch
            left.leave()

    def _check_free(self, name: str) -> None:
        if name in self._branches:
            raise ConfigurationError(
                f"A branch {name!r} already exists in this chat.",
                remedy="Use another name, or /switch to it.",
            )


@contextmanager
def _new_file(target: str, path: Path) -> Iterator[None]:
    """Keep other processes from a file while it is written for the first time.

    Raises:
        ConfigurationError: if the file exists already.
        SessionLockedError: if another process is about to write it.
        SessionFileError: if its folder is missing, or can't be written.
    """
    lock = lock_session(path)
    try:
        if os.path.lexists(path):
            raise ConfigurationError(
                f"A session {target!r} already exists.",
                remedy="Use another name, or /open it.",
            )
        yield
    finally:
        lock.release()
