"""Prompt cache files of every kind of cache: written here and read by mlx-lm, and the reverse."""

from __future__ import annotations

import copy
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import mlx_lm.cache_prompt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import (
    BatchKVCache,
    CacheList,
    KVCache,
    load_prompt_cache,
    make_prompt_cache,
    save_prompt_cache,
)
from mlx_lm.models.deepseek_v41 import LayerCache

import segue
from kit.filled_caches import KINDS, VOCABULARY, fill, filled, make_bounded
from kit.models import tiny_llama, tiny_mamba, write_folder
from segue import PromptCacheError
from segue.mlx.kv.state import reference_layers
from segue.mlx.stored.checks import count_tokens
from segue.mlx.stored.prompt_cache import read_cache_file, write_cache_file
from segue.testing.mlx import CachingModel

TEXTS = {"token_ids": "[1, 2]", "note": 'Größe, "quoted" \\ and\nbroken 日本'}


def next_logits(model, cache) -> mx.array:
    """What the model says after three more tokens, one at a time: past a window's turn."""
    cache = copy.deepcopy(cache)
    logits = [model(mx.array([[token]], mx.uint32), cache=cache)[0, -1] for token in (5, 6, 7)]
    # And after several at once, which some layers keep otherwise.
    return mx.stack([*logits, model(mx.array([[8, 9, 10]], mx.uint32), cache=cache)[0, -1]])


def assert_same(model, got, cache) -> None:
    assert [type(layer) for layer in got] == [type(layer) for layer in cache]
    assert mx.array_equal(next_logits(model, got), next_logits(model, cache)).item()


@pytest.mark.parametrize("kind", KINDS)
def test_ours_opens_here_and_with_mlx_lm(tmp_path, kind):
    model, own, cache = filled(kind)
    path = tmp_path / "cache.safetensors"
    write_cache_file(path, cache, TEXTS)
    read = read_cache_file(path, own)
    assert (read.metadata, read.ours) == (TEXTS, True)
    assert_same(model, read.layers, cache)
    assert count_tokens(read.layers) == count_tokens(cache)
    theirs, metadata = load_prompt_cache(str(path), return_metadata=True)
    assert TEXTS.items() <= metadata.items()
    assert metadata["segue_version"] == "1"
    assert len(metadata["segue_checksum"]) == 64
    assert_same(model, theirs, cache)


@pytest.mark.parametrize("kind", KINDS)
def test_mlx_lm_s_opens_here(tmp_path, kind):
    model, own, cache = filled(kind)
    path = tmp_path / "cache.safetensors"
    save_prompt_cache(str(path), cache, {"model": "tiny", "nested": {"a": "b"}})
    read = read_cache_file(path, own)
    assert (read.metadata, read.ours) == ({"model": "tiny", "nested.a": "b"}, False)
    assert_same(model, read.layers, cache)


def test_mlx_lm_s_without_metadata_opens_here(tmp_path):
    model, own, cache = filled("plain")
    save_prompt_cache(str(tmp_path / "c.safetensors"), cache)
    assert_same(model, read_cache_file(tmp_path / "c.safetensors", own).layers, cache)


@pytest.mark.parametrize(
    "options", [[], ["--kv-bits", "8", "--kv-group-size", "32", "--quantized-kv-start", "0"]]
)
def test_a_file_that_mlx_lm_s_command_made_opens_here(tmp_path, monkeypatch, options):
    write_folder(tmp_path / "model")
    path = tmp_path / "cache.safetensors"
    command = ["--model", str(tmp_path / "model"), "--prompt-cache-file", str(path)]
    command += ["--prompt", "hello to the world", *options]
    monkeypatch.setattr(sys, "argv", ["mlx_lm.cache_prompt", *command])
    mlx_lm.cache_prompt.main()
    model = segue.load(tmp_path / "model").model
    read = read_cache_file(path, reference_layers(model, make_prompt_cache(model)))
    assert not read.ours
    assert read.metadata["model"] == str(tmp_path / "model")
    assert count_tokens(read.layers) > 4
    assert_same(model, read.layers, load_prompt_cache(str(path)))


def test_mlx_lm_generates_from_ours(tmp_path):
    model = tiny_llama(VOCABULARY)
    write_cache_file(tmp_path / "c", fill(model, make_prompt_cache(model), (9,)), {})
    prompt = mx.array([3, 4])
    tokens = [
        [token for token, _ in generate_step(prompt, model, prompt_cache=cache, max_tokens=5)]
        for cache in (
            load_prompt_cache_of(tmp_path / "c", tmp_path),
            fill(model, make_prompt_cache(model), (9,)),
        )
    ]
    assert tokens[0] == tokens[1]


def load_prompt_cache_of(path: Path, folder: Path):
    """mlx-lm takes files of one ending only."""
    named = folder / "named.safetensors"
    named.write_bytes(path.read_bytes())
    return load_prompt_cache(str(named))


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_comes_back_to_the_bit(tmp_path, dtype):
    model = tiny_llama(VOCABULARY)
    model.set_dtype(dtype)
    cache = fill(model, make_prompt_cache(model), (5,))
    write_cache_file(tmp_path / "c", cache, {})
    own = reference_layers(model, make_prompt_cache(model))
    layers = read_cache_file(tmp_path / "c", own).layers
    assert layers[0].keys.dtype == dtype
    assert_same(model, layers, cache)


@settings(max_examples=40)
@given(chunks=st.lists(st.integers(1, 40), min_size=1, max_size=6), bounded=st.booleans())
def test_however_a_bounded_cache_was_filled_it_comes_back(tmp_path_factory, chunks, bounded):
    model = LLAMA if bounded else WINDOWED
    make = make_bounded if bounded else make_prompt_cache
    cache = fill(model, make(model), chunks)
    path = tmp_path_factory.getbasetemp() / "bounded.safetensors"
    own = reference_layers(model, make_prompt_cache(model))
    save_prompt_cache(str(path), cache)
    assert count_tokens(read_cache_file(path, own).layers) == sum(chunks)
    write_cache_file(path, cache, {})
    assert_same(model, read_cache_file(path, own).layers, cache)


LLAMA = tiny_llama(VOCABULARY)
WINDOWED = tiny_llama(VOCABULARY, window=12)


def test_a_trimmed_cache_comes_back(tmp_path):
    model, own, cache = filled("bounded, not full")
    for layer in cache:
        layer.trim(4)
    write_cache_file(tmp_path / "c", cache, {})
    assert_same(model, read_cache_file(tmp_path / "c", own).layers, cache)


def test_metadata_of_any_text_come_back(tmp_path):
    model = CachingModel(lambda ids: 0, 8, layers=1)
    cache = fill(model, [KVCache()], (3,))
    own = fill(model, [KVCache()], (1,))

    @settings(max_examples=40)
    @given(st.dictionaries(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), st.text(SANE)))
    def check(texts):
        write_cache_file(tmp_path / "c", cache, texts)
        assert read_cache_file(tmp_path / "c", own).metadata == texts

    check()
    decoy = {"note": '"0.segue_checksum":"' + "0" * 64 + '"'}
    write_cache_file(tmp_path / "c", cache, decoy)
    assert read_cache_file(tmp_path / "c", own).metadata == decoy


SANE = st.characters(codec="utf-8")


# --- what can't be written ----------------------------------------------------------------------


def refused(path: Path, layers, told: str, metadata=None) -> None:
    before = {file: file.read_bytes() for file in path.parent.glob("*") if file.is_file()}
    with pytest.raises(PromptCacheError, match=told) as raised:
        write_cache_file(path, layers, metadata or {})
    assert raised.value.remedy
    after = {file: file.read_bytes() for file in path.parent.glob("*") if file.is_file()}
    assert after == before


def trimmed_to_nothing() -> list[KVCache]:
    _, _, cache = filled("plain")
    for layer in cache:
        layer.trim(100)
    return cache


@pytest.mark.parametrize(
    "layers",
    [
        [],
        [KVCache()],
        make_prompt_cache(tiny_mamba(8)),
        [CacheList(KVCache(), KVCache())],
        trimmed_to_nothing(),
    ],
)
def test_a_cache_that_holds_nothing_makes_no_file(tmp_path, layers):
    refused(tmp_path / "c", layers, "no prompt cache to save yet")


def test_layers_out_of_step_make_no_file(tmp_path):
    _, _, cache = filled("plain")
    cache[1].trim(1)
    refused(tmp_path / "c", cache, "out of step")


@pytest.mark.parametrize("layer", [LayerCache(8), BatchKVCache([0]), CacheList(LayerCache(8))])
def test_layers_without_a_form_make_no_file(tmp_path, layer):
    refused(tmp_path / "c", [layer], "no form")
    with pytest.raises(PromptCacheError, match="no form"):
        read_cache_file(tmp_path / "c", [layer])


@pytest.mark.parametrize("name", ["", "a.b", "0", "segue_version", "segue_checksum"])
def test_metadata_of_names_that_mlx_lm_would_take_apart(tmp_path, name):
    _, _, cache = filled("plain")
    refused(tmp_path / "c", cache, "of these names", {name: "x"})


def test_paths_that_can_not_be_written(tmp_path):
    _, _, cache = filled("plain")
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "no" / "c", tmp_path, tmp_path / "file" / "c", Path("a\0b")):
        refused(path, cache, "could not be written")


def test_a_full_disk_leaves_the_old_file(tmp_path):
    _, own, cache = filled("plain")
    path = tmp_path / "c"
    write_cache_file(path, cache, TEXTS)
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from segue import PromptCacheError\n"
        "from segue.mlx.stored.prompt_cache import write_cache_file\n"
        "import mlx.core as mx; from mlx_lm.models.cache import KVCache\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "layer = KVCache(); layer.update_and_fetch(*[mx.ones((1, 8, 300, 64))] * 2)\n"
        "try: write_cache_file(Path(sys.argv[1]), [layer], {})\n"
        "except PromptCacheError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60
    )
    assert "could not be written" in done.stdout, done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["c"]
    assert read_cache_file(path, own).metadata == TEXTS


def test_a_failure_while_writing_leaves_no_file(tmp_path, monkeypatch):
    _, _, cache = filled("plain")

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("segue.mlx.stored.prompt_cache.save_prompt_cache", fail)
    with pytest.raises(KeyboardInterrupt):
        write_cache_file(tmp_path / "c", cache, {})
    assert list(tmp_path.iterdir()) == []


# --- a kill -------------------------------------------------------------------------------------

# Overwrites one file without end, in a child that is forked anew for each line read.
WRITER = """
import os, sys
from pathlib import Path
from segue.mlx.stored.prompt_cache import write_cache_file
import mlx.core as mx
from mlx_lm.models.cache import KVCache

for line in sys.stdin:
    child = os.fork()
    if not child:
        layers, turn = [KVCache() for _ in range(2)], int(line)
        for layer in layers:
            layer.update_and_fetch(*[mx.full((1, 8, 1024, 32), float(turn))] * 2)
        write_cache_file(Path(sys.argv[1]), layers, {"turn": str(turn)})
        print(os.getpid(), flush=True)
        while True:
            write_cache_file(Path(sys.argv[1]), layers, {"turn": str(turn)})
    os.waitpid(child, 0)
    print("gone", flush=True)
"""


def test_after_a_kill_at_any_moment_the_file_is_whole(tmp_path):
    path = tmp_path / "c"
    own = KVCache()
    own.update_and_fetch(*[mx.zeros((1, 8, 1, 32))] * 2)
    dice = random.Random(5)
    command = [sys.executable, "-W", "ignore", "-c", WRITER, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as writer:
        for turn in range(15):
            print(turn, file=writer.stdin, flush=True)
            child = int(writer.stdout.readline())
            time.sleep(dice.uniform(0, 0.05))
            os.kill(child, signal.SIGKILL)
            assert writer.stdout.readline() == "gone\n"
            read = read_cache_file(path, [own] * 2)
            assert int(read.metadata["turn"]) == turn
            for layer in read.layers:
                assert mx.all(layer.keys == turn).item()
        writer.stdin.close()
