"""The BLAS that MLX uses on a Linux CPU, each case in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="macOS brings its own BLAS")

SPEED = """
import time
import mlx.core as mx
a = mx.random.normal((768, 768))
mx.eval(a @ a)
def once():
    started = time.perf_counter()
    mx.eval(a @ a)
    return time.perf_counter() - started
print(2 * 768**3 / min(once() for _ in range(5)) / 1e9)
"""
WRAP = """
import segue
from segue.testing import ToyTokenizer
from segue.testing.mlx import CachingModel
def engine():
    return segue.MlxEngine(CachingModel(lambda ids: 1, 300), ToyTokenizer())
"""


def run(code: str, **environment: str) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_a_good_blas_is_in_place_before_mlx_is_imported():
    fast, _ = run("import segue.mlx\n" + SPEED)
    slow, _ = run(SPEED)
    assert float(fast) > 3 * float(slow)


def test_with_one_in_place_nothing_is_said():
    assert run("import segue.mlx\n" + WRAP + "engine()")[1] == ""


def test_mlx_imported_too_early_is_told_once_with_the_remedy():
    _, told = run("import mlx.core\n" + WRAP + "engine(); engine()")
    assert told.count("PerformanceWarning") == 1
    assert "import segue.mlx before mlx" in told


def test_no_blas_is_told_once_with_the_remedy():
    _, told = run(WRAP + "engine(); engine()", SEGUE_BLAS="")
    assert told.count("PerformanceWarning") == 1
    assert "install one with: " in told


def test_a_library_that_does_not_open_is_passed_over():
    out, _ = run("from segue.mlx import blas; print(blas.status)", SEGUE_BLAS="/no/such/library.so")
    assert "library=None" in out


def test_a_chosen_library_is_used():
    chosen, _ = run("from segue.mlx import blas; print(blas.status.library)")
    path = chosen.strip()
    out, _ = run("from segue.mlx import blas; print(blas.status.library)", SEGUE_BLAS=path)
    assert out.strip() == path


def test_mlx_does_not_take_many_lengths_for_a_mistake(monkeypatch):
    name = "MLX_ENABLE_CACHE_THRASHING_CHECK"
    code = f"import os, segue.mlx; print(os.environ[{name!r}])"
    assert run(code, **{name: "1"})[0].strip() == "1"
    monkeypatch.delenv(name, raising=False)
    assert run(code)[0].strip() == "0"
