"""Only the kit's probe looks inside: tests and benchmarks use what has no underscore before it."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from kit.paths import ROOT, TESTS

TREES = {
    path: ast.parse(path.read_text(encoding="utf-8"))
    for folder in (TESTS, ROOT / "benchmarks")
    for path in sorted(folder.rglob("*.py"))
    if path != TESTS / "kit" / "probe.py"
}
# Classes of tests and benchmarks, which may use what they inherit from one another.
CLASSES = {
    node.name: node
    for tree in TREES.values()
    for node in ast.walk(tree)
    if isinstance(node, ast.ClassDef)
}
# What has an underscore and is public all the same: of named tuples, and of the system.
PUBLIC = {"_replace", "_asdict", "_make", "_fields", "_exit"}
BY_NAME = {"getattr", "setattr", "hasattr", "delattr"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


def own_names(scope: ast.ClassDef) -> Iterator[str]:
    """What a class and those that it is made from define, as far as they are ours."""
    for node in ast.walk(scope):
        if isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.attr if isinstance(node, ast.Attribute) else node.id
    for base in scope.bases:
        if isinstance(base, ast.Name) and base.id in CLASSES:
            yield from own_names(CLASSES[base.id])


def looks(node: ast.AST, own: frozenset[str] = frozenset()) -> Iterator[tuple[int, str]]:
    """The lines that use a private name of something else, and the names."""
    if isinstance(node, ast.ClassDef):
        own |= set(own_names(node))
    if isinstance(node, ast.Attribute) and is_private(node.attr):
        mine = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
        if not (mine and node.attr in own):
            yield node.lineno, node.attr
    elif isinstance(node, ast.ImportFrom):
        for name in node.names:
            if is_private(name.name):
                yield node.lineno, name.name
    elif isinstance(node, ast.Call):
        called = getattr(node.func, "id", getattr(node.func, "attr", None))
        for argument in node.args[:2] if called in BY_NAME else ():
            name = argument.value if isinstance(argument, ast.Constant) else None
            # A path with dots ends with the name.
            if isinstance(name, str) and is_private(name := name.rpartition(".")[2]):
                yield node.lineno, name
    for child in ast.iter_child_nodes(node):
        yield from looks(child, own)


def test_nobody_else_looks_inside():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path, tree in TREES.items()
        for line, name in looks(tree)
    ]
    assert not found, "kit/probe.py should have a function for it"


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("session._cache.ledger", ["_cache"]),
        ("from segue.mlx.sampling import _DRAFT_SEED", ["_DRAFT_SEED"]),
        ("monkeypatch.setattr(sampling, '_DRAFT_SEED', 0)", ["_DRAFT_SEED"]),
        ("monkeypatch.setattr('segue.mlx.sampling._DRAFT_SEED', 0)", ["_DRAFT_SEED"]),
        ("hasattr(draft, '_held')", ["_held"]),
        ("class A(FakeContext):\n  def f(self): return self._model", ["_model"]),
        ("class A:\n  def f(self): self._a = 1; return self._a + self.f()._b", ["_b"]),
        ("class A:\n  _a = 1\n  def _f(self): return self._a, self._f()", []),
        ("point._replace(x=1); os._exit(0); self.__class__.__name__", []),
    ],
)
def test_it_would_be_found_out(code, names):
    assert [name for _, name in looks(ast.parse(code))] == names
