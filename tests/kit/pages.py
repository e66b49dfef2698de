"""The project's pages, and the code that they show."""

from __future__ import annotations

from pathlib import Path

from markdown_it import MarkdownIt

from kit.paths import ROOT

SESSION_FILES = ROOT / "docs" / "session-files.md"
PAGES = [ROOT / "README.md", ROOT / "docs" / "quickstart.md"]


def code(page: Path) -> list[str]:
    """The Python blocks of a page."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    return [token.content for token in tokens if token.type == "fence" and token.info == "python"]
