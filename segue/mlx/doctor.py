"""What this machine runs MLX on, and what would make it faster."""

from __future__ import annotations

import os
import platform
from time import perf_counter

import mlx.core as mx

from ..engine import Diagnosis
from ..installing import install_command
from . import blas

MATRIX = 1024
PRODUCTS = 5
# Below this, a BLAS is the reference one or as slow: good ones reach it on a single old core.
SLOW_GFLOPS = 15
NVIDIA_DRIVER = "/proc/driver/nvidia/version"


def diagnose() -> Diagnosis:
    """Return what MLX computes with here, after a few matrix products on the default device."""
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    gflops = _gflops()
    device = mx.device_info().get("device_name", platform.processor())
    facts = [
        ("device", f"{device} ({'CPU' if on_cpu else 'GPU'})"),
        ("cores", str(os.cpu_count())),
        ("matrix product", f"{gflops:,.0f} GFLOP/s (float32, {MATRIX} x {MATRIX})"),
        ("memory", f"{physical_memory() / 2**30:.1f} GiB"),
    ]
    advice = []
    if on_cpu and blas.status.needed:
        facts.insert(2, ("BLAS", blas.status.library or "MLX's own (the reference BLAS)"))
        if blas.status.problem:
            advice.append(blas.status.problem)
        elif gflops < SLOW_GFLOPS:
            advice.append(f"This BLAS is slow here: try another ({blas.remedy()}).")
    if on_cpu and os.path.exists(NVIDIA_DRIVER):
        command = install_command("cuda13")
        advice.append(f"There is an NVIDIA GPU: {command} (or cuda12) uses it.")
    return Diagnosis(facts, advice)


def physical_memory() -> int:
    """Return the size of this machine's memory, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gflops() -> float:
    """Return the best speed of several float32 matrix products on the default device."""
    matrix = mx.random.normal((MATRIX, MATRIX))
    mx.eval(matrix @ matrix)
    best = 0.0
    for _ in range(PRODUCTS):
        started = perf_counter()
        mx.eval(matrix @ matrix)
        best = max(best, 2 * MATRIX**3 / (perf_counter() - started) / 1e9)
    return best
