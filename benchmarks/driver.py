"""Peers, each in a process of its own, and one workload done by one of them."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from benchmarks import environments
from benchmarks.optimum import Optimum
from benchmarks.workloads import Conversation, Workload

ROOT = Path(__file__).parent.parent
# A turn that takes longer than this is hung.
PATIENCE = 900


@dataclass(frozen=True)
class PeerInfo:
    """A peer as the page knows it.

    Attributes:
        name: Its module in `peers`.
        title: What it is.
        environment: Its environment, or ``None`` for the project's own.
        packages: What versions the page names.
    """

    name: str
    title: str
    environment: str | None
    packages: tuple[str, ...]

    @property
    def same_engine(self) -> bool:
        """Whether it runs on MLX and the same weights as Segue."""
        return self.environment is None


OURS = "segue_session"
PEERS = {
    peer.name: peer
    for peer in (
        PeerInfo(OURS, "Segue", None, ("segue",)),
        PeerInfo("stateless", "stateless mlx-lm", None, ("mlx-lm", "mlx")),
        PeerInfo("hand_kept", "hand-kept cache", None, ()),
        PeerInfo("mlx_lm_server", "mlx_lm.server", None, ()),
        PeerInfo("llama_cpp", "llama.cpp server", "llamacpp", ("xllamacpp",)),
        PeerInfo(
            "transformers_cache",
            "transformers, DynamicCache",
            "transformers",
            ("transformers", "torch"),
        ),
    )
}


class PeerError(Exception):
    """A peer can't do what was asked, in its own words."""


class PeerProcess:
    """A running peer.

    Args:
        info: Which one.
        threads: How many threads it may compute on; ``None`` for as many as it likes.
    """

    def __init__(self, info: PeerInfo, *, threads: int | None = None) -> None:
        python = environments.python(info.environment)
        if not python.exists():
            raise PeerError(f"not run: .venv-{info.environment} is missing (make bench-peers)")
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        # This tree's segue, also where an environment was made for another.
        env["PYTHONPATH"] = str(ROOT)
        if threads is not None:
            env |= dict.fromkeys(("MKL_NUM_THREADS", "OMP_NUM_THREADS"), str(threads))
        self.info = info
        self._command, self._env = [str(python), "-m", f"benchmarks.peers.{info.name}"], env
        self._start()

    def _start(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            env=self._env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        self._ready = selectors.DefaultSelector()
        self._ready.register(self._process.stdout, selectors.EVENT_READ)

    def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """Have it do something.

        Raises:
            PeerError: It can't, died, or took too long.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"op": operation, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline() if self._ready.select(PATIENCE) else b""
        except BrokenPipeError:
            line = b""
        if not line:
            self._process.kill()
            self._process.wait()
            self._log.seek(0)
            log = self._log.read().decode(errors="replace").strip().splitlines()
            raise PeerError(f"{self.info.name} died: {log[-1] if log else 'without a word'}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer

    @property
    def alive(self) -> bool:
        """Whether it can be asked anything more."""
        return self._process.poll() is None

    def restart(self) -> None:
        """End, and begin as a new process."""
        self.close()
        self._start()

    def close(self) -> dict[str, Any]:
        """Let it end; what it told of itself."""
        try:
            return self.ask("end")
        except PeerError:
            return {}
        finally:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._ready.close()
            self._log.close()


class Scribe:
    """What a template renders, its ids, and the best that a turn could do.

    Args:
        workload: Whose template.
        tokenizer: Hugging Face's, with that template.
    """

    def __init__(self, workload: Workload, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tools = list(workload.tools) or None

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """The text of a prompt."""
        text: str = self._tokenizer.apply_chat_template(
            list(messages), tools=self._tools, add_generation_prompt=True, tokenize=False
        )
        return text

    def encode(self, text: str) -> list[int]:
        """Its ids."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def optimum(self) -> Optimum:
        """A perfect cache of a new conversation."""
        return Optimum(
            self.encode,
            lambda ids: self._tokenizer.decode(ids),
            frozenset({self._tokenizer.eos_token_id}),
        )


@cache
def _tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


def scribe_for(workload: Workload, paths: dict[str, str]) -> Scribe:
    """The scribe of a workload, with its model's own tokenizer."""
    return Scribe(workload, _tokenizer(paths[f"{workload.model}/{workload.template}"]))


class Running(Protocol):
    """A peer that can be asked, wherever it runs."""

    def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """Have it do something."""

    def restart(self) -> None:
        """End, and begin as a new process."""


def do_workload(
    name: str, peer: Running, workload: Workload, paths: dict[str, str], scribe: Scribe
) -> dict[str, Any]:
    """Have a peer do a workload.

    Returns:
        The record of it, with the texts of the replies as ``said``.
    """
    optimum, conversation = scribe.optimum(), Conversation(workload.instructions)
    turns: list[dict[str, Any]] = []
    restarts: list[dict[str, Any]] = []
    said: list[str] = []
    peer.ask("begin", workload=workload.to_json(), paths=paths)
    with tempfile.TemporaryDirectory() as folder:
        for number, step in enumerate(workload.steps):
            messages = conversation.begin(step)
            if step.kind in ("mark", "branch"):
                peer.ask(step.kind)
                getattr(optimum, step.kind)()
            elif step.kind == "restart":
                saved = peer.ask("save", path=f"{folder}/{number}.safetensors")
                peer.restart()
                peer.ask("begin", workload=workload.to_json(), paths=paths)
                if "seconds" in saved:
                    resumed = peer.ask("resume", path=f"{folder}/{number}.safetensors")
                    saved = {"save": saved, "resume": resumed}
                if saved:
                    restarts.append(saved)
            if not step.replies:
                continue
            best = optimum.ask(scribe.render(messages))
            measure = peer.ask("take", step=step.to_json(), messages=messages)
            text, ids = measure.pop("text"), measure.pop("tokens")
            conversation.end(text)
            optimum.answer(text, ids, ended=measure.pop("ended"))
            said.append(text)
            turns.append({"best_fed": best.fed_tokens, "best_prompt": best.prompt_tokens} | measure)
    record = {
        "kind": "workload",
        "workload": workload.name,
        "peer": name,
        "turns": turns,
        **({"restarts": restarts} if restarts else {}),
    }
    return {**record, "said": said}


class Counted:
    """The stateless way, counted and not run: every turn feeds its whole prompt.

    Args:
        scribe: Of the workload.
        said: Replies, so that the conversation is another peer's.
    """

    def __init__(self, scribe: Scribe, said: Sequence[str]) -> None:
        self._scribe, self._said = scribe, iter(said)

    def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """See `Running.ask`; only turns have an answer."""
        if operation != "take":
            return {}
        length = len(self._scribe.encode(self._scribe.render(arguments["messages"])))
        counts = {"fed_tokens": length, "prompt_tokens": length}
        return {"text": next(self._said), "tokens": None, "ended": False, **counts}

    def restart(self) -> None:
        """See `Running.restart`; there is nothing to lose."""
