"""What the commands of a chat took away, to bring it back.

How it works
    `/undo` takes back the last turn, unless a command changed the conversation since: then it takes
    back that. So each change notes the conversation before it and after it, and is the next to be
    undone whenever the conversation is again as it was after it. `/redo` goes the other way in the
    same manner.

    A conversation costs next to nothing to note. What the model has read of it may take gigabytes,
    so only the newest few notes have a fork of the session, which brings that back, too. Going back
    further, the model reads again what its cache lacks.

What does not work
    - Numbering the changes. Turns come between them, and may be taken back as well; comparing
      conversations needs no account of that.
    - Putting the fork in the session's place. It has no file, and what it costs is counted anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ...conversation import Conversation
from ...errors import HistoryError
from ...session import ChatSession

# Conversations share their messages, but somebody may go on for weeks.
MOST_CHANGES = 100
MOST_FORKS = 3


class Snapshot:
    """A session's conversation at some time, and perhaps what its cache held.

    Args:
        session: The session.
    """

    def __init__(self, session: ChatSession) -> None:
        self.conversation = session.conversation
        self._fork: ChatSession | None = session.fork()

    def drop_fork(self) -> None:
        """Keep the words alone."""
        self._fork = None

    def bring_back(self, session: ChatSession) -> None:
        """Have the session be as it was."""
        if self._fork is None:
            session.conversation = self.conversation
        else:
            session.return_to(self._fork)


@dataclass(frozen=True, slots=True)
class Change:
    """A change from one conversation to another."""

    what: str
    """What made it: ``"/clear"``; empty for a turn."""
    before: Snapshot
    after: Conversation


@dataclass(frozen=True, slots=True)
class Undone:
    """A change that was taken back."""

    change: Change
    again: Snapshot
    """What it had made of the conversation."""
    left: Conversation
    """What was left once it was taken back."""


class Changes:
    """The changes that commands made to one conversation."""

    def __init__(self) -> None:
        self._done: list[Change] = []
        self._undone: list[Undone] = []
        # Those that still have forks, oldest first.
        self._forks: list[Snapshot] = []

    @contextmanager
    def noting(self, session: ChatSession, what: str) -> Iterator[None]:
        """Note what the block changes, if anything, so that `undo` can take it back."""
        before = self._snapshot(session)
        try:
            yield
        finally:
            if session.conversation != before.conversation:
                self._done.append(Change(what, before, session.conversation))
                del self._done[:-MOST_CHANGES]
            else:
                self._forks.remove(before)

    def undo(self, session: ChatSession) -> str | None:
        """Take back the last change of a command, if that is what the conversation ends with.

        Returns:
            What made the change; ``None`` if there is none, and nothing was taken back.
        """
        if not self._done or self._done[-1].after != session.conversation:
            return None
        again = self._snapshot(session)
        change = self._done[-1]
        change.before.bring_back(session)
        self._done.pop()
        self._note_undone(change, again, session)
        return change.what

    @contextmanager
    def noting_undo(self, session: ChatSession) -> Iterator[None]:
        """Note the turns that the block takes back, so that `redo` brings them back."""
        again = self._snapshot(session)
        yield
        self._note_undone(Change("", again, again.conversation), again, session)

    def redo(self, session: ChatSession) -> str:
        """Bring back what was taken back last.

        Returns:
            What had made that change; empty for turns.

        Raises:
            HistoryError: if nothing was, or something was said since; nothing changed.
        """
        if not self._undone or self._undone[-1].left != session.conversation:
            raise HistoryError(
                "Nothing was taken back that could be brought back.",
                remedy="/redo works right after /undo.",
            )
        before = self._snapshot(session)
        undone = self._undone[-1]
        undone.again.bring_back(session)
        self._undone.pop()
        if undone.change.what:
            self._done.append(Change(undone.change.what, before, undone.change.after))
        return undone.change.what

    def drop_forks(self) -> None:
        """Keep the words alone."""
        while self._forks:
            self._forks.pop().drop_fork()

    def _note_undone(self, change: Change, again: Snapshot, session: ChatSession) -> None:
        self._undone.append(Undone(change, again, session.conversation))
        del self._undone[:-MOST_CHANGES]

    def _snapshot(self, session: ChatSession) -> Snapshot:
        snapshot = Snapshot(session)
        self._forks.append(snapshot)
        while len(self._forks) > MOST_FORKS:
            self._forks.pop(0).drop_fork()
        return snapshot
