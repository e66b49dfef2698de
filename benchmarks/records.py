"""The results of a run, as page and pictures read them; needs nothing but Python."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "cpu.jsonl"


class Records:
    """Everything that a run told.

    Args:
        records: Its lines.
    """

    def __init__(self, records: Sequence[dict[str, Any]]) -> None:
        self._records = records
        self.circumstances = self.one("circumstances") or {}

    @classmethod
    def read(cls, path: Path) -> Records:
        """A results file."""
        return cls([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])

    def one(self, kind: str) -> dict[str, Any] | None:
        """The record of a kind that there is one of."""
        return next((record for record in self._records if record["kind"] == kind), None)

    @property
    def workloads(self) -> list[str]:
        """The names of the workloads that were counted, in order."""
        counted = {r["workload"] for r in self._records if r["kind"] == "workload"}
        return [name for name in self.circumstances["workloads"] if name in counted]

    def number(self, workload: str) -> int:
        """The number of a workload."""
        number: int = self.circumstances["workloads"][workload]["number"]
        return number

    def counts(self, workload: str, peer: str) -> dict[str, Any] | None:
        """What a peer did in a workload, if it was asked."""
        for record in self._records:
            told = (record["kind"], record.get("workload"), record.get("peer"))
            if told == ("workload", workload, peer):
                return record
        return None

    def turns(self, workload: str, peer: str) -> list[dict[str, Any]]:
        """A peer's turns in a workload; none where it can't do it."""
        record = self.counts(workload, peer)
        return record["turns"] if record else []

    def ratio(self, workload: str, peer: str) -> float | None:
        """Tokens fed over the fewest possible, of all turns together."""
        turns = self.turns(workload, peer)
        if not turns:
            return None
        best: int = sum(turn["best_fed"] for turn in turns)
        fed: int = sum(turn["fed_tokens"] for turn in turns)
        return fed / best

    def timed(self, workload: str) -> dict[str, dict[str, Any]]:
        """The times of a workload, by peer."""
        found = [r for r in self._records if r["kind"] == "timed" and r["workload"] == workload]
        return {record["peer"]: record for record in found}
