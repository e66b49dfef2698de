"""The examples run, as they are."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kit.paths import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
WITHOUT_A_MODEL = {"own_engine"}


def run(path, folder) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder), "MKL_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_lists_them():
    page = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert EXAMPLES
    for path in EXAMPLES:
        assert f"[{path.name}]({path.name})" in page


def test_an_engine_of_ones_own(tmp_path):
    assert run(ROOT / "examples" / "own_engine.py", tmp_path).startswith("there\nme?\n")


@pytest.mark.proof
@pytest.mark.smollm2
@pytest.mark.parametrize(
    "path",
    [path for path in EXAMPLES if path.stem not in WITHOUT_A_MODEL],
    ids=lambda path: path.stem,
)
def test_an_example_with_the_real_model(path, tmp_path):
    assert run(path, tmp_path)


@pytest.mark.proof
@pytest.mark.smollm2
def test_a_saved_session_is_continued_the_second_time(tmp_path):
    path = ROOT / "examples" / "saved_session.py"
    assert "messages" not in run(path, tmp_path)
    assert run(path, tmp_path).startswith("2 messages, ")
