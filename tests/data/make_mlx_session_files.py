"""Writes the session files in tests/data/sessions that tests/store/test_versions_mlx.py opens.

They were made once and must open forever: don't make them anew, add others beside them.
"""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "sessions"
sys.path[:0] = [str(Path(__file__).parent.parent)]

import segue.mlx  # noqa: E402, F401 (a good BLAS, before MLX)

# isort: split
from kit.old_sessions import MLX_KINDS, MLX_QUESTIONS, begin_mlx  # noqa: E402

for kind in MLX_KINDS:
    path = FOLDER / f"mlx-v1-{kind}.segue"
    if not path.exists():
        with begin_mlx(kind)[0] as session:
            for question in MLX_QUESTIONS:
                session.respond(question)
            session.save(path)
        print(path.name, path.stat().st_size)
