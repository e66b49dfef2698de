"""Where saved sessions are, what they are called, and which there are."""

from __future__ import annotations

import os
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import platformdirs

from ...conversation import turns_taken
from ...errors import ConfigurationError, SessionFileError, SessionNotFoundError
from ...files.lock import FileLock
from ...store.session_file import SessionFile
from ...store.session_layout import unusable

ENDING = ".segue"
# With four bytes to a character, a file's name of that length fits any file system.
LONGEST_NAME = 60
PUNCTUATION = " -_."

# Seconds in a unit, the longest first.
UNITS = (
    (365 * 86400, "year"),
    (30 * 86400, "month"),
    (7 * 86400, "week"),
    (86400, "day"),
    (3600, "hour"),
    (60, "minute"),
)


def sessions_folder() -> Path:
    """The folder of named sessions, in the user's data folder; it need not be there."""
    return Path(platformdirs.user_data_dir("segue", appauthor=False)) / "sessions"


def is_path(target: str) -> bool:
    """Whether a person means a path: it has a slash or ends in ``.segue``. Else it is a name."""
    return os.sep in target or target.endswith(ENDING)


def session_path(target: str) -> Path:
    """The file that a person means by a session's name, or by a path.

    Raises:
        ConfigurationError: It can't be a name.
    """
    if not is_path(target):
        return sessions_folder() / (check_name(target) + ENDING)
    return expanded(target)


def expanded(path: str) -> Path:
    """A path as a person types it; one that begins with a user whom nobody knows, as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def check_target(target: str) -> str:
    """A path as it is, or a name checked.

    Raises:
        ConfigurationError: It can't be a name.
    """
    return target if is_path(target) else check_name(target)


def check_name(name: str) -> str:
    """A name, its accents composed, so that it stands for one file.

    Raises:
        ConfigurationError: It can't be a name.
    """
    name = unicodedata.normalize("NFC", name)
    plain = all(
        character in PUNCTUATION or unicodedata.category(character)[0] in "LMN"
        for character in name
    )
    if not plain or not 0 < len(name) <= LONGEST_NAME or name[0] in ". " or name[-1] == " ":
        raise ConfigurationError(
            f"{name[:LONGEST_NAME]!r} can't be the name of a session.",
            remedy=f"Use up to {LONGEST_NAME} letters, digits, spaces, - _ and dots, no dot first; "
            f"or a path, which has a slash or ends in {ENDING}.",
        )
    return name


def existing_path(target: str) -> Path:
    """`session_path`, of a file that is there.

    Raises:
        ConfigurationError: It can't be a name.
        SessionNotFoundError: There is none.
    """
    path = session_path(target)
    if not os.path.lexists(path):
        raise SessionNotFoundError(
            f"There is no session {target!r}.", remedy="segue sessions lists those that there are."
        )
    return path


def lock_session(path: Path) -> FileLock:
    """The lock of a session's file, which need not be there; its folder is made if it is ours.

    Raises:
        SessionLockedError: Another process has it open.
        SessionFileError: Its folder is missing, or can't be written.
    """
    try:
        if path.parent == sessions_folder():
            # What was said is nobody else's business.
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return FileLock(path)
    except (OSError, ValueError) as error:
        raise unusable(path, "written", error) from error


@dataclass(frozen=True, slots=True)
class SavedSession:
    """A session as its file tells it.

    Attributes:
        name: What it is called.
        path: Its file.
        size: The file's size, in bytes.
        saved: When it was written.
        file: What the file holds; ``None`` if it can't be read.
        problem: What is wrong with it; empty if nothing is.
    """

    name: str
    path: Path
    size: int
    saved: datetime
    file: SessionFile | None
    problem: str = ""

    @classmethod
    def look_up(cls, name: str, path: Path) -> SavedSession:
        """The session at a path, its problem told if it can't be read.

        Raises:
            FileNotFoundError: There is none.
        """
        status = path.stat()
        try:
            return cls.of(name, SessionFile.read(path, check=False))
        except SessionNotFoundError:
            raise
        except SessionFileError as error:
            saved = datetime.fromtimestamp(status.st_mtime, UTC)
            return cls(name, path, status.st_size, saved, None, str(error))

    @classmethod
    def of(cls, name: str, file: SessionFile) -> SavedSession:
        """The session that a file holds.

        Raises:
            FileNotFoundError: It is gone, and did not say when it was written.
        """
        saved = file.origin.saved
        if saved is None:
            saved = datetime.fromtimestamp(file.path.stat().st_mtime, UTC)
        elif saved.tzinfo is None:
            saved = saved.replace(tzinfo=UTC)
        damage = ", ".join(f"{part} ({why})" for part, why in file.damage.items())
        problem = f"Damaged: {damage}." if damage else ""
        return cls(name, file.path, file.size, saved, file, problem)

    @property
    def turns(self) -> int:
        """How many turns were taken."""
        return 0 if self.file is None else len(turns_taken(self.file.history))

    @property
    def tokens(self) -> int:
        """How many tokens the conversation has, as its model counts them."""
        if self.file is None or not (self.file.ledger.ids or self.file.history):
            return 0
        turns = self.file.usage.turns
        if self.file.ledger.ids or not turns:
            return len(self.file.ledger.ids)
        return turns[-1].prompt_tokens + turns[-1].generated_tokens

    @property
    def model(self) -> str:
        """What its model was loaded as; empty if that is not known."""
        return "" if self.file is None else self.file.origin.source


def saved_sessions() -> list[SavedSession]:
    """All sessions in the folder, damaged ones included; the newest first.

    Raises:
        SessionFileError: The folder can't be read.
    """
    sessions = []
    folder = sessions_folder()
    for name in session_names():
        try:
            sessions.append(SavedSession.look_up(name, folder / (name + ENDING)))
        except FileNotFoundError:
            continue  # deleted at this moment, or a link that leads nowhere
    return sorted(sessions, key=lambda session: session.saved, reverse=True)


def session_names() -> list[str]:
    """The names of all sessions in the folder, in order.

    Raises:
        SessionFileError: The folder can't be read.
    """
    folder = sessions_folder()
    try:
        files = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unusable(folder, "read", error) from error
    return sorted(
        file.removesuffix(ENDING)
        for file in files
        if file.endswith(ENDING) and not file.startswith(".")
    )


def age(moment: datetime, now: datetime | None = None) -> str:
    """How long ago something was, in its largest unit: ``"3 days"``.

    Args:
        moment: When it was, with its time zone.
        now: The present, if not the clock's.
    """
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    for length, unit in UNITS:
        if seconds >= length:
            return count(int(seconds // length), unit)
    return "moments"


def count(number: int, noun: str) -> str:
    """A number of things: ``"1 turn"``, ``"2 turns"``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
