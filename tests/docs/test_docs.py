"""The code that README and docs show runs, and the reference is what the docstrings say."""

from __future__ import annotations

import importlib.util
import re

import pytest

from kit.pages import PAGES, code
from kit.paths import ROOT


@pytest.mark.proof
@pytest.mark.smollm2
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_shown_runs(page, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = code(page)
    assert blocks
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page.name, "exec"), namespace)
    if page.name == "README.md":
        assert capsys.readouterr().out == (
            "The capital of France is Paris.\nThe capital of Italy is Rome.\n"
        )


def test_the_readme_shows_six_lines_of_code():
    (block,) = code(PAGES[0])
    assert len([line for line in block.splitlines() if line.strip()]) <= 6


def test_links_lead_somewhere():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")]
    assert len(pages) > 10
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", text):
            if target and "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize(
    ("script", "page"), [("make_reference", "reference"), ("make_modules", "design")]
)
def test_what_is_generated_is_up_to_date(script, page):
    spec = importlib.util.spec_from_file_location(script, ROOT / "docs" / f"{script}.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert made.render() == (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"), (
        "run: make docs"
    )


def test_the_reference_has_every_public_name():
    import segue
    import segue.engine

    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    headings = set(re.findall(r"^#+ `([\w.]+)`", text, re.MULTILINE))
    shown = {heading.rpartition(".")[2] for heading in headings}
    assert set(segue.__all__) - shown == {"__version__"}
    engine = {heading.removeprefix("segue.engine.") for heading in headings}
    assert set(segue.engine.__all__) - engine == {"PrefillProgress"}
