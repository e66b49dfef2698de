"""The house: who may import whom, how large files and folders may be, and what is public.

docs/design.md draws the layers; here is the rule, and the code has to follow it.
"""

from __future__ import annotations

import ast
import inspect
import typing
from pathlib import Path

import pytest

import segue
import segue.engine
import segue.testing

PACKAGE = Path(segue.__file__).parent

# Values build on each other in this order.
VALUE_ORDER = [
    "errors",
    "checks",
    "printable",
    "checkpoints",
    "names",
    "installing",
    "config",
    "recommended",
    "tool_call",
    "messages",
    "conversation",
    "response",
    "usage",
    "ledger",
]
VALUES = set(VALUE_ORDER)
# What each part of the package may import, besides itself and the values. A part is a folder, or a
# module of the top; imports inside functions count as well.
ALLOWED: dict[str, set[str]] = {
    "files": set(),
    "interrupt": set(),
    "tokenizer": set(),
    "engine": {"tokenizer"},
    "prompt_cache": {"engine"},
    "text": {"engine"},
    "drafting": {"engine"},
    "tokenizers": {"engine"},
    "grammar": {"engine", "tokenizer", "text"},
    "masking": {"engine", "tokenizer"},
    "gguf": {"tokenizers"},
    "store": {"engine", "tokenizer", "files", "prompt_cache"},
    "turn": {"engine", "tokenizer", "text", "grammar", "prompt_cache", "interrupt"},
    "session": {"turn", "grammar", "store", "files", "engine", "prompt_cache", "interrupt"},
    "loading": {"engine", "mlx"},
    "mlx": {
        "engine",
        "masking",
        "tokenizer",
        "drafting",
        "tokenizers",
        "gguf",
        "files",
        "interrupt",
    },
    "testing": {"engine", "masking", "files", "interrupt", "mlx"},
    "cli": {"session", "loading", "turn", "store", "files", "engine", "prompt_cache", "interrupt"},
}
PUBLIC_MODULES = (segue, segue.engine, segue.testing)
# ChatSession has all verbs of a session, with their documentation, in one file.
LARGE = {"session.py"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    """The modules of the package that a module imports; not for type checkers alone."""
    package = name_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("segue")}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base += (node.module or "").split(".") if node.module else []
            if base and base[0] == "segue":
                module = ".".join(base)
                for alias in node.names:
                    inner = PACKAGE.parent.joinpath(*base, alias.name)
                    is_module = inner.with_suffix(".py").exists() or inner.is_dir()
                    found.add(f"{module}.{alias.name}" if is_module else module)
    return found


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_imports_only_what_is_below_it(path):
    part = part_of(name_of(path))
    if not part:  # the package's own names
        return
    for module in imported(path):
        target = part_of(module)
        if part in VALUES:
            order = VALUE_ORDER.index
            assert target in VALUES, f"a value imports {module}"
            assert target == part or order(target) < order(part), f"{part} imports {module}"
        else:
            allowed = {part, *VALUES, *ALLOWED[part]}
            # The version, for messages and for --version.
            assert target in allowed or module == "segue", f"{part} imports {module}"


def test_the_core_imports_no_engine_and_the_command_none_either():
    for part, allowed in ALLOWED.items():
        if part not in ("loading", "mlx", "testing"):
            assert "mlx" not in allowed
    for path in modules():
        text = path.read_text(encoding="utf-8")
        if part_of(name_of(path)) not in ("mlx", "testing", "gguf", "tokenizers"):
            roots = {name.split(".")[0] for name in foreign(text)}
            assert not roots & {"mlx", "mlx_lm"}, path
        if part_of(name_of(path)) != "masking":
            assert "llguidance" not in {name.split(".")[0] for name in foreign(text)}, path


def foreign(text: str) -> set[str]:
    tree = ast.parse(text)
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module)
    return names


def test_modules_have_no_circles():
    graph = {name_of(path): imported(path) - {name_of(path)} for path in modules()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name in done or name not in graph:
            return
        for target in graph[name]:
            visit(target, (*trail, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def test_files_and_folders_are_of_a_size_to_read():
    for path in modules():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 450 or path.name in LARGE, f"{path}: {lines} lines"
    for folder in {path.parent for path in modules()} - {PACKAGE}:
        files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= 9, f"{folder} has {len(files)} files"


def exported() -> list[object]:
    return [
        getattr(module, name)
        for module in PUBLIC_MODULES
        for name in getattr(module, "__all__", ())
        if inspect.isclass(getattr(module, name)) or inspect.isfunction(getattr(module, name))
    ]


@pytest.mark.parametrize("module", PUBLIC_MODULES, ids=lambda module: module.__name__)
def test_public_names_say_where_they_are_public(module):
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__module__ == module.__name__, name


def test_type_hints_of_public_names_resolve():
    for value in exported():
        if inspect.isclass(value):
            typing.get_type_hints(value)


def test_a_traceback_names_an_error_as_programs_import_it():
    with pytest.raises(segue.ConfigurationError) as raised:
        segue.GenerationConfig(top_p=2.0)
    name = f"{raised.type.__module__}.{raised.type.__qualname__}"
    assert name == "segue.ConfigurationError"
