"""Pictures of the results, as SVG and PNG, into docs/benchmarks.

    python -m benchmarks.plots [RESULTS [FOLDER]]

The same results make the same files.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator

from benchmarks.driver import OURS, PEERS
from benchmarks.records import RESULTS, Records

PICTURES = Path(__file__).parent.parent / "docs" / "benchmarks"
# Told apart by those who see no red or green, too.
COLOURS = dict(
    zip(PEERS, ("#0072b2", "#d55e00", "#e69f00", "#cc79a7", "#009e73", "#7f7f7f"), strict=True)
)
STYLE = {
    "svg.hashsalt": "segue",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 150,
}


def save(figure: Any, path: Path) -> None:
    """Write a picture in both forms, with nothing in it that differs from day to day."""
    figure.savefig(f"{path}.svg", metadata={"Date": None}, bbox_inches="tight")
    figure.savefig(f"{path}.png", metadata={"Software": None}, bbox_inches="tight")
    plt.close(figure)


def _plain_logarithm(axes: Any, which: str = "y") -> None:
    """A logarithmic axis with numbers that people read."""
    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()


def tokens_fed(records: Records) -> Any:
    """Tokens fed over the optimum, by workload and peer."""
    workloads = records.workloads
    figure, axes = plt.subplots(figsize=(9, 3.6))
    width = 0.8 / len(PEERS)
    for number, (name, peer) in enumerate(PEERS.items()):
        at, heights = [], []
        for place, workload in enumerate(workloads):
            ratio = records.ratio(workload, name)
            if ratio is not None:
                at.append(place + (number - len(PEERS) / 2 + 0.5) * width)
                heights.append(ratio - 1)
        axes.bar(at, heights, width, bottom=1, color=COLOURS[name], label=peer.title)
        # Bars of no height are seen by their foot.
        axes.scatter(at, [1] * len(at), s=5, color=COLOURS[name], zorder=3)
    axes.set_yscale("log")
    ticks = [1, 1.5, 2, 3, 5, 10, 20, 30]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(axis="x", visible=False)
    axes.set_xticks(
        range(len(workloads)),
        [f"{records.number(name)} {name}" for name in workloads],
        rotation=30,
        ha="right",
    )
    axes.set_ylabel("tokens fed / fewest possible")
    axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def fed_by_turn(records: Records) -> Any:
    """Tokens fed in each turn of the growing conversation."""
    figure, axes = plt.subplots(figsize=(6, 3.2))
    for name, peer in PEERS.items():
        turns = records.turns("growth", name)
        if turns:
            fed = [turn["fed_tokens"] for turn in turns]
            line = 2.4 if name == OURS else 1.2
            axes.plot(range(1, len(fed) + 1), fed, color=COLOURS[name], lw=line, label=peer.title)
    if not axes.lines:
        plt.close(figure)
        return None
    _plain_logarithm(axes)
    axes.set_xlabel("turn")
    axes.set_ylabel("tokens fed")
    axes.legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def first_token(records: Records) -> Any:
    """Seconds to the first token of a question about a document that was read before."""
    timed = {name: record for name, record in records.timed("document").items() if name in PEERS}
    if not timed:
        return None
    figure, axes = plt.subplots(figsize=(6, 2.6))
    names = sorted(timed, key=list(PEERS).index, reverse=True)
    for place, name in enumerate(names):
        seconds = timed[name]["turns"][-1]["first_token_seconds"]
        middle = seconds["median"]
        error = [[middle - seconds["min"]], [seconds["max"] - middle]]
        axes.errorbar(middle, place, xerr=error, fmt="o", color=COLOURS[name], ms=7, capsize=3)
        axes.annotate(
            f"{middle:.2f} s",
            (seconds["max"], place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(range(len(names)), [PEERS[name].title for name in names])
    _plain_logarithm(axes, "x")
    axes.margins(x=0.2)
    axes.set_xlabel("seconds to the first token (median, least and most)")
    return figure


def growth(records: Records) -> Any:
    """Seconds to the first token as the conversation grows."""
    found = records.one("growth")
    if found is None:
        return None
    figure, axes = plt.subplots(figsize=(6, 3.2))
    ways = {
        "segue": ("Segue", COLOURS[OURS]),
        "bare": ("bare loop, same tokens at the same place", "#000000"),
        "stateless": ("stateless mlx-lm", COLOURS["stateless"]),
    }
    for way, (title, colour) in ways.items():
        places = [place for place in found["places"] if way in place]
        turns = [place["turn"] for place in places]
        middle = [place[way]["median"] for place in places]
        axes.plot(turns, middle, "o-", color=colour, ms=3, lw=1.2, label=title)
        lowest = [place[way]["min"] for place in places]
        highest = [place[way]["max"] for place in places]
        axes.fill_between(turns, lowest, highest, color=colour, alpha=0.15, lw=0)
    _plain_logarithm(axes)
    axes.set_xlabel("turn")
    axes.set_ylabel("seconds to the first token")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def main() -> None:
    results, folder = [*map(Path, sys.argv[1:3]), *(RESULTS, PICTURES)[len(sys.argv) - 1 :]]
    records = Records.read(results)
    folder.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        for draw in (tokens_fed, fed_by_turn, first_token, growth):
            figure = draw(records)
            if figure is not None:
                save(figure, folder / draw.__name__)


if __name__ == "__main__":
    main()
