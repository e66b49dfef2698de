"""All benchmarks that a CPU can do, one after another; results as JSON lines.

    python -m benchmarks.run [--quick] [--only counts,chat,document,sessions,decode,drafts]
                             [--workloads 1,7] [--peers segue_session,llama_cpp] [--output FILE]

Tokens fed have no noise and are counted once. Times are taken of a few workloads, alone on the
machine. The last line names all that was measured. `page.py` and `plots.py` read the file.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import segue
import segue.mlx  # a good BLAS, before MLX

# isort: split
from benchmarks import counting, environments, sessions, timing
from benchmarks.driver import PEERS
from benchmarks.models import DESCRIPTIONS, make_models
from benchmarks.records import RESULTS
from benchmarks.report import circumstances
from benchmarks.texts import load_texts
from benchmarks.workloads import Workload, about_a_document, all_workloads, plain_chat

ROOT = Path(__file__).parent.parent
QUICK_RESULTS = RESULTS.with_name("quick.jsonl")
PARTS = ("counts", "chat", "document", "sessions", "decode", "drafts")
# Tokens of the document that is timed: one of 4,000 would take the stateless way minutes.
TIMED_DOCUMENT = 2000


class Results:
    """A file of JSON lines, written as they come.

    Args:
        path: The file; what it held is dropped.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        self._file = path.open("w", encoding="utf-8")
        self._kinds: dict[str, int] = {}
        self._started = time.monotonic()

    def tell(self, record: dict[str, Any]) -> None:
        """Write a record, and say on the terminal that it is there."""
        kind = record["kind"]
        self._kinds[kind] = self._kinds.get(kind, 0) + 1
        print(json.dumps(record), file=self._file, flush=True)
        names = [str(record[key]) for key in ("workload", "peer") if key in record]
        elapsed = time.monotonic() - self._started
        print(f"{elapsed:7.1f} s  {' '.join([kind, *names])}", flush=True)

    def close(self) -> None:
        """End with a line, on the terminal too, that says what there is."""
        seconds = round(time.monotonic() - self._started)
        end = {"kind": "end", "seconds": seconds, "records": dict(self._kinds)}
        self.tell(end)
        self._file.close()
        print(json.dumps(end))


def described(texts: str, workloads: list[Workload]) -> dict[str, Any]:
    """The circumstances of this run."""
    packages = {}
    for peer in PEERS.values():
        python = environments.python(peer.environment)
        if peer.packages and python.exists():
            code = (
                "import json; from benchmarks.peers.protocol import versions; "
                f"print(json.dumps(versions(*{peer.packages!r})))"
            )
            packages |= json.loads(subprocess.check_output([python, "-c", code], cwd=ROOT))
    return {
        **circumstances("cpu", DESCRIPTIONS["smollm2"]),
        "kind": "circumstances",
        "versions": packages,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "texts": texts,
        "models": DESCRIPTIONS,
        "workloads": {
            w.name: {"number": w.number, "title": w.title, "model": w.model, "turns": w.turns}
            | {"template": w.template, "temperature": w.temperature}
            for w in workloads
        },
        "timed_document_tokens": TIMED_DOCUMENT,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def script(results: Results, name: str, *arguments: str) -> bool:
    """Tell the last line of one of the other benchmarks; whether it ended well."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        print(f"{name} ended with {done.returncode}: the page will lack it.", file=sys.stderr)
        return False
    results.tell({"kind": name, **json.loads(done.stdout.splitlines()[-1])})
    return True


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a smoke run of some minutes")
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--workloads", help="numbers of those to count")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--models", type=Path, default=ROOT / "benchmarks" / ".models")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    parts, peers, quick = options.only.split(","), options.peers.split(","), options.quick

    paths = make_models(options.models)
    texts = load_texts()
    workloads = all_workloads(texts, quick=quick)
    results = Results(options.output or (QUICK_RESULTS if quick else RESULTS))
    results.tell(described(texts.source, workloads))
    failed = 0
    chosen = {int(number) for number in options.workloads.split(",")} if options.workloads else None
    if "counts" in parts:
        wanted = [w for w in workloads if chosen is None or w.number in chosen]
        counting.count(wanted, paths, peers, results.tell)
    if "chat" in parts:
        chat = Workload(1, "chat", "", tuple(plain_chat(texts, 2 if quick else 3)))
        timing.time_chat(chat, paths, peers, 1 if quick else 5, results.tell)
    if "document" in parts:
        length, questions = (200, 3) if quick else (TIMED_DOCUMENT, 7)
        steps = about_a_document(texts, tokens=8, length=length, questions=questions)
        document = Workload(11, "document", "", tuple(steps))
        timing.time_document(document, paths, peers, results.tell)
    if "sessions" in parts:
        text = texts.document(20000)
        # Loaded no sooner: the peers' processes are timed with the machine to themselves.
        engine = segue.load(paths["smollm2/plain"])
        sessions.measure(engine, workloads[11], text, results.tell, quick=quick)
        del engine
    if "decode" in parts:
        runs = "3" if quick else "20"
        failed += not script(results, "decode_overhead", "--tokens", "10", "--runs", runs)
    if "drafts" in parts:
        tokens = "8" if quick else "48"
        failed += not script(results, "speculative", "--runs", "1", "--tokens", tokens)
    results.close()
    return failed


if __name__ == "__main__":
    sys.exit(main())
