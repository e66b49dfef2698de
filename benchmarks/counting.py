"""Tokens fed: every workload by every peer, once, since counts have no noise.

Peers run two at a time, each on one core: nothing here is timed.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.driver import OURS, PEERS, Counted, PeerError, PeerProcess, do_workload, scribe_for
from benchmarks.report import Told
from benchmarks.workloads import Workload

# The slowest first, so that two that run at a time end together.
ORDER = ("transformers_cache", "mlx_lm_server", OURS, "hand_kept", "llama_cpp")
AT_ONCE = 2


def count(
    workloads: Iterable[Workload], paths: dict[str, str], names: Iterable[str], tell: Told
) -> None:
    """Do the workloads with these peers, and tell each record as it comes."""
    workloads, names = list(workloads), set(names)
    said: dict[str, list[str]] = {}
    lock = threading.Lock()

    def told(record: dict[str, Any]) -> None:
        texts = record.pop("said", None)
        with lock:
            if record["peer"] == OURS and texts is not None:
                said[record["workload"]] = texts
            tell(record)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        chosen = [name for name in ORDER if name in names]
        list(pool.map(lambda name: _count_one(name, workloads, paths, told), chosen))
    if "stateless" in names:
        for workload in workloads:
            if workload.name in said:
                scribe = scribe_for(workload, paths)
                counted = Counted(scribe, said[workload.name])
                told(do_workload("stateless", counted, workload, paths, scribe) | {"counted": True})


def _count_one(name: str, workloads: list[Workload], paths: dict[str, str], tell: Told) -> None:
    process: PeerProcess | None = None
    for workload in workloads:
        try:
            if process is None:
                process = PeerProcess(PEERS[name], threads=1)
            record = do_workload(name, process, workload, paths, scribe_for(workload, paths))
        except PeerError as error:
            record = {"kind": "workload", "workload": workload.name, "peer": name}
            record |= {"turns": [], "cannot": str(error)}
            print(f"{name}, {workload.name}: {error}", file=sys.stderr)
            if process is not None and not process.alive:
                process.close()
                process = None
        tell(record)
    if process is not None:
        process.close()
