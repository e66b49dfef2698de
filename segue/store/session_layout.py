"""The layout of a session file, and writing one; docs/session-files.md has it in full."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ..conversation import Conversation
from ..engine import StoredState, StoredTensor
from ..errors import SessionFileError, cause
from ..files.atomic import replacing, write_all
from ..files.json_text import read_object
from ..files.path import writing_remedy
from ..files.safetensors import LENGTH_BYTES, LONGEST_HEADER
from .texts import conversation_to_json

VERSION = 1
FORMAT = "session"
PREFIX = "segue."
FORMAT_KEY, VERSION_KEY, HEADER_KEY = f"{PREFIX}format", f"{PREFIX}version", f"{PREFIX}header"
# The ending of the key of a section's checksum.
CHECKSUM = ".sha256"
# SHA-256 in hexadecimal; the header's is taken with these in its own position.
NO_CHECKSUM = "0" * 64
# Sections that are text alone, and those of the engine, in the order in which they are written.
TEXTS = ("conversation", "settings", "usage", "origin", "tokens")
STATES = ("cache", "prefix", "checkpoints", "draft")
# Sections that have another name on disk.
ON_DISK = {"checkpoints": "marks"}
CHUNK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Origin:
    """The model that a session was saved with, and the time."""

    source: str = ""
    """The name that the model was loaded by."""
    fingerprint: str = ""
    """The engine's fingerprint; a KV cache serves no other."""
    saved: datetime | None = None
    """When the file was written."""

    def to_json(self) -> str:
        """Return the origin as JSON."""
        saved = None if self.saved is None else self.saved.isoformat()
        # File names may hold what isn't text, and escapes express that, too.
        return json.dumps({"source": self.source, "fingerprint": self.fingerprint, "saved": saved})

    @classmethod
    def from_json(cls, text: str) -> Origin:
        """Read an origin.

        Raises:
            ValueError: if the text isn't one.
        """
        entry = read_object(text)
        source, fingerprint = entry.get("source", ""), entry.get("fingerprint", "")
        saved = entry.get("saved")
        if not isinstance(source, str) or not isinstance(fingerprint, str):
            raise ValueError("it has a wrong type")
        return cls(source, fingerprint, None if saved is None else _moment(saved))


def _moment(text: object) -> datetime:
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
        if moment is not None and moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise ValueError("its time can't be read")


def write_session_file(
    path: Path,
    conversation: Conversation,
    texts: Mapping[str, str],
    stored: Mapping[str, StoredState],
) -> None:
    """Write a session file, so that a kill at any moment leaves the old file or the new one.

    Args:
        path: The file, replaced if there is one.
        conversation: What was said.
        texts: The other sections that are text, as JSON: of `TEXTS`.
        stored: The engine's sections: of `STATES`.

    Raises:
        SessionFileError: if the conversation can't be expressed, or the file can't be written.
    """
    try:
        texts = {"conversation": conversation_to_json(conversation), **texts}
        header, tensors = _header(texts, stored)
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
    texts: Mapping[str, str], stored: Mapping[str, StoredState]
) -> tuple[bytes, list[StoredTensor]]:
    """Return the file up to its first array, and the arrays in their order."""
    metadata = {FORMAT_KEY: FORMAT, VERSION_KEY: str(VERSION), HEADER_KEY: NO_CHECKSUM}
    entries: dict[str, object] = {"__metadata__": metadata}
    tensors: list[StoredTensor] = []
    for name in TEXTS:
        if name in texts:
            metadata[PREFIX + name] = texts[name]
            metadata[PREFIX + name + CHECKSUM] = SectionDigest(texts[name]).hexdigest()
    offset = 0
    for section in STATES:
        if section not in stored:
            continue
        name = ON_DISK.get(section, section)
        text = metadata[PREFIX + name] = json.dumps(stored[section].values, ensure_ascii=False)
        digest = SectionDigest(text)
        for key, tensor in sorted(stored[section].tensors.items()):
            full = f"{name}.{key}"
            size = memoryview(tensor.data).nbytes
            digest.begin(full, tensor.dtype, tensor.shape)
            digest.update(tensor.data)
            entries[full] = {
                "dtype": tensor.dtype,
                "shape": tensor.shape,
                "data_offsets": (offset, offset + size),
            }
            tensors.append(tensor)
            offset += size
        metadata[PREFIX + name + CHECKSUM] = digest.hexdigest()
    raw = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    # Arrays begin at multiples of eight, as the format asks for.
    raw += b" " * (-len(raw) % 8)
    if len(raw) > LONGEST_HEADER:
        raise ValueError(f"its texts have {len(raw):,} bytes, more than a file's header can hold")
    raw = len(raw).to_bytes(LENGTH_BYTES, "little") + raw
    span = header_checksum(raw)
    assert span is not None
    checksum = hashlib.sha256(raw).hexdigest().encode()
    return raw[: span[0]] + checksum + raw[span[1] :], tensors


def header_checksum(raw: bytes) -> tuple[int, int] | None:
    """Return the start and end of a header's own checksum in it."""
    # Quotes inside JSON's strings are escaped, so this can't be inside one.
    found = re.search(rb'"' + re.escape(HEADER_KEY.encode()) + rb'":"([0-9a-f]{64})"', raw)
    return None if found is None else found.span(1)


class SectionDigest:
    """A section's checksum: SHA-256 of its text, and of its arrays with their descriptions.

    Args:
        text: The section's text.
    """

    def __init__(self, text: str) -> None:
        self._hash = hashlib.sha256(text.encode(errors="surrogatepass"))

    def begin(self, name: str, dtype: str, shape: Iterable[int]) -> None:
        """Begin an array; arrays go by their names' order."""
        self._hash.update(f"\n{name} {dtype} {list(shape)}\n".encode(errors="surrogatepass"))

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Add some of its data."""
        self._hash.update(data)

    def hexdigest(self) -> str:
        """Return the checksum, in hexadecimal."""
        return self._hash.hexdigest()


def unusable(path: Path, what: str, error: Exception) -> SessionFileError:
    """Return the error for a file that could not be ``"read"`` or ``"written"``."""
    return SessionFileError(
        f"The session file {path} could not be {what}: {cause(error)}.",
        remedy="Check its path and permissions." if what == "read" else writing_remedy(error),
    )
