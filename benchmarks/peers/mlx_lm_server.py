"""`mlx_lm.server` with its prompt cache, over HTTP, at its default settings.

It runs as its command does, on the same BLAS as the other peers on MLX. A reply with a seed is
generated apart from batches; the prompt cache serves both.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any

from benchmarks.peers.http_chat import hear
from benchmarks.peers.protocol import Measure, Messages, Peer, place_of, serve

SERVER = "import segue.mlx; from mlx_lm.server import main; main()"


class MlxServerPeer(Peer):
    """A server process, and requests to it."""

    _process: subprocess.Popen[bytes] | None = None

    def begin(self, workload: dict[str, Any], paths: dict[str, str]) -> None:
        self.end()
        place = place_of(workload, paths)
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        command = [sys.executable, "-c", SERVER, "--model", place, "--port", str(port)]
        self._process = subprocess.Popen(
            [*command, "--log-level", "WARNING"], env={**os.environ, "PYTHONWARNINGS": "ignore"}
        )
        self._address = f"http://127.0.0.1:{port}"
        self._workload = workload
        self._await()

    @property
    def server_process_id(self) -> int | None:
        """Whose memory counts."""
        return None if self._process is None else self._process.pid

    def _await(self) -> None:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{self._address}/health", timeout=5).close()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise TimeoutError("mlx_lm.server did not start")

    def take(self, step: dict[str, Any], messages: Messages) -> Measure:
        body = {
            "messages": list(messages),
            "max_tokens": step["max_tokens"],
            "temperature": self._workload["temperature"],
            "stream_options": {"include_usage": True},
        }
        if self._workload["temperature"]:
            body["seed"] = step["seed"]
        if self._workload["tools"]:
            body["tools"] = self._workload["tools"]
        cut = step["cut"]
        heard = hear(
            self._address, body, lambda heard: cut is not None and len(heard.pieces) >= cut
        )
        usage, fed = heard.told.get("usage", {}), heard.read
        if usage:
            cached = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
            # A prompt that is held whole is fed its last token again.
            fed = max(usage["prompt_tokens"] - cached, 1)
        return heard.measure(
            fed=fed,
            prompt=usage.get("prompt_tokens"),
            generated=usage.get("completion_tokens", len(heard.pieces)),
        )

    def save(self, path: str) -> dict[str, Any]:
        return {"instead": "its prompt cache is not saved: the new process reads the whole history"}

    def end(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None


if __name__ == "__main__":
    serve(MlxServerPeer())
