"""The page's part on GPUs, made of the last line of what `gpu.py` wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "gpu.jsonl"


def summary(path: Path = RESULTS) -> dict[str, Any] | None:
    """The last line of a GPU's results; ``None`` where there are none."""
    if not path.exists():
        return None
    last: dict[str, Any] = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
    return last if last.get("measure") == "summary" else None


def section(told: dict[str, Any] | None) -> str:
    """Its tables, by model and tokens of context."""
    if told is None:
        return ""
    rows = []
    for name, model in told["models"].items():
        first, decoding = model["stateless_over_segue"], model["segue_over_generate_step"]
        for context in first["new"]:
            share = model["share_of_bandwidth"].get(context)
            cells = [
                name,
                f"{int(context):,}",
                f"{model['segue_ms']['new'][context]:.0f} ms",
                f"{first['new'][context]:.1f}",
                f"{model['segue_ms']['met'][context]:.0f} ms",
                f"{first['met'][context]:.1f}",
                f"{decoding[context]:.3f}" if context in decoding else "",
                "" if share is None else f"{share:.0%}",
            ]
            rows.append(f"| {' | '.join(cells)} |")
    versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    head = (
        "| Model | Context | First token, new lengths | Stateless over Segue "
        "| First token, lengths met | Stateless over Segue "
        "| Decoding over the bare loop | Share of bandwidth |\n"
        "|---|---:|---:|---:|---:|---:|---:|---:|"
    )
    return "\n".join(
        [
            "## On a GPU\n",
            f"{told['machine']}, {versions}; random weights in bfloat16. `benchmarks/gpu.py` "
            "measures it, apart from `make bench`, and says what each figure is. On CUDA, MLX "
            "plans attention anew for each pair of lengths that it has not met, which takes longer "
            "than a short turn: so the wait is told with new lengths, as in a real conversation, "
            "and with lengths met before.\n",
            head,
            *rows,
            "",
        ]
    )


def lost(told: dict[str, Any] | None) -> list[str]:
    """Where Segue does not reach what it aims at on that GPU, or gains nothing."""
    if told is None:
        return []
    lines = []
    models = told["models"].items()
    ratios = [
        (ratio, name, context)
        for name, model in models
        for context, ratio in model["segue_over_generate_step"].items()
    ]
    if ratios and min(ratios)[0] < 0.99:
        ratio, name, context = min(ratios)
        below = sum(ratio < 0.99 for ratio, _, _ in ratios)
        lines.append(
            f"On the {told['machine']}, decoding is below 0.99 of the bare loop's speed in {below} "
            f"of {len(ratios)} places, at worst {ratio:.3f} ({name} at {int(context):,} tokens)."
        )
    gains = [
        (gain, name, context)
        for name, model in models
        for context, gain in model["stateless_over_segue"]["new"].items()
    ]
    small = [f"{name} at {int(context):,}" for gain, name, context in gains if gain < 1.1]
    if small:
        lines.append(
            f"On the {told['machine']}, the wait for the first token is hardly shorter than the "
            f"stateless way's where the context is short: {', '.join(small)}."
        )
    return lines
