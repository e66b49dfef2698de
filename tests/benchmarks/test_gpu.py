"""The GPU benchmark must run unattended: here on a CPU, with a tiny model."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

SMALL = {
    "models": "tiny",
    "contexts": 96,
    "decode-contexts": 96,
    "runs": 1,
    "decode-runs": 1,
    "tokens": 4,
    "bandwidth-gb": 0.001,
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    # Importing it sets this one.
    monkeypatch.setenv("MLX_ENABLE_CACHE_THRASHING_CHECK", "0")
    return import_module("benchmarks.gpu")


def run(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, output: Path
) -> tuple[object, list[dict[str, object]]]:
    options = [f"--{name}={value}" for name, value in SMALL.items()]
    monkeypatch.setattr(sys, "argv", ["gpu.py", f"--output={output}", *options])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    return ended.value.code, [json.loads(line) for line in output.read_text().splitlines()]


def test_lines(
    gpu: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, lines = run(gpu, monkeypatch, tmp_path / "gpu.jsonl")
    assert not code
    assert [(line["measure"], line.get("lengths")) for line in lines] == [
        ("bandwidth", None),
        ("time_to_first_token", "new"),
        ("time_to_first_token", "met"),
        ("decode", None),
        ("summary", None),
    ]
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == lines[-1]
    for line in lines[1:3]:
        assert list(line)[1] == "stateless_over_segue"
        fed, held = line["fed_tokens"], line["held_tokens"]["median"]
        assert held == 96 - gpu.LEFT
        assert fed["stateless"]["median"] == held + fed["segue"]["median"]
    assert lines[3]["same_tokens_as_generate_step"] == {"stream_generate": True, "segue": True}


def test_bytes_read_for_a_token(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two bytes each: embedding and output layer, four projections, three matrices, three norms.
    attention = 2 * 64 * 64 + 2 * 64 * 32
    layers = 2 * (attention + 3 * 64 * 128 + 2 * 64)
    table = 512 * 64
    held = 2 * 2 * 2 * 16
    tied = gpu.random_engine("tiny")
    assert gpu.read_for_a_token(tied) == (2 * (table + layers + 64), 2 * held)
    monkeypatch.setitem(gpu.SHAPES, "untied", gpu.SHAPES["tiny"]._replace(tied=False))
    untied = gpu.random_engine("untied")
    assert gpu.read_for_a_token(untied) == gpu.read_for_a_token(tied)


def test_goes_on_after_a_failure(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gpu, "time_to_first_token", fails)
    code, lines = run(gpu, monkeypatch, tmp_path / "gpu.jsonl")
    assert code
    assert [line["measure"] for line in lines] == [
        "bandwidth",
        "failed",
        "failed",
        "decode",
        "summary",
    ]
    assert "out of memory" in str(lines[1]["why"])
