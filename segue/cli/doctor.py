"""What this machine runs models on, and what would make it faster."""

from __future__ import annotations

import os
import platform
from time import perf_counter

from ..errors import ModelNotFoundError

MATRIX = 1024
PRODUCTS = 5
# Below this, a BLAS is the reference one or as slow: good ones reach it on a single old core.
SLOW_GFLOPS = 15


def report() -> str:
    """The findings, a line each.

    Raises:
        BackendMissingError: MLX is not installed.
    """
    from ..loading import physical_memory, require_backend
    from ..mlx import blas
    from ..names import DEFAULT_MODEL, find

    require_backend()
    import mlx.core as mx

    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    gflops = _gflops()
    advice = []
    info = mx.device_info()
    lines = [
        (
            "device",
            f"{info.get('device_name', platform.processor())} ({'CPU' if on_cpu else 'GPU'})",
        ),
        ("cores", str(os.cpu_count())),
        ("matrix product", f"{gflops:,.0f} GFLOP/s (float32, {MATRIX} x {MATRIX})"),
        ("memory", f"{physical_memory() / 2**30:.1f} GiB"),
    ]
    if on_cpu and blas.status.needed:
        lines.insert(2, ("BLAS", blas.status.library or "MLX's own (the reference BLAS)"))
        if blas.status.problem:
            advice.append(blas.status.problem)
        elif gflops < SLOW_GFLOPS:
            advice.append(f"This BLAS is slow here: try another ({blas.remedy()}).")
    if on_cpu and os.path.exists("/proc/driver/nvidia/version"):
        advice.append("There is an NVIDIA GPU: pip install 'segue[cuda13]' (or cuda12) uses it.")
    try:
        lines.append((DEFAULT_MODEL, str(find(DEFAULT_MODEL))))
    except ModelNotFoundError as error:
        lines.append((DEFAULT_MODEL, "not here"))
        advice.append(str(error))
    lines += [
        (name, blas.version(name) or "not installed")
        for name in ("segue", "mlx", "mlx-lm", "transformers")
    ]
    lines.append(("python", platform.python_version()))
    width = max(len(name) for name, _ in lines)
    shown = [f"{name:<{width}}  {value}" for name, value in lines]
    shown += ["", *(advice or ["Nothing here would make this machine faster."])]
    return "\n".join(shown)


def _gflops() -> float:
    """Best of several float32 matrix products on the default device."""
    import mlx.core as mx

    matrix = mx.random.normal((MATRIX, MATRIX))
    mx.eval(matrix @ matrix)
    best = 0.0
    for _ in range(PRODUCTS):
        started = perf_counter()
        mx.eval(matrix @ matrix)
        best = max(best, 2 * MATRIX**3 / (perf_counter() - started) / 1e9)
    return best
