"""Writes the list of modules in docs/design.md from the summaries of their docstrings."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

TARGET = Path(__file__).with_name("design.md")
PACKAGE = TARGET.parent.parent / "segue"
BEGIN, END = "<!-- modules: written by make docs -->", "<!-- end of modules -->"

# The package's own modules and folders, from the verbs that users see down to the values.
ORDER = [
    *("session.py", "loading.py", "turn", "text", "store", "files", "engine.py", "ledger.py"),
    *("prompt_cache.py", "interrupt.py", "conversation.py", "messages.py", "tool_call.py"),
    *("config.py", "response.py", "usage.py", "errors.py", "names.py", "checks.py"),
    *("mlx", "drafting", "tokenizers", "gguf", "cli", "testing"),
]
# Where summaries begin; one space more than the longest name needs.
COLUMN = 24


def render() -> str:
    """Return docs/design.md with the list as it should be."""
    text = TARGET.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    listed = "\n".join(lines(PACKAGE, 0))
    return f"{before}{BEGIN}\n```text\n{listed}\n```\n{END}{after}"


def lines(path: Path, depth: int) -> Iterator[str]:
    """Yield the lines of a module, or of a folder and everything in it."""
    module = path / "__init__.py" if path.is_dir() else path
    name = "  " * depth + path.name + "/" * path.is_dir()
    yield f"{name:{COLUMN - 1}} {summary(module)}"
    if path.is_dir():
        inner = [
            entry
            for entry in path.iterdir()
            if (entry / "__init__.py").exists() or (entry.suffix == ".py" and entry != module)
        ]
        for entry in sorted(inner, key=rank):
            yield from lines(entry, depth + 1)


def rank(entry: Path) -> tuple[int, bool, str]:
    """Return where a module or folder belongs: files before folders, by name."""
    known = entry.parent == PACKAGE and entry.name in ORDER
    return ORDER.index(entry.name) if known else len(ORDER), entry.is_dir(), entry.name


def summary(module: Path) -> str:
    """Return the first sentence of a module's docstring, without its full stop."""
    text = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8")))
    if not text:
        raise ValueError(f"{module} has no docstring")
    return " ".join(text.partition("\n\n")[0].split()).removesuffix(".").replace("`", "")


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(render() != TARGET.read_text(encoding="utf-8"))
    TARGET.write_text(render(), encoding="utf-8")
