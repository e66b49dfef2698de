"""Checks the types of what users see: the docs' code, the examples, and the public surface.

Each page's Python blocks become one module, as a reader would run them one after the other, and so
does each public docstring's example. mypy and pyright read them, and the examples, by their default
rules, and what newcomers write first (`FIRST_LINES`) by their strict ones: what the docs show must
not need a cast. Then pyright lists what is public and has no type.
"""

from __future__ import annotations

import doctest
import inspect
import json
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from markdown_it import MarkdownIt

import segue
import segue.engine
import segue.testing

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "docs" / "quickstart.md"]


# An example may name what its own module has.
EXAMPLE_NAMES = """
from segue import *
from segue.testing import *
"""
# What people write on their first day.
FIRST_LINES = r"""
import segue
from segue import ChatSession, GenerationConfig, Message

session = ChatSession(segue.load("smollm2"), generation=GenerationConfig(stop=["\n\n"]))
text: str = session.respond("Hello", stop=["\n\n"], temperature=1)
text = session.respond("Hello", role="user")
text = session.respond(Message("user", "Hello"))
text = session.respond([Message("tool", "42", tool_call_id="1")])
again = ChatSession(segue.load(), history=[Message(role="user", content="x")])
with session.stream("Hello", stop="END", logit_bias={3: 1}) as reply:
    for response in reply:
        print(response.text, end="")
drafted = ChatSession(segue.load("a"), draft=segue.load("b"))
recommended = ChatSession(segue.load("a"), generation=segue.load("a").recommended)
opened = ChatSession.open("talk.segue", segue.load("a"))
cached = segue.load_prompt_cache("cache.safetensors", segue.load("a"))
"""


def main(pages: Sequence[Path] = PAGES) -> int:
    """Run all checks; the number of those that failed."""
    with tempfile.TemporaryDirectory(prefix="segue-docs-") as name:
        folder = Path(name)
        files = [module_of(page, folder) for page in pages]
        files += docstring_modules(folder)
        files += sorted((ROOT / "examples").glob("*.py"))
        first = folder / "first_lines.py"
        first.write_text(FIRST_LINES, encoding="utf-8")
        failed = check_files(files, folder) + check_files([first], folder, strict=True)
    return failed + _untyped_names()


def check_files(files: Sequence[Path], folder: Path, *, strict: bool = False) -> int:
    """Have both type checkers read files; the number of those that found something."""
    names = [str(file) for file in files]
    failed = _run("mypy", "--follow-imports=silent", *["--strict"] * strict, *names)
    return failed + _run("basedpyright", *_settings(folder, strict), *names)


def docstring_modules(folder: Path) -> list[Path]:
    """Write the example of each public docstring as a module of its own."""
    modules = []
    for name, text in _public_docstrings():
        examples = doctest.DocTestParser().get_examples(text)
        # What shows an error may be one for type checkers, too.
        source = "".join(example.source for example in examples if example.exc_msg is None)
        if source:
            # In a function: each may call something else _.
            code = f"{EXAMPLE_NAMES}def example() -> None:\n{textwrap.indent(source, '    ')}"
            modules.append(folder / f"example_{name.replace('.', '_')}.py")
            modules[-1].write_text(code, encoding="utf-8")
    return modules


def _public_docstrings() -> Iterator[tuple[str, str]]:
    for module in (segue, segue.engine, segue.testing):
        for name in module.__all__:
            value = getattr(module, name)
            yield f"{module.__name__}.{name}", inspect.getdoc(value) or ""
            for member, each in vars(value).items() if inspect.isclass(value) else ():
                yield f"{module.__name__}.{name}.{member}", inspect.getdoc(each) or ""


def module_of(page: Path, folder: Path) -> Path:
    """Write a page's Python blocks as one module."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    blocks = [token.content for token in tokens if token.type == "fence" and token.info == "python"]
    module = folder / f"{page.stem.lower()}.py"
    module.write_text("\n".join(blocks), encoding="utf-8")
    return module


def _settings(folder: Path, strict: bool) -> list[str]:
    settings = folder / "pyrightconfig.json"
    mode = "strict" if strict else "standard"
    # Examples end in expressions, which print what they are.
    rules = {"typeCheckingMode": mode, "extraPaths": [str(ROOT)], "reportUnusedExpression": False}
    settings.write_text(json.dumps(rules))
    return ["--project", str(settings), "--pythonpath", sys.executable]


def _run(tool: str, *arguments: str) -> int:
    command = [str(Path(sys.executable).with_name(tool)), *arguments]
    return int(subprocess.run(command, cwd=ROOT).returncode != 0)


def _untyped_names() -> int:
    """Report public names of the package that pyright knows no type of."""
    command = [
        str(Path(sys.executable).with_name("basedpyright")),
        *("--verifytypes", "segue", "--ignoreexternal", "--outputjson"),
        *("--pythonpath", sys.executable),
    ]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    symbols = json.loads(found.stdout)["typeCompleteness"]["symbols"]
    unknown = [
        symbol["name"]
        for symbol in symbols
        if symbol["isExported"] and not symbol["isTypeKnown"] and _is_public(symbol["name"])
    ]
    for name in unknown:
        print(f"{name} has a type that is not wholly known.", file=sys.stderr)
    return int(bool(unknown))


def _is_public(name: str) -> bool:
    """Return True for what `segue`, `segue.engine` and `segue.testing` export."""
    return name.split(".")[1] in ("engine", "testing") or name.count(".") == 1


if __name__ == "__main__":
    sys.exit(main())
