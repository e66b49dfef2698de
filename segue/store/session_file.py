"""A session as one file, read without trusting it.

The header is checked before anything else is read; each section has a checksum of its own, so that
damage costs that section alone. Only the conversation must be sound: a file whose arrays are cut
off still gives it. A section that is damaged is left out, and `SessionFile.damage` has the reason.
"""

# No postponed annotations here: type hints must resolve when a class says it is `segue`'s.

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

from ..conversation import Conversation
from ..engine import StoredState, StoredTensor
from ..errors import SessionFileError, SessionFileFormatError, SessionNotFoundError
from ..files.json_text import read_object
from ..files.path import checked_path
from ..files.safetensors import (
    DamagedFileError,
    Header,
    NotSafetensorsError,
    TensorInfo,
    read_header,
    read_metadata,
    shown,
)
from ..ledger import TokenLedger
from ..messages import Message, Role
from ..printable import printable_line
from ..usage import Usage
from .session_layout import (
    CHECKSUM,
    CHUNK_BYTES,
    FORMAT,
    FORMAT_KEY,
    NO_CHECKSUM,
    ON_DISK,
    PREFIX,
    STATES,
    VERSION,
    VERSION_KEY,
    Origin,
    SectionDigest,
    header_checksum,
    unusable,
)
from .settings import SessionSettings
from .texts import conversation_from_json, ledger_from_json, usage_from_json

LONGEST_TITLE = 60

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SessionFile:
    """The content of a session file, read and checked without an engine.

    Made by `SessionFile.read`; `ChatSession.open` continues one.

    Examples:
        >>> import segue
        >>> from segue.testing import FakeEngine
        >>> session = segue.ChatSession(FakeEngine(["Hello!"]))
        >>> _ = session.respond("Hi there")
        >>> session.save("talk.segue")
        >>> segue.SessionFile.read("talk.segue").title
        'Hi there'
    """

    path: Path
    """The file."""
    size: int
    """Its size, in bytes."""
    conversation: Conversation
    """The conversation: instructions, messages, template arguments."""
    settings: SessionSettings = field(default_factory=SessionSettings)
    """The session's settings."""
    usage: Usage = field(default_factory=Usage)
    """The cost of the session."""
    origin: Origin = field(default_factory=Origin)
    """The model that it was saved with, and the time."""
    ledger: TokenLedger = field(default_factory=TokenLedger)
    """The ids that the KV cache holds, and their text; empty without one."""
    damage: Mapping[str, str] = field(default_factory=dict)
    """The sections that are not as they were written (``"cache"``, ``"settings"``, ...; or
    ``"header"``, ``"file"`` for what belongs to none), and the reasons. Such a section has its
    default value."""
    stored: Mapping[str, StoredState] = field(default_factory=dict)
    """The engine's sections, if they were asked for."""

    def __repr__(self) -> str:
        return f"<SessionFile {str(self.path)!r}: {len(self.history)} messages>"

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], *, check: bool = True, load: bool = False
    ) -> "SessionFile":
        """Read a session file; nothing in it is run or looked up as code.

        A damaged cache, or any other section that the conversation can do without, is left out and
        reported as `damage`.

        Args:
            path: The file.
            check: Whether to read the cache's arrays through, to compare their checksums.
            load: Whether to keep them, as `stored`; that checks them, too.

        Raises:
            ConfigurationError: if the path isn't one.
            SessionNotFoundError: if there is no such file.
            SessionFileFormatError: if it isn't a session file, is of a newer version, or its
                conversation is damaged; `readable` has what isn't.
            SessionFileError: if it can't be read.
        """
        path = checked_path(path)
        try:
            with open(path, "rb", opener=_opener) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise OSError(errno.EINVAL, "it is not a regular file")
                return _Reader(file, path).read(check=check, load=load)
        except FileNotFoundError:
            raise SessionNotFoundError(
                f"There is no session file {path}.",
                remedy="Check its path, or begin a session and save it there.",
            ) from None
        except SessionFileError:
            raise
        except (OSError, ValueError) as error:  # a path with a zero byte is a ValueError
            raise unusable(path, "read", error) from error

    @property
    def instructions(self) -> str | None:
        """The system message."""
        return self.conversation.instructions

    @property
    def history(self) -> tuple[Message, ...]:
        """The messages, oldest first."""
        return self.conversation.messages

    @property
    def template_kwargs(self) -> Mapping[str, Any]:
        """Arguments for the chat template."""
        return self.conversation.template_kwargs

    @property
    def date(self) -> datetime | None:
        """The time that the conversation's template writes, if it writes the date.

        Files of 0.1 don't have it: then the time of the last save, by this machine's clock, which
        is the best guess at what its prompts had. ``None`` if that is unknown, too.
        """
        saved = self.origin.saved
        return self.conversation.date or (None if saved is None else saved.astimezone())

    @property
    def title(self) -> str:
        """The first words that the user said."""
        texts = (message.text for message in self.history if message.role is Role.USER)
        line = " ".join(next((text for text in texts if text.strip()), "").split())
        return line if len(line) <= LONGEST_TITLE else line[: LONGEST_TITLE - 1] + "…"


_SECTIONS = {ON_DISK.get(name, name): name for name in STATES}


def _opener(path: str, flags: int) -> int:
    # Opening a pipe would wait for someone to write.
    return os.open(path, flags | os.O_NONBLOCK)


class _Reader:
    """Reads one open file."""

    def __init__(self, file: BufferedReader, path: Path) -> None:
        self._file = file
        self._path = path
        self._size = os.fstat(file.fileno()).st_size
        self._damage: dict[str, str] = {}
        self._tensors: dict[str, dict[str, TensorInfo]] = {name: {} for name in STATES}
        self._metadata = self._read_metadata()

    def read(self, *, check: bool, load: bool) -> SessionFile:
        settings = self._text("settings", SessionSettings.from_json) or SessionSettings()
        usage = self._text("usage", usage_from_json) or Usage()
        origin = self._text("origin", Origin.from_json) or Origin()
        ledger = TokenLedger()
        if f"{PREFIX}tokens" in self._metadata:
            ledger = self._text("tokens", ledger_from_json) or TokenLedger()
        stored = {}
        for name in STATES:
            key = PREFIX + ON_DISK.get(name, name)
            if self._tensors[name] and key not in self._metadata:
                self._damage[name] = "it is missing, but for its arrays"
            elif key in self._metadata and (check or load):
                section = self._section(name, load=load)
                if section is not None:
                    stored[name] = section
        conversation = self._text("conversation", conversation_from_json)
        if conversation is None:
            raise self._no_conversation(settings, usage, origin, ledger)
        return SessionFile(
            path=self._path,
            size=self._size,
            conversation=conversation,
            settings=settings,
            usage=usage,
            origin=origin,
            ledger=ledger,
            damage=dict(self._damage),
            stored=stored if load else {},
        )

    def _read_metadata(self) -> Mapping[str, str]:
        try:
            header = read_header(self._file)
        except (NotSafetensorsError, DamagedFileError) as error:
            # The conversation comes before everything else, and may be whole.
            metadata = read_metadata(self._file)
            if metadata is None or FORMAT_KEY not in metadata:
                raise SessionFileFormatError(
                    f"{self._path} can't be read as a session: {error}.",
                    remedy="Check that it is one, or restore it from a copy.",
                ) from error
            self._damage["file"] = str(error)
            self._check_version(metadata)
            for name in STATES:
                if PREFIX + ON_DISK.get(name, name) in metadata:
                    self._damage[name] = str(error)
            return metadata
        self._check_version(header.metadata)
        self._check_header(header)
        for name, tensor in header.tensors.items():
            on_disk, _, key = name.partition(".")
            section = _SECTIONS.get(on_disk)
            if section is not None and key:
                self._tensors[section][key] = tensor
            else:
                self._damage["file"] = f"its array {shown(name)} belongs to no section"
        return header.metadata

    def _check_version(self, metadata: Mapping[str, str]) -> None:
        if metadata.get(FORMAT_KEY) != FORMAT:
            other = "0.segue_version" in metadata or any(key.startswith("1.") for key in metadata)
            raise SessionFileFormatError(
                f"{self._path} is a safetensors file, but not a session.",
                remedy="Open it with segue.load_prompt_cache."
                if other
                else "Pass a file that ChatSession.save wrote.",
            )
        version = metadata.get(VERSION_KEY, "")
        if version.isdecimal() and int(version[:9]) > VERSION:
            raise SessionFileFormatError(
                f"{self._path} is a session file of version {version[:9]}, newer than this Segue "
                f"reads ({VERSION}).",
                remedy="Update Segue.",
            )
        if version != str(VERSION):
            raise SessionFileFormatError(
                f"{self._path} is damaged: the version of its format can't be read.",
                remedy="Restore it from a copy.",
            )

    def _check_header(self, header: Header) -> None:
        span = header_checksum(header.raw)
        if span is not None:
            start, end = span
            zeros = header.raw[:start] + NO_CHECKSUM.encode() + header.raw[end:]
            if hashlib.sha256(zeros).hexdigest().encode() == header.raw[start:end]:
                return
        self._damage["header"] = "its checksum does not match its content"

    def _text(self, name: str, reader: Callable[[str], Value]) -> Value | None:
        """Return a section that is text; ``None`` if it is damaged."""
        text = self._metadata.get(PREFIX + name)
        try:
            if text is None:
                raise ValueError("it is missing")
            if self._metadata.get(PREFIX + name + CHECKSUM) != SectionDigest(text).hexdigest():
                raise ValueError("its checksum does not match its content")
            return reader(text)
        except ValueError as error:
            self._damage[name] = printable_line(str(error), 200)
            return None

    def _section(self, name: str, *, load: bool) -> StoredState | None:
        """Return a section of the engine's, checked; without its arrays unless they are loaded."""
        if name in self._damage:
            return None
        key = PREFIX + ON_DISK.get(name, name)
        text = self._metadata[key]
        digest = SectionDigest(text)
        tensors: dict[str, StoredTensor] = {}
        for tensor_name, tensor in sorted(self._tensors[name].items()):
            digest.begin(tensor.name, tensor.dtype, tensor.shape)
            self._file.seek(tensor.begin)
            size = tensor.end - tensor.begin
            data = bytearray(size if load else min(size, CHUNK_BYTES))
            for offset in range(0, size, len(data) or 1):
                chunk = memoryview(data)[: size - offset]
                if self._file.readinto(chunk) != len(chunk):
                    raise OSError(errno.EIO, "it ended while it was being read")
                digest.update(chunk)
            if load:
                tensors[tensor_name] = StoredTensor(tensor.dtype, tensor.shape, data)
        try:
            if self._metadata.get(key + CHECKSUM) != digest.hexdigest():
                raise ValueError("its checksum does not match its content")
            return StoredState(read_object(text), tensors)
        except ValueError as error:
            self._damage[name] = str(error)
            return None

    def _no_conversation(
        self, settings: SessionSettings, usage: Usage, origin: Origin, ledger: TokenLedger
    ) -> SessionFileFormatError:
        readable: dict[str, object] = {}
        for name, value in (("settings", settings), ("usage", usage), ("origin", origin)):
            if name not in self._damage:
                readable[name] = value
        if ledger.text:
            readable["tokens"] = ledger.text
        with suppress(ValueError):
            # Its checksum does not match; a person may see what is wrong in it.
            text = self._metadata.get(f"{PREFIX}conversation", "")
            readable["conversation"] = conversation_from_json(text)
        listed = ", ".join(readable).replace("conversation", "what it may have been") or "nothing"
        return SessionFileFormatError(
            f"The conversation in {self._path} is damaged: {self._damage['conversation']}. Still "
            f"readable: {listed}.",
            remedy="Restore the file from a copy; in Python, the error's `readable` has the rest.",
            readable=readable,
        )
