"""Tokens fed: every workload by every peer, once, since counts have no noise.

Peers run two at a time, each on one core: nothing here is timed.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import Any

from driver import PEERS, PeerError, PeerProcess, counted, do_workload, scribe_for
from workloads import Workload

# The slowest first, so that two that run at a time end together.
ORDER = ("transformers_cache", "mlx_lm_server", "segue_session", "hand_kept", "llama_cpp")
AT_ONCE = 2
Told = Callable[[dict[str, Any]], None]


def count(
    workloads: Iterable[Workload], paths: dict[str, str], names: Iterable[str], tell: Told
) -> None:
    """Do the workloads with these peers, and tell each record as it comes."""
    workloads, names = list(workloads), set(names)
    jobs: SimpleQueue[str] = SimpleQueue()
    for name in ORDER:
        if name in names:
            jobs.put(name)
    said: dict[str, list[str]] = {}
    lock = threading.Lock()

    def told(record: dict[str, Any]) -> None:
        texts = record.pop("said", None)
        with lock:
            if record["peer"] == "segue_session" and texts is not None:
                said[record["workload"]] = texts
            tell(record)

    def work() -> None:
        while True:
            try:
                name = jobs.get_nowait()
            except Empty:
                return
            _count_one(name, workloads, paths, told)

    threads = [threading.Thread(target=work) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if "stateless" in names:
        for workload in workloads:
            if workload.name in said:
                tell(counted(workload, paths, said[workload.name]))


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
