"""llama.cpp's own server, by xllamacpp, over HTTP, on SmolLM2's GGUF file.

Its settings are the defaults, but for the context's length. Needs xllamacpp alone.
"""

from __future__ import annotations

import json
import os
import tempfile
import urllib.request
from time import perf_counter
from typing import Any

import xllamacpp

from benchmarks.peers.http_chat import hear
from benchmarks.peers.protocol import Measure, Messages, Peer, place_of, serve


class LlamaCppPeer(Peer):
    """A server in this process, and requests to it."""

    _server: Any = None

    def begin(self, workload: dict[str, Any], paths: dict[str, str]) -> None:
        if workload["model"] != "smollm2":
            raise NotImplementedError("not run: there is no GGUF file of this tiny model")
        self.end()
        params = xllamacpp.CommonParams()
        params.model.path = paths["gguf"]
        params.n_ctx = 8192
        params.use_jinja = True
        # Set while another peer is at work: its threads wait for each other in loops.
        if threads := os.environ.get("OMP_NUM_THREADS"):
            params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
        params.slot_save_path = tempfile.gettempdir() + os.sep
        with open(os.path.join(place_of(workload, paths), "chat_template.jinja")) as f:
            params.chat_template = f.read()
        self._server = xllamacpp.Server(params)
        self._workload = workload
        self._slot = 0

    def take(self, step: dict[str, Any], messages: Messages) -> Measure:
        body = {
            "messages": list(messages),
            "max_tokens": step["max_tokens"],
            "temperature": self._workload["temperature"],
            "seed": step["seed"],
            "top_k": 0,
            "top_p": 1.0,
            "min_p": 0.0,
            "timings_per_token": True,
        }
        if self._workload["tools"]:
            body["tools"] = self._workload["tools"]
        cut = step["cut"]
        heard = hear(
            self._server.listening_address,
            body,
            lambda heard: (
                cut is not None and heard.told.get("timings", {}).get("predicted_n") == cut
            ),
        )
        timings = heard.told["timings"]
        return heard.measure(
            fed=timings["prompt_n"],
            prompt=timings["prompt_n"] + timings["cache_n"],
            generated=timings["predicted_n"],
        )

    def _slots(self, action: str, path: str) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self._server.listening_address}/slots/{self._slot}?action={action}",
            json.dumps({"filename": os.path.basename(path)}).encode(),
            {"Content-Type": "application/json"},
        )
        started = perf_counter()
        with urllib.request.urlopen(request) as answer:
            said = json.load(answer)
        size = said.get("n_written") or said.get("n_read")
        return {"seconds": perf_counter() - started, "bytes": size}

    def save(self, path: str) -> dict[str, Any]:
        address = f"{self._server.listening_address}/slots"
        with urllib.request.urlopen(address) as answer:
            slots = json.load(answer)
        used = max(slots, key=lambda slot: slot.get("id_task", -1))
        self._slot = used["id"]
        return {**self._slots("save", path), "slot": self._slot}

    def resume(self, path: str) -> dict[str, Any]:
        return self._slots("restore", path)

    def end(self) -> None:
        self._server = None


if __name__ == "__main__":
    serve(LlamaCppPeer())
