"""Times: two workloads by all peers, turn by turn, so that the machine's ups and downs meet all.

A short chat, over and over, and questions about a document. The first run, or the first question,
warms up. Ratios are of neighbours: the same turn of the same run.
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable
from time import sleep
from typing import Any

from benchmarks.driver import OURS, PEERS, PeerError, PeerProcess
from benchmarks.report import Told, spread
from benchmarks.workloads import Conversation, Step, Workload

# Threads that have nothing to do any more spin for a while, and would slow down the next peer.
PAUSE = 0.4
FIGURES = ("first_token_seconds", "decode_tokens_per_second")


def _begin(
    processes: dict[str, PeerProcess], workload: Workload, paths: dict[str, str]
) -> dict[str, Conversation]:
    conversations = {}
    for name, process in list(processes.items()):
        try:
            process.ask("begin", workload=workload.to_json(), paths=paths)
        except PeerError as error:
            print(f"{name}, {workload.name}: {error}", file=sys.stderr)
            processes.pop(name).close()
        else:
            conversations[name] = Conversation(workload.instructions)
    return conversations


def _turn(
    processes: dict[str, PeerProcess],
    conversations: dict[str, Conversation],
    step: Step,
    rotation: int,
) -> dict[str, dict[str, Any]]:
    """A turn of every peer, each time another one first; one that fails is left out from now on."""
    names = list(processes)
    begin = rotation % len(names)
    measures = {}
    for name in names[begin:] + names[:begin]:
        messages = conversations[name].begin(step)
        sleep(PAUSE)
        try:
            measure = processes[name].ask("take", step=step.to_json(), messages=messages)
        except PeerError as error:
            print(f"{name}: {error}", file=sys.stderr)
            processes.pop(name).close()
            continue
        conversations[name].end(measure["text"])
        measures[name] = measure
    return measures


def _started(names: Iterable[str]) -> dict[str, PeerProcess]:
    processes = {}
    for name in names:
        try:
            processes[name] = PeerProcess(PEERS[name])
        except PeerError as error:
            print(f"{name}: {error}", file=sys.stderr)
    return processes


def time_chat(
    workload: Workload, paths: dict[str, str], names: Iterable[str], runs: int, tell: Told
) -> None:
    """The same short chat `runs` times after a warm-up, by all peers in turns."""
    processes = _started(names)
    # By turn, then by peer: a measure of each run.
    turns: list[dict[str, list[dict[str, Any]]]] = []
    for run in range(runs + 1):
        conversations = _begin(processes, workload, paths)
        for number, step in enumerate(workload.steps):
            measures = _turn(processes, conversations, step, run + number)
            if not run:
                turns.append(defaultdict(list))
            else:
                for name, measure in measures.items():
                    turns[number][name].append(measure)
    for process in processes.values():
        process.close()
    _tell(workload, turns, runs, dict.fromkeys(processes), tell)


def time_document(
    workload: Workload, paths: dict[str, str], names: Iterable[str], tell: Told
) -> None:
    """A document and questions about it; the first two turns read it and warm up."""
    processes = _started(names)
    conversations = _begin(processes, workload, paths)
    turns: list[dict[str, list[dict[str, Any]]]] = [defaultdict(list), defaultdict(list)]
    for number, step in enumerate(workload.steps):
        measures = _turn(processes, conversations, step, number)
        if number != 1:
            for name, measure in measures.items():
                turns[min(number, 1)][name].append(measure)
    memory = {name: process.close().get("peak_rss_bytes") for name, process in processes.items()}
    _tell(workload, turns, len(workload.steps) - 2, memory, tell)


def _tell(
    workload: Workload,
    turns: list[dict[str, list[dict[str, Any]]]],
    runs: int,
    memory: dict[str, int | None],
    tell: Told,
) -> None:
    """Tell of every peer that came to the end: those that `memory` names."""
    for name in memory:
        record: dict[str, Any] = {"kind": "timed", "workload": workload.name, "peer": name}
        record |= {"runs": runs, "turns": []}
        for measures in turns:
            mine, ours = measures[name], measures[OURS]
            figures: dict[str, Any] = {
                figure: spread([measure[figure] for measure in mine]) for figure in FIGURES
            }
            figures["fed_tokens"] = statistics.median(measure["fed_tokens"] for measure in mine)
            if OURS in memory and PEERS[name].same_engine and name != OURS:
                figures["segue_over_this"] = {}
                for figure in FIGURES:
                    pairs = [(a[figure], b[figure]) for a, b in zip(ours, mine, strict=True)]
                    # A reply of one token has no speed.
                    if ratios := [a / b for a, b in pairs if b]:
                        figures["segue_over_this"][figure] = spread(ratios)
            record["turns"].append(figures)
        if memory[name]:
            record["peak_rss_bytes"] = memory[name]
        tell(record)
