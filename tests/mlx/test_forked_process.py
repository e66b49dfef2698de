"""A process that was forked from one that uses MLX: no hang, and its parent is left alone."""

from __future__ import annotations

import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context

import pytest

import segue
from kit.models import tiny_llama, toy_engine
from kit.oracle import EditingTokenizer, wrap
from segue import ChatSession, GenerationConfig
from segue.loading import diagnose
from segue.testing import FakeEngine

SHORT = GenerationConfig(max_tokens=4)
TIMEOUT = 60
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def in_a_child(work: Callable[[], object]) -> object:
    """What the work returns in a forked process, or raises there."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there are other threads
        child = os.fork()
    if not child:
        try:
            try:
                result: object = work()
            except Exception as error:
                result = error
            os.write(writing, pickle.dumps(result))
        finally:
            os._exit(0)
    os.close(writing)
    try:
        if not select.select([reading], [], [], TIMEOUT)[0]:
            os.kill(child, signal.SIGKILL)
            raise AssertionError("the child hangs")
        data = b"".join(iter(lambda: os.read(reading, 2**16), b""))
        assert data, "the child died"
        return pickle.loads(data)
    finally:
        os.waitpid(child, 0)
        os.close(reading)


@pytest.fixture
def engine() -> segue.MlxEngine:
    return wrap(tiny_llama(len(EditingTokenizer())))


@pytest.fixture
def session(engine: segue.MlxEngine) -> ChatSession:
    session = ChatSession(engine, generation=SHORT)
    session.respond("Hello")
    return session


USES: dict[str, Callable[[ChatSession, segue.MlxEngine], object]] = {
    "respond": lambda session, engine: session.respond("And now?"),
    "stream": lambda session, engine: session.stream("And now?"),
    "retry": lambda session, engine: session.retry(),
    "prewarm": lambda session, engine: session.clear() or session.prewarm(),
    "preview": lambda session, engine: session.preview("And now?"),
    "fork": lambda session, engine: session.fork(),
    "save": lambda session, engine: session.save("talk.segue"),
    "save without a cache": lambda session, engine: session.save("talk.segue", kv=False),
    "save_cache": lambda session, engine: session.save_cache("talk.safetensors"),
    "fingerprint": lambda session, engine: engine.fingerprint,
    "a new session": lambda session, engine: ChatSession(engine),
    "a quantized session": lambda session, engine: ChatSession(
        engine, cache=segue.CacheConfig(kv_bits=8, kv_group_size=32)
    ),
    "a new engine": lambda session, engine: segue.MlxEngine(engine.model, engine.tokenizer),
    "load": lambda session, engine: segue.load("smollm2"),
    "diagnose": lambda session, engine: diagnose(),
}


@pytest.mark.parametrize("use", USES)
def test_what_needs_the_model_is_a_typed_error(session, engine, use, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    history = session.history
    error = in_a_child(lambda: USES[use](session, engine))
    assert type(error) is segue.ForkedProcessError, error
    assert f"process {os.getpid()}" in error.what
    assert "spawn" in error.remedy
    assert not list(tmp_path.iterdir())
    assert session.history == history
    session.respond("And here?")


def test_reading_a_prompt_cache(session, engine, tmp_path):
    path = tmp_path / "talk.safetensors"
    session.save_cache(path)
    error = in_a_child(lambda: segue.load_prompt_cache(path, engine))
    assert type(error) is segue.ForkedProcessError


def test_a_refused_turn_changes_nothing(session):
    def work() -> object:
        before = session.history, session.cached_tokens
        with pytest.raises(segue.ForkedProcessError):
            session.respond("And now?")
        return before == (session.history, session.cached_tokens)

    assert in_a_child(work) is True


def test_the_history_can_be_read_and_cut(session):
    asked, said = session.history

    def work() -> object:
        taken = session.undo()
        session.clear()
        session.close()
        return taken, session.history, session.cached_tokens, session.usage.generated_tokens > 0

    assert in_a_child(work) == ((asked, said), (), 0, True)
    assert session.history == (asked, said)
    assert session.cached_tokens


ENDS: dict[str, Callable[[segue.Reply], object]] = {
    "closed": lambda reply: reply.close(),
    "collected": lambda reply: None,
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize("draft", [None, "prompt-lookup", "a model"])
def test_a_live_reply(end, steps, draft):
    model = wrap(tiny_llama(len(EditingTokenizer())))
    drafter = wrap(tiny_llama(len(EditingTokenizer()))) if draft == "a model" else draft
    config = GenerationConfig(max_tokens=30, logit_bias={257: -1e6})
    session = ChatSession(model, draft=drafter, generation=config)
    reply = session.stream("hello hello hello")
    said = "".join(next(reply).text for _ in range(steps))

    def work() -> object:
        nonlocal reply
        ENDS[end](reply)
        del reply
        answer = session.history[-1]
        return answer.text.startswith(said), session.cached_tokens

    assert in_a_child(work) == (True, 0)
    assert len(reply.tokens) == steps
    for _ in reply:
        pass
    assert len(reply.tokens) == 30
    assert session.cached_tokens > 30


def test_a_live_reply_can_not_go_on(session):
    reply = session.stream("And now?", logit_bias={257: -1e6})
    next(reply)

    def work() -> object:
        with pytest.raises(segue.ForkedProcessError):
            next(reply)
        return reply.ended, len(session.history)

    assert in_a_child(work) == (True, 4)
    assert [response.text for response in reply]


def test_the_parents_file_stays_the_parents(session, tmp_path):
    path = tmp_path / "talk.segue"
    session.save(path)
    before = sorted(file.name for file in tmp_path.iterdir()), path.read_bytes()

    def work() -> object:
        nonlocal session
        session.close()
        del session
        try:
            ChatSession.open(path, FakeEngine())
        except segue.SessionLockedError:
            return "locked"
        return "open"

    assert in_a_child(work) == "locked"
    assert (sorted(file.name for file in tmp_path.iterdir()), path.read_bytes()) == before
    session.save(path)


@contextmanager
def generating(session: ChatSession) -> Iterator[None]:
    """Another thread of this process generates meanwhile."""
    enough = threading.Event()

    def run() -> None:
        for _ in session.stream("Hello", max_tokens=100_000, logit_bias={257: -1e6}):
            if enough.is_set():
                return

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()


def test_a_fork_while_another_thread_generates(session):
    other = session.fork()
    with generating(other):
        for _ in range(5):
            error = in_a_child(lambda: session.respond("And now?"))
            assert type(error) is segue.ForkedProcessError


SHARED: list[ChatSession] = []


def respond_in_a_worker(_: int) -> str:
    return SHARED[0].respond("Hi")


def test_a_pool_of_forked_processes(session):
    SHARED[:] = [session]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with get_context("fork").Pool(2) as pool, pytest.raises(segue.ForkedProcessError):
            pool.apply_async(respond_in_a_worker, (1,)).get(TIMEOUT)


PROGRAM = """
import os, sys
import segue.mlx
from kit.models import toy_engine
from segue import ChatSession
WORK
"""

FORKED = """
session = ChatSession(toy_engine())
session.respond("Hello", max_tokens=3)
reply = session.stream("And now?", max_tokens=3)
next(reply)
session.fork()
child = os.fork()
if not child:
    {work}
    sys.exit(3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), session.respond("Then?") is not None)
"""


def run(work: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM.replace("WORK", work)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("work", ["pass", "del session, reply", "session.close()"])
def test_a_child_may_end_as_any_program_does(work):
    ended = run(FORKED.format(work=work))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "3 True\n", "")


def test_a_child_may_load_what_its_parent_only_imported():
    ended = run(
        "import segue.mlx.engine\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    print(ChatSession(toy_engine()).respond('Hello', max_tokens=3) is not None)\n"
        "    sys.exit(0)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert ended.stdout == "True\n0\n", ended.stderr


def test_a_spawned_process_is_a_process_like_any_other():
    with get_context("spawn").Pool(1) as pool:
        assert pool.apply_async(spawned).get(TIMEOUT) is None


def spawned() -> None:
    ChatSession(toy_engine()).respond("Hello", max_tokens=3)


def test_a_fake_engine_works_in_any_process():
    session = ChatSession(FakeEngine(["Hello!"]))
    assert in_a_child(lambda: session.respond("Hi")) == "Hello!"
