"""What the results say in words: what peers did instead, and where Segue comes out behind."""

from __future__ import annotations

from typing import Any

from benchmarks.driver import OURS, PEERS
from benchmarks.records import Records

# Differences smaller than this are noise on a shared machine.
MARGIN = 0.05


def notes(records: Records) -> list[str]:
    """The footnotes of the table of tokens fed."""
    instead: dict[tuple[str, str], list[str]] = {}
    other: dict[str, list[str]] = {}
    for workload in records.workloads:
        number = str(records.number(workload))
        for peer in PEERS:
            record = records.counts(workload, peer)
            if record is None:
                continue
            for text in sorted(_instead(record)):
                instead.setdefault((peer, text), []).append(number)
            if _read_another_text(record):
                other.setdefault(peer, []).append(number)
    lines = [
        f"- {PEERS[peer].title}, workload {_listed(numbers)}: {text}."
        for (peer, text), numbers in instead.items()
    ]
    told = []
    if lines:
        told += ["\\* What is done instead of what can't be done:\n", "\n".join(lines) + "\n"]
    if other:
        whose = ", ".join(
            f"{PEERS[peer].title} in workload {_listed(numbers)}" for peer, numbers in other.items()
        )
        told.append(
            "† The model reads another text than the chat template writes (the system message "
            f"again in every turn, no line end behind a reply): {whose}. So its count may be low "
            "for what it leaves out.\n"
        )
    return told


def marks(record: dict[str, Any] | None) -> str:
    """What in the table leads to the footnotes about a record."""
    if record is None:
        return ""
    return ("\\*" if _instead(record) else "") + ("†" if _read_another_text(record) else "")


def _instead(record: dict[str, Any]) -> set[str]:
    found = {turn["instead"] for turn in record["turns"] if turn.get("instead")}
    found |= {told["instead"] for told in record.get("restarts", ()) if "instead" in told}
    if "cannot" in record:
        found.add(record["cannot"].removeprefix("NotImplementedError: "))
    return found


def _read_another_text(record: dict[str, Any]) -> bool:
    return any(turn.get("other_text") for turn in record["turns"])


def _listed(numbers: list[str]) -> str:
    return numbers[0] if len(numbers) == 1 else f"{', '.join(numbers[:-1])} and {numbers[-1]}"


def lost(records: Records) -> list[str]:
    """Where Segue comes out behind another, or does not reach what it aims at."""
    return [
        *_lost_tokens(records),
        *_lost_times(records),
        *_lost_growth(records),
        *_lost_files(records),
    ] or ["Nothing in this run."]


def _lost_tokens(records: Records) -> list[str]:
    lines = []
    for workload in records.workloads:
        ours = records.ratio(workload, OURS)
        if ours is None:
            lines.append(f"Workload {records.number(workload)} could not be done by Segue.")
        elif ours > 1.0:
            lines.append(f"Tokens fed in workload {records.number(workload)}: {ours:.3f}, not 1.")
    level = []
    for peer in PEERS:
        ratios = {w: records.ratio(w, peer) for w in records.workloads}
        same = [str(records.number(w)) for w, r in ratios.items() if r is not None and r < 1.035]
        if peer != OURS and len(same) > 1:
            level.append(f"{PEERS[peer].title} in workload {_listed(same)}")
    if level:
        lines.append(
            "There is little to gain in tokens over caches that compare what they hold with the "
            f"prompt, as long as nothing differs: within 3% of the fewest are {'; '.join(level)}. "
            "(llama.cpp and transformers read the last token of each reply again.)"
        )
    return lines


def _lost_times(records: Records) -> list[str]:
    lines = []
    for name, what in (("document", "a question about a document"), ("chat", "a turn of a chat")):
        timed = records.timed(name)
        if OURS not in timed:
            continue
        ours = timed[OURS]["turns"][-1]
        for peer, record in timed.items():
            theirs = record["turns"][-1]
            quicker, faster = (
                ours["first_token_seconds"]["median"] / theirs["first_token_seconds"]["median"],
                theirs["decode_tokens_per_second"]["median"]
                / max(ours["decode_tokens_per_second"]["median"], 1e-9),
            )
            gains = []
            if quicker > 1 + MARGIN:
                gains.append(f"its first token comes in {1 / quicker:.2f} of our time")
            if faster > 1 + MARGIN:
                gains.append(f"it decodes {faster:.2f} times as fast")
            if gains and peer != OURS:
                lines.append(f"{PEERS[peer].title}, {what}: {' and '.join(gains)}.")
    memory = {peer: told.get("peak_rss_bytes") for peer, told in records.timed("document").items()}
    ours_peak = memory.get(OURS)
    if ours_peak:
        less = [
            f"{PEERS[peer].title} ({peak / ours_peak:.2f} of ours)"
            for peer, peak in memory.items()
            if peak and peak < ours_peak * (1 - MARGIN)
        ]
        if less:
            lines.append(f"Peak memory is less with {', '.join(less)}.")
    found = records.one("decode_overhead")
    if found is not None:
        ratio = found["paired_ratio_to_generate_step"]["segue"]["median"]
        if ratio < 1:
            lines.append(
                f"Decoding is at {ratio:.3f} of the bare loop's speed"
                + (", below the 0.99 that we aim at." if ratio < 0.99 else ".")
            )
    return lines


def _lost_growth(records: Records) -> list[str]:
    found = records.one("growth")
    if found is None or found["growth"]["segue"] <= 1.2:
        return []
    grown = found["growth"]
    return [
        f"The time to the first token grows {grown['segue']:.2f} times from turn 2 to turn 60, "
        "more than the 1.2 that we aim at; the bare loop's grows "
        f"{grown['bare']:.2f} times at the same places."
    ]


def _lost_files(records: Records) -> list[str]:
    found = records.one("saving")
    if found is None:
        return []
    lines = []
    for ours, theirs, what in (
        ("save", "mlx_save", "Saving"),
        ("resume", "mlx_load", "Resuming"),
    ):
        ratio = found["seconds"][ours]["median"] / found["seconds"][theirs]["median"]
        if ratio > 1 + MARGIN:
            lines.append(f"{what} takes {ratio:.1f} times as long as mlx-lm's plain files.")
    return lines
