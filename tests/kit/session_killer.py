"""Kills processes that save a session, and looks at what they leave, for test_session_kill.py.

Nothing but versions that a process has told through a pipe, after its save had returned, counts as
acknowledged. MLX is not imported and there are no threads, so that processes can be forked.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

from kit.probe import count_prewarmed, engine_of, forget_turns, held
from kit.sessions import check_ledger, say
from segue import ChatSession, GenerationConfig, SessionFile
from segue.engine import StoredState, StoredTensor
from segue.testing import FakeEngine
from segue.testing.fake import FakeContext

PAYLOAD = 2_000_000
OPENED = 0
LONGEST_HISTORY = 8


class LoadedContext(FakeContext):
    """Its cache has some weight, all of which tells the version."""

    def stored(self):
        stored = dict(super().stored())
        cache = stored["cache"]
        weight = StoredTensor("U8", (PAYLOAD,), bytes([self.engine.version % 256]) * PAYLOAD)
        stored["cache"] = StoredState(cache.values, {**cache.tensors, "weight": weight})
        return stored


class LoadedEngine(FakeEngine):
    def __init__(self):
        super().__init__(say)
        self.version = 0

    def context(self, cache):
        context = super().context(cache)
        context.__class__ = LoadedContext
        context.engine = self
        return context


def save(session: ChatSession, path: Path, version: int) -> None:
    """Every part of the file tells its version."""
    engine_of(session).version = version
    session.instructions = f"version {version}"
    session.generation = GenerationConfig(max_tokens=3, seed=version)
    while len(session.history) > LONGEST_HISTORY:
        session.undo()
    session.respond(f"to version {version}")
    forget_turns(session, but=2)
    count_prewarmed(session, version)
    session.save(path)


def look(path: Path) -> int:
    """The version in the file, which must be whole, and that of each of its parts."""
    file = SessionFile.read(path, load=True)
    assert file.damage == {}
    version = file.settings.generation.seed
    assert file.instructions == f"version {version}"
    assert file.history[-2].content == f"to version {version}"
    assert file.usage.prewarmed_tokens == version
    assert file.stored["cache"].tensors["weight"].data.count(version % 256) == PAYLOAD
    # The lock of who was killed is free.
    with ChatSession.open(path, LoadedEngine()) as session:
        check_ledger(session)
        assert held(session) == file.ledger.ids
        assert f"version {version}" in file.ledger.text
    return version


def save_until_killed(path: Path, version: int, pipe: int) -> None:
    parent = os.getppid()
    session = ChatSession.open(path, LoadedEngine())
    os.write(pipe, OPENED.to_bytes(8, "little"))
    while os.getppid() == parent:
        version += 1
        save(session, path, version)
        os.write(pipe, version.to_bytes(8, "little"))


def wait(path: Path, after: float, at_rename: bool) -> None:
    """Wait some time, and then perhaps for a file to take the other's place."""
    time.sleep(after)
    before, give_up = path.stat().st_ino, time.monotonic() + 1
    while at_rename and path.stat().st_ino == before and time.monotonic() < give_up:
        pass


def kill_one(path: Path, version: int, after: float, at_rename: bool) -> int:
    """Have a process save, and kill it; the version it has acknowledged last."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reading)
            save_until_killed(path, version, writing)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    os.close(writing)
    with open(reading, "rb", buffering=0) as pipe:
        told = pipe.read(8)
        wait(path, after, at_rename)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "it failed by itself"
        while number := pipe.read(8):
            told = number
    return max(version, int.from_bytes(told, "little"))


def temporary_files(path: Path) -> set[str]:
    return {name for name in os.listdir(path.parent) if name.endswith(".tmp")}


def main(path: Path, kills: int, seed: int) -> None:
    dice = random.Random(seed)
    bystanders = set(os.listdir(path.parent))
    session = ChatSession(LoadedEngine())
    times = []
    for version in range(1, 6):
        begun = time.perf_counter()
        save(session, path, version)
        times.append(time.perf_counter() - begun)
    session.close()
    span, seen = 2 * sorted(times)[2], {"before": 0, "after": 0, "temporary": 0}
    for number in range(kills):
        # It is a short while between the rename and its acknowledgement: some are aimed at it.
        told = kill_one(path, version, dice.uniform(0, span), number % 8 == 0)
        version = look(path)
        assert version in (told, told + 1), f"{told} was acknowledged, and {version} is there"
        left = temporary_files(path) - bystanders
        # Each save has removed what the killed one before it left.
        assert len(left) <= 1, left
        seen["before" if version == told else "after"] += 1
        seen["temporary"] += len(left)
    with ChatSession.open(path, LoadedEngine()) as session:
        save(session, path, version + 1)
    assert set(os.listdir(path.parent)) == {path.name, *bystanders}
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
