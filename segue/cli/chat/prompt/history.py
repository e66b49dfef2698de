"""What was typed in earlier chats: a file that may be missing, damaged, or on a full disk.

The file is that of prompt_toolkit's `FileHistory`, which raises whatever goes wrong, into the
middle of a prompt. Here nothing is raised: the first failure is noted, for the chat to show it
once, and from then on what is typed stays in memory. Of a long file only the end is read, and of
what isn't a regular file nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import platformdirs
from prompt_toolkit.history import History

from ....errors import cause

# Some ten thousand messages. More would only make each prompt's start slow.
MOST_BYTES = 2**20


class TypedHistory(History):
    """What was typed in earlier chats, newest last, in a file.

    Args:
        path: The file; made if it is missing.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._broken = False
        self.problem: str | None = None
        """What went wrong with the file, until somebody has taken note."""

    def load_history_strings(self) -> Iterable[str]:
        """Return what is in the file, newest first."""
        try:
            lines = self._tail().decode(errors="replace").split("\n")
        except OSError as error:
            self._note(error)
            return []
        entries: list[str] = []
        entry: list[str] = []
        for line in [*lines, ""]:
            if line.startswith("+"):
                entry.append(line[1:])
            elif entry:
                entries.append("\n".join(entry))
                entry = []
        return reversed(entries)

    def store_string(self, string: str) -> None:
        """Add what was typed to the file, if that can be written."""
        if self._broken:
            return
        lines = [f"\n# {datetime.now()}", *(f"+{line}" for line in string.split("\n")), ""]
        try:
            # What people say is private.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK
            descriptor = os.open(self._path, flags, 0o600)
            with open(descriptor, "ab") as file:
                file.write("\n".join(lines).encode(errors="replace"))
        except OSError as error:
            self._note(error)

    def _tail(self) -> bytes:
        """Return the end of the file, from the beginning of an entry on."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Opening a pipe would wait for someone to write.
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            if not self._path.parent.is_dir():
                raise
            return b""
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError("it is not a regular file")
            if status.st_size <= MOST_BYTES:
                return file.read()
            file.seek(-MOST_BYTES, os.SEEK_END)
            tail = file.read(MOST_BYTES)
        return tail.partition(b"\n# ")[2]

    def _note(self, error: OSError) -> None:
        if not self._broken:
            self._broken = True
            self.problem = (
                f"What you type is not kept for later chats: {self._path}: {cause(error)}."
            )


def typed_history() -> TypedHistory:
    """Return what was typed in earlier chats, in the user's data folder."""
    folder = Path(platformdirs.user_data_dir("segue", appauthor=False))
    return TypedHistory(folder / "prompts")
