"""Every error that the package raises: distinct, and with a remedy."""

from __future__ import annotations

import ast
import copy
import errno
import pickle
import warnings
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

import segue
from segue import errors
from segue.testing import FakeEngine

PACKAGE = Path(segue.__file__).parent
# In the module's order: every process that collects these tests must list them alike.
TREE = [
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.SegueError)
]


def raised() -> list[tuple[str, ast.Call]]:
    """Every place in the package that makes one of our errors."""
    return [
        (f"{file.relative_to(PACKAGE)}:{node.lineno}", node)
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in TREE
    ]


def test_there_are_many_and_each_says_what_to_do():
    places = raised()
    assert len(places) > 40
    for place, call in places:
        assert "remedy" in {keyword.arg for keyword in call.keywords}, place


def test_no_two_say_the_same():
    # What an engine lacks is named by the feature, after the engine.
    messages = Counter(
        ast.unparse(call.args[1 if len(call.args) > 1 else 0]) for _, call in raised()
    )
    assert [message for message, count in messages.items() if count > 1] == []


def test_an_error_shows_what_happened_and_what_to_do():
    error = segue.ConfigurationError("This is wrong.", remedy="Do that.")
    assert str(error) == "This is wrong. Do that."
    assert (error.what, error.remedy) == ("This is wrong.", "Do that.")


def test_errors_are_also_of_the_kinds_that_python_programs_expect():
    assert issubclass(segue.ConfigurationError, ValueError)
    assert issubclass(segue.GenerationError, RuntimeError)
    assert issubclass(segue.ModelNotFoundError, FileNotFoundError)
    assert issubclass(segue.BackendMissingError, ImportError)
    missing = segue.BackendMissingError("Not here.", remedy="Install it.")
    assert str(missing) == missing.msg == "Not here. Install it."
    gone = segue.ModelNotFoundError("Not here.", remedy="Look there.")
    assert str(gone) == "Not here. Look there."


def examples() -> list[errors.SegueError]:
    """One of each kind, as the package makes them."""
    made = {
        "UnsupportedFeatureError": segue.UnsupportedFeatureError("bare", "drafts", remedy="None."),
        "SessionFileFormatError": segue.SessionFileFormatError(
            "Bad.", remedy="Copy it.", readable={"usage": segue.Usage()}
        ),
    }
    return [made.get(name) or getattr(errors, name)("Bad.", remedy="Mend it.") for name in TREE]


WARNINGS = [
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, Warning)
]


def kept(error: BaseException) -> tuple[object, ...]:
    """All that an error says."""
    python = {name: getattr(error, name, None) for name in errors.OF_PYTHON}
    fields = {
        name: dict(value) if isinstance(value, Mapping) else value
        for name, value in vars(error).items()
    }
    return type(error), str(error), error.args, python, fields


@pytest.mark.parametrize("error", examples(), ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "through",
    [
        *(
            lambda error, protocol=protocol: pickle.loads(pickle.dumps(error, protocol))
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
        ),
        copy.copy,
        copy.deepcopy,
    ],
)
def test_an_error_can_be_pickled_and_copied(error, through):
    error.add_note("In chapter 3.")
    again = through(error)
    assert kept(again) == kept(error)
    assert kept(through(again)) == kept(error)


@pytest.mark.parametrize("name", WARNINGS)
def test_a_warning_can_be_pickled_and_copied(name):
    warning = getattr(errors, name)("Beware.")
    for again in (pickle.loads(pickle.dumps(warning)), copy.deepcopy(warning)):
        assert (type(again), again.args) == (type(warning), ("Beware.",))


def test_an_error_without_more_can_be_pickled():
    plain = segue.SessionFileFormatError("Bad.", remedy="Copy it.")
    assert pickle.loads(pickle.dumps(plain)).readable == {}


@pytest.mark.parametrize("kind", [segue.ModelNotFoundError, segue.SessionNotFoundError])
def test_a_missing_file_is_one_as_python_says_it(kind):
    error = kind("It is gone.", remedy="Look there.")
    assert error.errno == errno.ENOENT
    assert errors.cause(error) == "It is gone"


class ToolFailed(segue.GenerationError):
    """A program's own, with a constructor of its own."""

    def __init__(self, tool: str, attempts: int) -> None:
        super().__init__(f"{tool} failed.", remedy="Look at its log.")
        self.tool, self.attempts = tool, attempts


class NoSuchTool(segue.ModelNotFoundError):
    """One that has no more than its name."""


@pytest.mark.parametrize("error", [ToolFailed("sky", 3), NoSuchTool("No.", remedy="Yes.")])
def test_errors_of_a_program_can_be_pickled(error):
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert kept(again) == kept(error)


def failing(number: int) -> None:
    try:
        segue.GenerationConfig(top_p=number)
    except segue.ConfigurationError as cause:
        error = [*examples(), ToolFailed("sky", 3)][number - 2]
        raise error from cause


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_an_error_in_a_worker_reaches_whoever_waits(method):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forks beside threads
        expected = [*examples(), ToolFailed("sky", 3)]
        with ProcessPoolExecutor(1, mp_context=get_context(method)) as executor:
            jobs = [executor.submit(failing, number + 2) for number in range(len(expected))]
            found = [job.exception(timeout=300) for job in jobs]
        assert [kept(error)[:4] for error in found] == [kept(error)[:4] for error in expected]
        with get_context(method).Pool(1) as pool:
            results = [pool.apply_async(failing, (number + 2,)) for number in range(len(expected))]
            for error, result in zip(expected, results, strict=True):
                with pytest.raises(type(error)) as caught:
                    result.get(timeout=300)
                assert str(caught.value) == str(error)


def results() -> list[object]:
    """What a program sends from one process to another."""
    tools = [{"name": "sky"}]
    session = segue.ChatSession(
        FakeEngine(["Hello there!"] * 3),
        instructions="Be brief.",
        template_kwargs={"tools": tools},
        generation=segue.GenerationConfig(stop=["END"], logit_bias={3: 1.0}, seed=3),
    )
    responses = list(session.stream("Hi"))
    return [
        *responses,
        session.usage,
        *session.usage.turns,
        *session.history,
        session.conversation,
        session.generation,
        session.cache,
        session.preview("And now?"),
        segue.ToolCall("sky", {"at": [1, 2]}),
        segue.Message.tool("42", tool_call_id="1"),
        *segue.Role,
        *segue.FinishReason,
        *segue.TextKind,
    ]


@pytest.mark.parametrize("value", results(), ids=lambda value: type(value).__name__)
def test_results_can_be_pickled_and_copied(value):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(value, protocol)) == value
    assert copy.copy(value) == copy.deepcopy(value) == value


def test_what_a_file_holds_can_be_pickled(tmp_path):
    with segue.ChatSession(FakeEngine(["Hello!"])) as session:
        session.respond("Hi")
        session.save(tmp_path / "talk.segue")
    file = segue.SessionFile.read(tmp_path / "talk.segue")
    again = pickle.loads(pickle.dumps(file))
    assert (again.conversation, again.usage, again.ledger) == (
        file.conversation,
        file.usage,
        file.ledger,
    )
    assert again.damage == copy.deepcopy(file).damage == file.damage


@pytest.mark.parametrize("through", [pickle.dumps, copy.copy, copy.deepcopy])
def test_what_can_not_be_copied_says_so(through):
    session = segue.ChatSession(FakeEngine(["Hello!"]))
    reply = session.stream("Hi")
    for value in (session, reply):
        with pytest.raises(segue.ConfigurationError, match="can't be copied or pickled"):
            through(value)
    assert [response.text for response in reply]
