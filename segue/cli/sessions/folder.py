"""The folder of saved sessions: names, paths, locks, and what each file says about itself."""

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
# With four bytes to a character, a file name of this length fits any file system.
LONGEST_NAME = 60
PUNCTUATION = " -_."


def sessions_folder() -> Path:
    """The folder of named sessions, in the user's data folder; it may not exist yet."""
    return Path(platformdirs.user_data_dir("segue", appauthor=False)) / "sessions"


def is_path(target: str) -> bool:
    """True for a path (with a slash, or ending in ``.segue``), False for a session's name."""
    return os.sep in target or target.endswith(ENDING)


def session_path(target: str) -> Path:
    """The file of a session, by its name or path.

    A file from a Mac may have its accents apart from their letters in its name. It is found by
    either spelling, unless there is a file of just that name.

    Raises:
        ConfigurationError: if `target` is neither a path nor a valid name.
    """
    if is_path(target):
        path = expanded(target)
    else:
        path = sessions_folder() / (check_name(target) + ENDING)
    if path.name.isascii() or os.path.lexists(path):
        return path
    try:
        files = os.listdir(path.parent)
    except (OSError, ValueError):
        return path
    return next(
        (path.with_name(file) for file in files if composed(file) == composed(path.name)), path
    )


def composed(name: str) -> str:
    """A name with its accents as part of their letters, as people type them."""
    return unicodedata.normalize("NFC", name)


def expanded(path: str) -> Path:
    """A path with ``~`` expanded, or unchanged if there is no such user."""
    return Path(os.path.expanduser(path))


def check_target(target: str) -> str:
    """A path unchanged, or a name as `check_name` returns it.

    Raises:
        ConfigurationError: if `target` is neither a path nor a valid name.
    """
    return target if is_path(target) else check_name(target)


def check_name(name: str) -> str:
    """A valid name with its accents composed, so that it names one file.

    Raises:
        ConfigurationError: if the name is not valid.
    """
    name = composed(name)
    plain = all(
        character in PUNCTUATION or unicodedata.category(character)[0] in "LMN"
        for character in name
    )
    if not plain or not 0 < len(name) <= LONGEST_NAME or name[0] in ". " or name[-1] == " ":
        raise ConfigurationError(
            f"A session's name must be 1 to {LONGEST_NAME} letters, digits, spaces, - _ or dots, "
            f"without a dot or space first or a space last, not {name[:LONGEST_NAME]!r}.",
            remedy=f"Use such a name, or a path, which has a slash or ends in {ENDING}.",
        )
    return name


def is_name(name: str) -> bool:
    """True for a valid name."""
    try:
        check_name(name)
    except ConfigurationError:
        return False
    return True


def existing_path(target: str) -> Path:
    """The file of a session that exists.

    Raises:
        ConfigurationError: if `target` is neither a path nor a valid name.
        SessionNotFoundError: if there is no such file.
    """
    path = session_path(target)
    if not os.path.lexists(path):
        here = not is_path(target) and os.path.lexists(target)
        raise SessionNotFoundError(
            f"There is no session {target!r}.",
            remedy=f"For the file in this folder, write ./{target}."
            if here
            else "Run `segue sessions` to list them.",
        )
    return path


def lock_session(path: Path) -> FileLock:
    """The lock of a session's file, which may not exist yet; named sessions get their folder made.

    Raises:
        SessionLockedError: if another process has the file open.
        SessionFileError: if its folder is missing, or can't be written.
    """
    try:
        if path.parent == sessions_folder():
            # Conversations are private.
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return FileLock(path)
    except (OSError, ValueError) as error:
        raise unusable(path, "written", error) from error


@dataclass(frozen=True, slots=True)
class SavedSession:
    """A saved session, as the header of its file describes it."""

    name: str
    path: Path
    size: int
    """The file's size, in bytes."""
    saved: datetime
    """When the file was written."""
    file: SessionFile | None
    """The file without its KV cache; ``None`` if it can't be read."""
    problem: str = ""
    """What is wrong with the file; empty if it is sound."""

    @classmethod
    def look_up(cls, name: str, path: Path) -> SavedSession:
        """The session at a path; if it can't be read, `problem` says why.

        Raises:
            FileNotFoundError: if there is no such file.
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
        """The session in a file.

        Raises:
            FileNotFoundError: if the file was deleted meanwhile, and doesn't record its time.
        """
        saved = file.origin.saved
        if saved is None:
            saved = datetime.fromtimestamp(file.path.stat().st_mtime, UTC)
        damage = ", ".join(f"{section} ({why})" for section, why in file.damage.items())
        problem = f"Damaged: {damage}." if damage else ""
        return cls(name, file.path, file.size, saved, file, problem)

    @property
    def turns(self) -> int:
        """How many turns the conversation has."""
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
        """The name that the model was loaded by; empty if unknown."""
        return "" if self.file is None else self.file.origin.source


def saved_sessions() -> list[SavedSession]:
    """All sessions in the folder, damaged ones included, newest first.

    Raises:
        SessionFileError: if the folder can't be read.
    """
    sessions = []
    for file in _session_files():
        try:
            name = composed(file.name.removesuffix(ENDING))
            sessions.append(SavedSession.look_up(name, file))
        except FileNotFoundError:
            continue  # deleted at this moment, or a link that leads nowhere
    return sorted(sessions, key=lambda session: session.saved, reverse=True)


def session_names() -> list[str]:
    """The names of all sessions in the folder, sorted.

    Raises:
        SessionFileError: if the folder can't be read.
    """
    return sorted({composed(file.name.removesuffix(ENDING)) for file in _session_files()})


def _session_files() -> list[Path]:
    """The files of all sessions in the folder, by name.

    Raises:
        SessionFileError: if the folder can't be read.
    """
    folder = sessions_folder()
    try:
        files = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unusable(folder, "read", error) from error
    return [
        folder / file
        for file in sorted(files)
        if file.endswith(ENDING) and not file.startswith(".")
    ]
