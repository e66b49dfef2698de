"""The examples in docstrings run, and what users call has one."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import types
import warnings
from pathlib import Path

import pytest

import segue
from segue.testing import FakeEngine

PACKAGE = Path(segue.__file__).parent
# These are made by others, are lists of names, or hold numbers.
WITHOUT = {
    "FinishReason",
    "GenerationResponse",
    "MlxEngine",
    "PromptCache",
    "Role",
    "TextKind",
    "TurnPreview",
    "TurnUsage",
    "MissReason",
}


def documented(path: Path) -> list[tuple[str, str]]:
    """The docstrings of a module, by the names of what they describe."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    return [(getattr(node, "name", path.stem), ast.get_docstring(node) or "") for node in nodes]


EXAMPLES = [
    pytest.param(path, text, id=f"{path.relative_to(PACKAGE).with_suffix('')}:{name}")
    for path in sorted(PACKAGE.rglob("*.py"))
    for name, text in documented(path)
    if ">>>" in text
]


@pytest.mark.parametrize(("path", "text"), EXAMPLES)
def test_an_example_runs(path, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    module = importlib.import_module(".".join(part for part in parts if part != "__init__"))
    example = doctest.DocTestParser().get_doctest(text, dict(vars(module)), path.stem, None, 0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    report: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runner.run(example, out=report.append)
    assert runner.failures == 0, "".join(report)


def test_public_classes_and_functions_have_an_example():
    for name in set(segue.__all__) - WITHOUT - {"__version__", "load"}:
        value = getattr(segue, name)
        if isinstance(value, type) and issubclass(value, Exception):
            continue
        assert ">>>" in inspect.getdoc(value), name


def test_verbs_of_a_session_have_an_example():
    verbs = [
        getattr(segue.ChatSession, name)
        for name, value in vars(segue.ChatSession).items()
        if isinstance(value, (types.FunctionType, classmethod)) and name[0] != "_"
    ]
    assert {verb.__name__ for verb in verbs} >= {"respond", "stream", "save", "open"}
    for verb in verbs:
        assert ">>>" in inspect.getdoc(verb), verb.__name__


def test_the_fakes_have_an_example():
    assert ">>>" in inspect.getdoc(FakeEngine)
