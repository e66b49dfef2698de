"""Writes the session files in tests/data/sessions that test_session_versions_mlx.py opens.

They were made once and must open forever: don't make them anew, add others beside them.
"""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "sessions"
sys.path[:0] = [str(Path(__file__).parent.parent)]

import segue.mlx  # noqa: E402, F401 (a good BLAS, before MLX)

# isort: split
from test_session_versions_mlx import KINDS, QUESTIONS, begin  # noqa: E402

for kind in KINDS:
    path = FOLDER / f"mlx-v1-{kind}.segue"
    if not path.exists():
        with begin(kind)[0] as session:
            for question in QUESTIONS:
                session.respond(question)
            session.save(path)
        print(path.name, path.stat().st_size)
