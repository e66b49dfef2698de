"""A good BLAS for MLX on a Linux CPU.

How it works: the CPU build of MLX for Linux links the reference BLAS, which is many times slower
than the processor allows. It takes only ``cblas_?gemm`` and LAPACK from it, by symbol, and the
dynamic linker takes a symbol from the global scope first. So a library that is opened with
RTLD_GLOBAL *before* MLX is first imported is used instead. Importing `segue.mlx` does that: with
the library that ``SEGUE_BLAS`` names, one out of a package on PyPI, or the system's OpenBLAS.

What does not work:

- Opening the library after MLX was imported: symbols are bound by then. `status` has that as its
  problem, and engines warn of it.
- Guessing if a library is fast. A BLAS that is in the global scope already (``LD_PRELOAD``) is
  taken as it is; ``segue doctor`` measures.
- The CUDA builds and macOS need none of this, and nothing is opened there.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from ..errors import PerformanceWarning

ENVIRONMENT_VARIABLE = "SEGUE_BLAS"
"""Names a library to use instead of those that are looked for; empty to use none."""

# Distributions on PyPI that carry a BLAS which is known to work so, and the library's name.
DISTRIBUTIONS = (("mkl", "libmkl_rt.so"), ("ngsolve-openblas", "libopenblas.so"))
CUDA_BUILDS = ("mlx-cuda-12", "mlx-cuda-13")


@dataclass(frozen=True, slots=True)
class BlasStatus:
    """The BLAS that MLX's CPU operations use."""

    needed: bool
    """True if this platform's MLX depends on one from outside."""
    library: str | None = None
    """The library that was opened; ``None`` if none was."""
    problem: str | None = None
    """Why none was, with the remedy; ``None`` if all is well."""


status = BlasStatus(needed=False)
_warned = False


def prepare() -> BlasStatus:
    """Open the best BLAS that is installed, if this platform needs one; later calls do nothing."""
    global status
    if status.needed or not _needed():
        return status
    if "mlx.core" in sys.modules and not _already_global():
        status = BlasStatus(
            True,
            problem="MLX was imported before Segue could give it a fast BLAS, so the CPU will be "
            "many times slower than it could be: import segue.mlx before mlx or mlx_lm.",
        )
        return status
    for candidate in _candidates():
        try:
            ctypes.CDLL(candidate, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        status = BlasStatus(True, library=candidate)
        return status
    if _already_global():
        status = BlasStatus(True, library="preloaded")
        return status
    status = BlasStatus(
        True,
        problem="No fast BLAS was found, so the CPU will be many times slower than it could be: "
        + remedy(),
    )
    return status


def warn_if_slow() -> None:
    """Warn, once a process, if MLX on this CPU has no good BLAS."""
    global _warned
    if status.problem is not None and not _warned:
        _warned = True
        warnings.warn(status.problem, PerformanceWarning, stacklevel=3)


def remedy() -> str:
    """Return how to get a good BLAS on this machine, as a clause."""
    if os.uname().machine == "x86_64":
        return "install one with: pip install mkl"
    return "install one with: apt install libopenblas0-pthread"


def _needed() -> bool:
    """Return True if MLX here is the CPU build for Linux; the CUDA builds compute on the GPU."""
    return sys.platform == "linux" and not any(version(name) for name in CUDA_BUILDS)


def version(distribution: str) -> str | None:
    """Return the version of a distribution, if it is installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _already_global() -> bool:
    """Return True if the process has a BLAS in its global scope already (``LD_PRELOAD``)."""
    return hasattr(ctypes.CDLL(None), "cblas_sgemm")


def _candidates() -> Iterator[str]:
    chosen = os.environ.get(ENVIRONMENT_VARIABLE)
    if chosen is not None:
        if chosen:
            yield os.path.expanduser(chosen)
        return
    for distribution, library in DISTRIBUTIONS:
        try:
            files = metadata.files(distribution) or []
        except metadata.PackageNotFoundError:
            continue
        for file in files:
            if file.name.startswith(library):
                yield os.path.realpath(str(file.locate()))
    found = ctypes.util.find_library("openblas")
    if found:
        yield found
