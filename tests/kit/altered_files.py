"""Session files taken apart, changed, and put together again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kit.probe import engine_of, held
from kit.sessions import check_ledger, rendered, say
from segue import ChatSession, GenerationConfig, SessionFile
from segue.testing import FakeEngine

TEXTS = ("conversation", "settings", "usage", "origin", "tokens")
STATES = ("cache", "prefix", "marks", "draft")
HEADER = "segue.header"


@dataclass
class Parts:
    """A file's metadata, its tensors' entries, and their data.

    `seal` is written from docs/session-files.md, not with the code under test.
    """

    metadata: dict[str, Any]
    entries: dict[str, Any]
    data: bytearray
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, raw: bytes) -> Parts:
        start = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:start])
        return cls(header.pop("__metadata__"), header, bytearray(raw[start:]))

    def told(self, part: str) -> Any:
        return json.loads(self.metadata[f"segue.{part}"])

    def tell(self, part: str, value: Any, *, sealed: bool = True) -> None:
        """Replace a part's text by this, or by its JSON; its checksum, too, unless told not to."""
        text = value if isinstance(value, str) else json.dumps(value)
        self.metadata[f"segue.{part}"] = text
        if sealed:
            self.seal([part])

    def add(self, name: str, dtype: str, shape: list[int], data: bytes) -> None:
        begin = len(self.data)
        self.data += data
        self.entries[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [begin, begin + len(data)],
        }

    def seal(self, parts: Iterable[str] = (*TEXTS, *STATES)) -> None:
        """Make the checksums of parts right again."""
        for part in parts:
            if f"segue.{part}" not in self.metadata:
                continue
            digest = hashlib.sha256(self.metadata[f"segue.{part}"].encode(errors="surrogatepass"))
            for name in sorted(self.entries):
                if part in STATES and name.startswith(part + "."):
                    entry = self.entries[name]
                    begin, end = entry["data_offsets"]
                    digest.update(f"\n{name} {entry['dtype']} {entry['shape']}\n".encode())
                    digest.update(self.data[begin:end])
            self.metadata[f"segue.{part}.sha256"] = digest.hexdigest()

    def join(self, *, sealed: bool = True) -> bytes:
        """The file; its header's checksum right, unless told not to."""
        if sealed and HEADER in self.metadata:
            self.metadata[HEADER] = "0" * 64
        raw = join({"__metadata__": self.metadata, **self.entries, **self.extra}, b"")
        if sealed and HEADER in self.metadata:
            checksum = hashlib.sha256(raw).hexdigest()
            raw = raw.replace(
                f'"{HEADER}":"{"0" * 64}"'.encode(), f'"{HEADER}":"{checksum}"'.encode()
            )
        return raw + self.data


def join(header: Any, data: bytes) -> bytes:
    """A file of this header: an object, or its text."""
    if not isinstance(header, (str, bytes)):
        header = json.dumps(header, ensure_ascii=False, separators=(",", ":"))
    text = header if isinstance(header, bytes) else header.encode(errors="surrogatepass")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def make(path: Path, *, trimmable: bool = False, questions: Iterable[str] = ("hi",)) -> bytes:
    """A small session's file: all text parts, and a cache (with marks, if it can't be trimmed)."""
    engine = FakeEngine(say, trimmable=trimmable)
    with ChatSession(
        engine, instructions="Be é.", generation=GenerationConfig(max_tokens=3)
    ) as session:
        for question in questions:
            session.respond(question)
        session.save(path)
    return path.read_bytes()


def goes_on(session: ChatSession, whole: SessionFile) -> None:
    """It has the conversation, and says next what the model says to a fresh prefill of it."""
    assert session.history == whole.history
    check_ledger(session)
    session.generation = whole.settings.generation
    said = session.respond("and then?")
    check_ledger(session)
    prompt = rendered(session, session.history[:-1], prompt=True)
    ids = held(session)
    assert engine_of(session).tokenizer.decode(ids) == prompt + said
    # The fake's next token depends on all ids in front of it; each letter of a reply is one.
    for at in range(len(ids) - len(said), len(ids)):
        assert ids[at] == say(ids[:at])
    if not session.usage.turns[-1].cached_tokens:
        assert list(ids[: -len(said)]) == engine_of(session).tokenizer.encode(prompt)
    session.close()


def parts(change):
    """A case that changes a file's parts; the header's checksum is made right."""

    def make_case(raw: bytes) -> bytes:
        file = Parts.of(raw)
        change(file)
        return file.join()

    return make_case


def meta(**changes):
    def change(file: Parts) -> None:
        for key, value in changes.items():
            name = "segue." + key
            if value is None:
                file.metadata.pop(name, None)
            else:
                file.metadata[name] = value

    return parts(change)


def told(part: str, change):
    """A part whose text is another, with the right checksum."""

    def put(file: Parts) -> None:
        entry = file.told(part)
        changed = change(entry)
        file.tell(part, entry if changed is None else changed)

    return parts(put)


def conversation(change):
    """A conversation that is not one, with the right checksum."""
    return told("conversation", change)


def header(change):
    """Another header, as text."""

    def make_case(raw: bytes) -> bytes:
        start = 8 + int.from_bytes(raw[:8], "little")
        return join(change(raw[8:start].decode().rstrip()), raw[start:])

    return make_case


def message(**changes):
    return conversation(lambda entry: entry["history"][0].update(changes))
