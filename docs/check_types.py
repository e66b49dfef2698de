"""Checks the types of what users see: the docs' code, the examples, and the public surface.

Each page's Python blocks become one module, as a reader would run them one after the other. mypy
and pyright read them, and the examples, by their default rules: what the docs show must not need a
cast. Then pyright lists what is public and has no type.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "docs" / "quickstart.md"]


def main() -> int:
    """Run all checks; the number of those that failed."""
    with tempfile.TemporaryDirectory(prefix="segue-docs-") as folder:
        files = [_module(page, Path(folder)) for page in PAGES]
        files += sorted((ROOT / "examples").glob("*.py"))
        names = [str(file) for file in files]
        failed = _run("mypy", "--follow-imports=silent", *names)
        failed += _run("basedpyright", *_settings(Path(folder)), *names)
    return failed + _untyped_names()


def _module(page: Path, folder: Path) -> Path:
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    blocks = [token.content for token in tokens if token.type == "fence" and token.info == "python"]
    module = folder / f"{page.stem.lower()}.py"
    module.write_text("\n".join(blocks), encoding="utf-8")
    return module


def _settings(folder: Path) -> list[str]:
    settings = folder / "pyrightconfig.json"
    settings.write_text(json.dumps({"typeCheckingMode": "standard", "extraPaths": [str(ROOT)]}))
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
