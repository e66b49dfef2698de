"""How a session file is laid out, and how one is written: docs/session-files.md has it in full."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ..engine import StoredPart, StoredTensor
from ..errors import SessionFileError, cause
from ..files.atomic import replacing, write_all
from ..files.json_text import read_object
from ..files.safetensors import LENGTH_BYTES, LONGEST_HEADER
from .texts import Conversation

VERSION = 1
FORMAT = "session"
PREFIX = "segue."
FORMAT_KEY, VERSION_KEY, HEADER_KEY = f"{PREFIX}format", f"{PREFIX}version", f"{PREFIX}header"
# The ending of the key under which a part's checksum stands.
CHECKSUM = ".sha256"
# SHA-256 in hexadecimal; the header's is taken with these in its own place.
NO_CHECKSUM = "0" * 64
# Parts that are text alone, and those of the engine, in the order in which they are written.
TEXTS = ("conversation", "settings", "usage", "origin", "tokens")
STATES = ("cache", "prefix", "marks", "draft")
CHUNK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Origin:
    """What a session was saved with.

    Attributes:
        source: What its model was loaded as.
        fingerprint: The engine's; a KV cache serves no other.
        saved: When it was written.
    """

    source: str = ""
    fingerprint: str = ""
    saved: datetime | None = None

    def to_json(self) -> str:
        """As JSON."""
        saved = None if self.saved is None else self.saved.isoformat()
        # Names of files may hold what is no text, and escapes tell that, too.
        return json.dumps({"source": self.source, "fingerprint": self.fingerprint, "saved": saved})

    @classmethod
    def from_json(cls, text: str) -> Origin:
        """The origin that a text tells.

        Raises:
            ValueError: It tells none.
        """
        entry = read_object(text)
        source, fingerprint = entry.get("source", ""), entry.get("fingerprint", "")
        saved = entry.get("saved")
        if not isinstance(source, str) or not isinstance(fingerprint, str):
            raise ValueError("it is of a wrong type")
        return cls(source, fingerprint, None if saved is None else _moment(saved))


def _moment(text: object) -> datetime:
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
        if moment is not None and moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise ValueError("the time it names is none")


def write_session_file(
    path: Path,
    conversation: Conversation,
    texts: Mapping[str, str],
    parts: Mapping[str, StoredPart],
) -> None:
    """Write a session file, so that a kill at any moment leaves the old file or the new one.

    Args:
        path: The file, replaced if there is one.
        conversation: What was said.
        texts: The other parts that are text, as JSON: of `TEXTS`.
        parts: The engine's parts: of `STATES`.

    Raises:
        SessionFileError: The conversation can't be expressed, or the file can't be written.
    """
    try:
        texts = {"conversation": conversation.to_json(), **texts}
        header, tensors = _header(texts, parts)
        with replacing(path) as temporary:
            descriptor = os.open(temporary, os.O_WRONLY)
            try:
                write_all(descriptor, header)
                for tensor in tensors:
                    write_all(descriptor, tensor.data)
            finally:
                os.close(descriptor)
    except (OSError, ValueError) as error:
        raise unusable(path, "written", error) from error


def _header(
    texts: Mapping[str, str], parts: Mapping[str, StoredPart]
) -> tuple[bytes, list[StoredTensor]]:
    """The file up to its first array, and the arrays in their order."""
    metadata = {FORMAT_KEY: FORMAT, VERSION_KEY: str(VERSION), HEADER_KEY: NO_CHECKSUM}
    entries: dict[str, object] = {"__metadata__": metadata}
    tensors: list[StoredTensor] = []
    for name in TEXTS:
        if name in texts:
            metadata[PREFIX + name] = texts[name]
            metadata[PREFIX + name + CHECKSUM] = PartDigest(texts[name]).hexdigest()
    at = 0
    for name in STATES:
        if name not in parts:
            continue
        text = metadata[PREFIX + name] = json.dumps(parts[name].values, ensure_ascii=False)
        digest = PartDigest(text)
        for key, tensor in sorted(parts[name].tensors.items()):
            full = f"{name}.{key}"
            size = memoryview(tensor.data).nbytes
            digest.begin(full, tensor.dtype, tensor.shape)
            digest.update(tensor.data)
            entries[full] = {
                "dtype": tensor.dtype,
                "shape": tensor.shape,
                "data_offsets": (at, at + size),
            }
            tensors.append(tensor)
            at += size
        metadata[PREFIX + name + CHECKSUM] = digest.hexdigest()
    raw = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    # Arrays begin at multiples of eight, as the format asks for.
    raw += b" " * (-len(raw) % 8)
    if len(raw) > LONGEST_HEADER:
        raise ValueError(f"its texts have {len(raw):,} bytes, more than a file's header can hold")
    raw = len(raw).to_bytes(LENGTH_BYTES, "little") + raw
    place = header_checksum(raw)
    assert place is not None
    checksum = hashlib.sha256(raw).hexdigest().encode()
    return raw[: place[0]] + checksum + raw[place[1] :], tensors


def header_checksum(raw: bytes) -> tuple[int, int] | None:
    """Where in a header its own checksum stands."""
    # Quotes inside JSON's strings are escaped, so this can't stand inside one.
    found = re.search(rb'"' + re.escape(HEADER_KEY.encode()) + rb'":"([0-9a-f]{64})"', raw)
    return None if found is None else found.span(1)


class PartDigest:
    """A part's checksum: SHA-256 of its text, and of its arrays with their descriptions.

    Args:
        text: The part's text.
    """

    def __init__(self, text: str) -> None:
        self._hash = hashlib.sha256(text.encode(errors="surrogatepass"))

    def begin(self, name: str, dtype: str, shape: Iterable[int]) -> None:
        """An array comes next; arrays go by their names' order."""
        self._hash.update(f"\n{name} {dtype} {list(shape)}\n".encode(errors="surrogatepass"))

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Some of its data."""
        self._hash.update(data)

    def hexdigest(self) -> str:
        """The checksum, in hexadecimal."""
        return self._hash.hexdigest()


def unusable(path: Path, what: str, error: Exception) -> SessionFileError:
    """The error that says that a file could not be ``"read"`` or ``"written"``."""
    return SessionFileError(
        f"The session file {path} could not be {what}: {cause(error)}.",
        remedy="Check its path and permissions."
        if what == "read"
        else "Check that its folder exists, can be written and has room.",
    )
