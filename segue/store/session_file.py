"""A session as one file, read without trusting it."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from ..config import GenerationConfig
from ..engine import StoredPart, StoredTensor
from ..errors import SessionFileError, SessionFileFormatError, SessionNotFoundError
from ..files.atomic import checked_path
from ..files.json_text import printable, read_object
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
from ..usage import Usage
from .session_layout import (
    CHECKSUM,
    CHUNK_BYTES,
    FORMAT,
    FORMAT_KEY,
    NO_CHECKSUM,
    PREFIX,
    STATES,
    VERSION,
    VERSION_KEY,
    Origin,
    PartDigest,
    header_checksum,
    unusable,
)
from .settings import SessionSettings
from .texts import Conversation, ledger_from_json

LONGEST_TITLE = 60

Told = TypeVar("Told")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SessionFile:
    """What a session file holds, read and checked without an engine.

    Made by `SessionFile.read`; `ChatSession.open` goes on with one.

    Attributes:
        path: The file.
        size: Its size, in bytes.
        conversation: What was said, and under which instructions.
        settings: The session's settings.
        usage: What it has cost.
        origin: What it was saved with.
        ledger: The ids that the KV cache holds, and their text; empty without one.
        damage: What is not as it was written: names of parts (``"cache"``, ``"settings"``, ...; or
            ``"header"``, ``"file"`` for what belongs to none) and how that shows. Such a part has
            its default value.
        parts: The engine's parts, if they were asked for.
        sizes: How many bytes of arrays each of the engine's parts has.
    """

    path: Path
    size: int
    conversation: Conversation
    settings: SessionSettings = field(default_factory=SessionSettings)
    usage: Usage = field(default_factory=Usage)
    origin: Origin = field(default_factory=Origin)
    ledger: TokenLedger = field(default_factory=TokenLedger)
    damage: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, StoredPart] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<SessionFile {str(self.path)!r}: {len(self.history)} messages>"

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], *, check: bool = True, load: bool = False
    ) -> SessionFile:
        """Read a session file; nothing in it is run or looked up as code.

        A damaged cache, or any other part that the conversation can do without, is left out and
        told as `damage`.

        Args:
            path: The file.
            check: Whether to read the cache's arrays through, to compare their checksums.
            load: Whether to keep them, as `parts`; that checks them, too.

        Raises:
            ConfigurationError: The path is none.
            SessionNotFoundError: There is no such file.
            SessionFileFormatError: It is no session file, of a newer version, or its conversation
                is damaged; `readable` tells what is not.
            SessionFileError: It can't be read.
        """
        place = checked_path(path)
        try:
            with open(place, "rb", opener=_opener) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise OSError(errno.EINVAL, "it is no regular file")
                return _Reader(file, place).read(check=check, load=load)
        except FileNotFoundError:
            raise SessionNotFoundError(
                f"There is no session file {place}.",
                remedy="Check its path, or begin a session and save it there.",
            ) from None
        except SessionFileError:
            raise
        except (OSError, ValueError) as error:  # a path with a zero byte is a ValueError
            raise unusable(place, "read", error) from error

    @property
    def instructions(self) -> str | None:
        """The system message."""
        return self.conversation.instructions

    @property
    def history(self) -> tuple[Message, ...]:
        """What was said, oldest first."""
        return self.conversation.history

    @property
    def template_kwargs(self) -> Mapping[str, Any]:
        """Arguments for the chat template."""
        return self.conversation.template_kwargs

    @property
    def generation(self) -> GenerationConfig:
        """The settings of replies, without logits processors."""
        return self.settings.generation

    @property
    def title(self) -> str:
        """The first words that a person said."""
        said = (message.content for message in self.history if message.role is Role.USER)
        line = " ".join(next((text for text in said if text.strip()), "").split())
        return line if len(line) <= LONGEST_TITLE else line[: LONGEST_TITLE - 1] + "…"


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
        settings = self._told("settings", SessionSettings.from_json) or SessionSettings()
        usage = self._told("usage", Usage.from_json) or Usage()
        origin = self._told("origin", Origin.from_json) or Origin()
        ledger = TokenLedger()
        if f"{PREFIX}tokens" in self._metadata:
            ledger = self._told("tokens", ledger_from_json) or TokenLedger()
        parts = {}
        for name in STATES:
            if self._tensors[name] and PREFIX + name not in self._metadata:
                self._damage[name] = "it is missing, but for its arrays"
            elif PREFIX + name in self._metadata and (check or load):
                part = self._part(name, load=load)
                if part is not None:
                    parts[name] = part
        conversation = self._told("conversation", Conversation.from_json)
        if conversation is None:
            raise self._no_conversation(settings, usage, origin, ledger)
        sizes = {
            name: sum(tensor.end - tensor.begin for tensor in tensors.values())
            for name, tensors in self._tensors.items()
            if tensors
        }
        return SessionFile(
            self._path,
            self._size,
            conversation,
            settings,
            usage,
            origin,
            ledger,
            MappingProxyType(self._damage),
            parts if load else {},
            sizes,
        )

    def _read_metadata(self) -> Mapping[str, str]:
        try:
            header = read_header(self._file)
        except (NotSafetensorsError, DamagedFileError) as error:
            # The conversation stands in front of all else, and may be whole all the same.
            metadata = read_metadata(self._file)
            if metadata is None or FORMAT_KEY not in metadata:
                raise SessionFileFormatError(
                    f"{self._path} can't be read as a session: {error}.",
                    remedy="Check that it is one, or restore it from a copy.",
                ) from error
            self._damage["file"] = str(error)
            self._check_version(metadata)
            self._damage.update((name, str(error)) for name in STATES if PREFIX + name in metadata)
            return metadata
        self._check_version(header.metadata)
        self._check_header(header)
        for name, tensor in header.tensors.items():
            part, _, key = name.partition(".")
            if part in self._tensors and key:
                self._tensors[part][key] = tensor
            else:
                self._damage["file"] = f"its array {shown(name)} belongs to no part"
        return header.metadata

    def _check_version(self, metadata: Mapping[str, str]) -> None:
        if metadata.get(FORMAT_KEY) != FORMAT:
            other = "0.segue_version" in metadata or any(key.startswith("1.") for key in metadata)
            raise SessionFileFormatError(
                f"{self._path} is a safetensors file, but no session.",
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
        place = header_checksum(header.raw)
        if place is not None:
            start, end = place
            zeros = header.raw[:start] + NO_CHECKSUM.encode() + header.raw[end:]
            if hashlib.sha256(zeros).hexdigest().encode() == header.raw[start:end]:
                return
        self._damage["header"] = "its checksum is not that of its content"

    def _told(self, name: str, reader: Callable[[str], Told]) -> Told | None:
        """What a part that is text tells; ``None`` if it is damaged."""
        text = self._metadata.get(PREFIX + name)
        try:
            if text is None:
                raise ValueError("it is missing")
            if self._metadata.get(PREFIX + name + CHECKSUM) != PartDigest(text).hexdigest():
                raise ValueError("its checksum is not that of its content")
            return reader(text)
        except ValueError as error:
            self._damage[name] = printable(str(error))
            return None

    def _part(self, name: str, *, load: bool) -> StoredPart | None:
        """A part of the engine's, checked; without its arrays if they are not to be kept."""
        if name in self._damage:
            return None
        text = self._metadata[PREFIX + name]
        digest = PartDigest(text)
        tensors: dict[str, StoredTensor] = {}
        for key, tensor in sorted(self._tensors[name].items()):
            digest.begin(tensor.name, tensor.dtype, tensor.shape)
            self._file.seek(tensor.begin)
            size = tensor.end - tensor.begin
            data = bytearray(size if load else min(size, CHUNK_BYTES))
            for at in range(0, size, len(data) or 1):
                chunk = memoryview(data)[: size - at]
                if self._file.readinto(chunk) != len(chunk):
                    raise OSError(errno.EIO, "it ended while it was being read")
                digest.update(chunk)
            if load:
                tensors[key] = StoredTensor(tensor.dtype, tensor.shape, data)
        try:
            if self._metadata.get(PREFIX + name + CHECKSUM) != digest.hexdigest():
                raise ValueError("its checksum is not that of its content")
            return StoredPart(read_object(text), tensors)
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
            # What its checksum is not of; a person may tell what is wrong in it.
            text = self._metadata.get(f"{PREFIX}conversation", "")
            readable["conversation"] = Conversation.from_json(text)
        told = ", ".join(readable).replace("conversation", "what it may have been") or "nothing"
        return SessionFileFormatError(
            f"The conversation in {self._path} is damaged: {self._damage['conversation']}. Still "
            f"readable: {told}.",
            remedy="Restore the file from a copy; in Python, the error's `readable` has the rest.",
            readable=readable,
        )
