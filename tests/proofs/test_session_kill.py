"""A session that is killed while it is saved: the file has what was acknowledged, or the next."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from segue.files.atomic import tag

# 2,000 on demand: SEGUE_KILLS=2000 pytest tests/test_session_kill.py
KILLS = int(os.environ.get("SEGUE_KILLS", "200"))


@pytest.mark.timeout(120 + KILLS)
def test_after_a_kill_at_any_moment_the_file_is_whole(tmp_path):
    path = tmp_path / "talk.segue"
    # None of these is a leftover of this file's writers.
    names = [
        f".segue-{tag(tmp_path / 'other.segue')}-01234567.tmp",
        f".segue-{tag(path)}-notes.tmp",
        f".segue-{tag(path)}-0123456789.tmp",
        "talk.segue.tmp",
        "other.segue",
    ]
    for name in names:
        (tmp_path / name).write_text("mine")
    command = [sys.executable, "-m", "kit.session_killer", str(path), str(KILLS), "5"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stderr
    assert all((tmp_path / name).read_text() == "mine" for name in names)
    # The kills came in all phases: before the rename, after it, and while a file was half written.
    seen = json.loads(done.stdout)
    assert seen["before"] + seen["after"] == KILLS
    assert min(seen.values()) > 0, seen
