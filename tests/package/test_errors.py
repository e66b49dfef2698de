"""Every error that the package raises: distinct, and with a remedy."""

from __future__ import annotations

import ast
import copy
import pickle
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

import segue
from segue import errors

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


@pytest.mark.parametrize("error", examples(), ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "through", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy]
)
def test_an_error_can_be_pickled_and_copied(error, through):
    again = through(error)
    assert type(again) is type(error)
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))


def test_an_error_without_more_can_be_pickled():
    plain = segue.SessionFileFormatError("Bad.", remedy="Copy it.")
    assert pickle.loads(pickle.dumps(plain)).readable == {}


def failing(number: int) -> None:
    segue.GenerationConfig(top_p=number)


def test_an_error_in_a_worker_reaches_whoever_waits():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        job = pool.submit(failing, 3)
        with pytest.raises(segue.ConfigurationError, match="top_p must be from 0 to 1, not 3"):
            job.result(timeout=300)
        with pytest.raises(segue.ConfigurationError):
            pool.submit(failing, 4).result(timeout=300)
