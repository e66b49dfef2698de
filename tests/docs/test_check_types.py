"""The check of the docs' types itself: it reads what it should, and finds what is wrong."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from kit.paths import ROOT

SPEC = importlib.util.spec_from_file_location("check_types", ROOT / "docs" / "check_types.py")
assert SPEC is not None
assert SPEC.loader is not None
check_types = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check_types)

GOOD = 'import segue\n\nsession = segue.ChatSession(segue.load("a"))\n'
PLANTED = {
    "a wrong type": f"{GOOD}session.respond(5)\n",
    "a misspelt setting": f'{GOOD}session.respond("Hi", temprature=1.0)\n',
    "a misspelt argument": 'import segue\n\nsegue.ChatSession(segue.load("a"), instruction="x")\n',
    "a misspelt attribute": f'{GOOD}session.instruction = "x"\n',
    "no such verb": f"{GOOD}session.answer()\n",
    "a wrong role": f'{GOOD}session.respond("Hi", role="robot")\n',
}


def check(code: str, folder: Path, *, strict: bool = False) -> int:
    module = folder / "module.py"
    module.write_text(code)
    return check_types.check_files([module], folder, strict=strict)


@pytest.mark.proof
@pytest.mark.parametrize("kind", PLANTED)
def test_both_checkers_find_a_planted_error(kind, tmp_path):
    assert check(PLANTED[kind], tmp_path) == 2
    assert check(PLANTED[kind], tmp_path, strict=True) == 2


@pytest.mark.proof
def test_both_checkers_take_what_people_write_first(tmp_path):
    assert check(check_types.FIRST_LINES, tmp_path, strict=True) == 0


def test_every_page_is_a_module_of_its_blocks(tmp_path):
    for page in check_types.PAGES:
        text = check_types.module_of(page, tmp_path).read_text()
        assert text.count("\n") > 5
        assert "segue" in text
    assert [page.name for page in check_types.PAGES] == ["README.md", "quickstart.md"]


def test_every_public_example_is_a_module(tmp_path):
    names = {path.stem for path in check_types.docstring_modules(tmp_path)}
    assert {
        "example_segue_ChatSession",
        "example_segue_ChatSession_respond",
        "example_segue_Message",
        "example_segue_Conversation",
        "example_segue_ToolCall",
        "example_segue_MlxEngine",
        "example_segue_testing_FakeEngine",
    } <= names


def test_make_check_checks_types():
    makefile = (ROOT / "Makefile").read_text()
    assert "check: $(VENV)/.ready-dev types" in makefile
    assert "docs/check_types.py" in makefile
