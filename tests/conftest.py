"""What several tests share."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

# On NVIDIA GPUs MLX multiplies in TF32 unless told not to: too coarse for the oracle.
os.environ.setdefault("MLX_ENABLE_TF32", "0")
# One thread: a BLAS that takes all cores gets into the way of other test workers, and how it shares
# a product among threads decides its last bits. Next to a step of a quantized cache, these decide
# more.
os.environ.setdefault("MKL_NUM_THREADS", "1")

# Started in the background of a script, a process ignores Ctrl-C; tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import segue.mlx  # noqa: F401 (puts a good BLAS in place before any test imports MLX)

if TYPE_CHECKING:
    from segue import MlxEngine

# One set of examples for all: CI must not find on Tuesday what it missed on Monday. Searching goes
# on where it is asked for: HYPOTHESIS_PROFILE=search pytest ...
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("search", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_itemcollected(item: pytest.Item) -> None:
    """All of the folder proofs is proofs."""
    if item.path.is_relative_to(Path(__file__).parent / "proofs"):
        item.add_marker(pytest.mark.proof)


@pytest.fixture(scope="session")
def smollm2() -> MlxEngine:
    """The real SmolLM2, loaded once."""
    import segue

    return segue.load("smollm2")


@pytest.fixture
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's data and cache folders of the test's own."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a session is saved."""
    return tmp_path / "talk.segue"


@pytest.fixture
def never_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts are asked always: the clock must not decide what a test covers."""
    from segue.drafting.pace import Pace

    monkeypatch.setattr(Pace, "drafting", True)
    monkeypatch.setattr(Pace, "paused", False)


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A session file with nothing wrong."""
    from kit.altered_files import make

    return make(tmp_path_factory.mktemp("sound") / "talk.segue")


@pytest.fixture(scope="session")
def pair() -> tuple[MlxEngine, MlxEngine]:
    """A model, and a draft that often, but not always, says what it says."""
    from kit.models import disturbed, toy_engine

    engine = toy_engine()
    return engine, disturbed(engine, noise=0.1)
