"""What every benchmark reports: spreads, and the circumstances of a run."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable
from importlib import metadata
from typing import Any

import mlx.core as mx

import segue

Told = Callable[[dict[str, Any]], None]
"""Takes a record."""


def spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
    }


def circumstances(benchmark: str, model: str) -> dict[str, Any]:
    return {
        "benchmark": benchmark,
        "machine": mx.device_info().get("device_name", platform.processor()),
        "device": str(mx.default_device()),
        "segue": segue.__version__,
        "versions": {name: metadata.version(name) for name in ("mlx", "mlx-lm")},
        "model": model,
    }
