"""Prompt cache files that are damaged, hostile or another model's: refused, and it is said why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.models.cache import (
    CacheList,
    KVCache,
    load_prompt_cache,
    save_prompt_cache,
)

from kit.filled_caches import OWN, layers, refused
from segue import PromptCacheError, PromptCacheFormatError
from segue.mlx.stored.checks import count_tokens
from segue.mlx.stored.prompt_cache import read_cache_file, write_cache_file


@pytest.fixture
def ours(tmp_path) -> Path:
    write_cache_file(tmp_path / "ours", layers(3), {"note": "here"})
    return tmp_path / "ours"


@pytest.fixture
def theirs(tmp_path) -> Path:
    save_prompt_cache(str(tmp_path / "theirs.safetensors"), layers(3), {"note": "there"})
    return tmp_path / "theirs.safetensors"


def edit(path: Path, change: Callable[[dict[str, Any], bytearray], Any]) -> None:
    """Change a file's header, or its data, and write it as a sound safetensors file."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8:start]), bytearray(raw[start:])
    changed = change(header, data)
    text = json.dumps(changed if isinstance(changed, list) else header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def resave(path: Path, change: Callable[[dict[str, mx.array], dict[str, str]], Any]) -> None:
    """Change a file's tensors or metadata, and have MLX write it."""
    arrays, metadata = mx.load(str(path), return_metadata=True)
    change(arrays, metadata)
    mx.save_safetensors(str(path), arrays, metadata)


# --- damage -------------------------------------------------------------------------------------


def test_the_files_are_sound_before_they_are_damaged(ours, theirs):
    assert read_cache_file(ours, OWN).ours
    assert not read_cache_file(theirs, OWN).ours


@pytest.mark.proof
def test_every_flipped_bit_of_ours_is_found(ours):
    sound = ours.read_bytes()
    start = 8 + int.from_bytes(sound[:8], "little")
    bits = [*range(start * 8), *range(start * 8, len(sound) * 8, 61)]
    for bit in bits:
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        ours.write_bytes(damaged)
        with pytest.raises(PromptCacheFormatError):
            read_cache_file(ours, OWN)


@pytest.mark.parametrize("name", ["ours", "theirs"])
def test_every_truncation_is_found(request, name):
    path = request.getfixturevalue(name)
    sound = path.read_bytes()
    for size in range(len(sound)):
        path.write_bytes(sound[:size])
        refused(path)


def test_what_is_cut_off_is_said(theirs):
    sound = theirs.read_bytes()
    theirs.write_bytes(sound[:-1])
    refused(theirs, f"cut off: it should have {len(sound)} bytes and has {len(sound) - 1}")
    theirs.write_bytes(sound + b"junk")
    refused(theirs, "4 bytes follow its last tensor")
    theirs.write_bytes(sound[:100])
    refused(theirs, "ends inside its header")


@given(data=st.binary(max_size=200), front=st.sampled_from([b"", b"{", b'{"0.0":', b'{"a":[']))
def test_any_bytes_are_refused(tmp_path_factory, data, front):
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(data)
    refused(path)
    path.write_bytes(len(front + data).to_bytes(8, "little") + front + data)
    refused(path)


@given(st.data())
def test_a_flipped_byte_of_theirs_is_refused_or_harmless(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    save_prompt_cache(str(path), layers(3))
    raw = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    raw[data.draw(st.integers(0, start + 60))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        read = read_cache_file(path, OWN)
    except PromptCacheError:
        return
    assert [type(layer) for layer in read.layers] == [KVCache, CacheList]
    assert 0 < count_tokens(read.layers) <= 8


def test_other_files_and_no_files(tmp_path):
    refused(tmp_path / "missing", "No such file", PromptCacheError)
    refused(tmp_path, "Is a directory", PromptCacheError)
    refused(Path("a\0b"), "could not be read", PromptCacheError)
    path = tmp_path / "x.safetensors"
    path.write_text("Not a cache at all, but a text that someone wrote.")
    refused(path, "not a safetensors file")
    path.write_bytes(b"")
    refused(path, "not a safetensors file")
    mx.save_safetensors(str(path), {"weight": mx.zeros((2, 2))})
    refused(path, "names no layers")


def test_a_session_is_told_from_a_prompt_cache(path, sound):
    path.write_bytes(sound)
    refused(path, "is a session, not a prompt cache. Open it with ChatSession.open")


# --- hostile headers ----------------------------------------------------------------------------


def entry(**changes: Any) -> Callable[[dict[str, Any], bytearray], None]:
    return lambda header, _: header["0.0"].update(changes)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (entry(dtype="F8"), "type"),
        (entry(dtype=["F32"]), "type"),
        (entry(shape="1"), "rank"),
        (entry(shape=[1] * 9), "rank"),
        (entry(shape=[1, 1, -8, 2]), "shape"),
        (entry(shape=[1, 1, 8.0, 2]), "shape"),
        (entry(shape=[True, 1, 8, 2]), "shape"),
        (entry(shape=[1, 1, 2**40, 2]), "shape"),
        (entry(shape=[1, 1, 4, 2]), "size"),
        (entry(data_offsets=[0, 64, 65]), "position"),
        (entry(data_offsets=[0, None]), "position"),
        (entry(data_offsets=[-64, 0]), "size"),
        (entry(data_offsets=[2**70, 2**70 + 64]), "gap"),
        (entry(data_offsets=[64, 0]), "size"),
        (entry(extra=1), "description"),
        (lambda header, _: header.update({"0.0": 5}), "description"),
        (lambda header, _: header["0.0"].update(data_offsets=header["0.1"]["data_offsets"]), "gap"),
        (lambda header, _: header.pop("0.0"), "gap|follow"),
        (lambda header, _: header.update(__metadata__=[]), "not all text"),
        (lambda header, _: header["__metadata__"].update({"1.0": 5}), "not all text"),
        (lambda header, _: header.pop("__metadata__"), "names no layers"),
        (lambda header, _: [header], "not an object"),
    ],
)
def test_headers_that_make_no_sense(theirs, change, told):
    edit(theirs, change)
    refused(theirs, told)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 150_000,
        b'{"a":' * 150_000,
        b"[]," * 2**22,
        b'{"a":1,"a":2}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"\xff":1}',
        "{}".encode("utf-16"),
        b'{"a":NaN}',
    ],
    ids=["deep", "deep objects", "wide", "twice", "long number", "no text", "utf-16", "nan"],
)
def test_json_that_is_meant_to_hurt(tmp_path, text):
    path = tmp_path / "x"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    refused(path)


def test_a_header_length_beyond_bounds(tmp_path):
    for length in (0, 1, 2**24 + 1, 2**63, 2**64 - 1):
        (tmp_path / "x").write_bytes(length.to_bytes(8, "little") + b"{}" * 20)
        refused(tmp_path / "x")


# --- names that would be looked up, and parts that are not there --------------------------------


def metadata(name: str, value: str) -> Callable[[Any, dict[str, str]], None]:
    return lambda _, texts: texts.update({name: value})


@pytest.mark.parametrize("name", ["print", "BatchKVCache", "__builtins__", "", "KVCache\n" * 99])
def test_classes_that_are_not_known(theirs, name):
    resave(theirs, metadata("1.0", name))
    refused(theirs, "which Segue does not know")


@pytest.mark.parametrize("name", ["print", "BatchKVCache", "LRUPromptCache"])
def test_classes_within_a_list_that_are_not_known(theirs, name):
    resave(theirs, lambda arrays, _: arrays.update({"1.1.1": mx.array([ord(c) for c in name])}))
    refused(theirs, "which Segue does not know")


def test_nothing_in_a_file_is_looked_up_as_code(theirs, monkeypatch):
    # What mlx-lm's own loader does with such a file.
    called = []
    trap = type("Trap", (), {"from_state": classmethod(lambda *_: called.append(1))})
    monkeypatch.setattr("mlx_lm.models.cache.Trap", trap, raising=False)
    resave(theirs, metadata("1.0", "Trap"))
    load_prompt_cache(str(theirs))
    assert called == [1]
    refused(theirs, "which Segue does not know")
    assert called == [1]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (metadata("1.7", "KVCache"), "unknown entry '1.7'"),
        (metadata("1.99999999999", "KVCache"), "unknown entry"),
        (metadata("2.99999999999.0", "0.2"), "unknown entry"),
        (metadata("3", "x"), "unknown entry '3'"),
        (metadata("2.1.1", "code"), "what its field '0.2' stands for"),
        (metadata("2.2.0", "0.2"), "what its field '0.2' stands for"),
        (lambda _, texts: texts.pop("2.1.1"), "stands for"),
        (lambda _, texts: texts.pop("2.0"), "names no layers"),
        (lambda arrays, _: arrays.update({"0.999999999999": mx.zeros(1)}), "belongs to none"),
        (lambda arrays, _: arrays.update({"999999999999.0": mx.zeros(1)}), "belongs to none"),
        (lambda arrays, _: arrays.update({"1.9.1": mx.zeros(1)}), "belongs to none"),
        (lambda arrays, _: arrays.pop("0.1"), "lack the field '0.1'"),
        (lambda arrays, _: arrays.pop("0.2"), "lack the field '0.2'"),
        (lambda arrays, _: arrays.pop("1.0.0.0.0"), "belongs to none"),
        (lambda arrays, _: arrays.update({"1.1.1": mx.zeros(7)}), "is not a text"),
        (lambda arrays, _: arrays.update({"1.1.1": mx.zeros(99, mx.int32)}), "is not a text"),
        (lambda arrays, _: arrays.update({"1.1.1": chars("CacheList")}), "list that holds a list"),
        (lambda arrays, _: arrays.update({"1.1.1": mx.array([-1] * 7)}), "does not know"),
    ],
)
def test_parts_that_don_t_belong_together(theirs, change, told):
    resave(theirs, change)
    refused(theirs, told)


def chars(text: str) -> mx.array:
    return mx.array([ord(char) for char in text])


def test_layers_of_a_batch(theirs):
    batch = layers(3)
    batch[1].caches[0].left_padding = mx.array([0])
    save_prompt_cache(str(theirs), batch)
    refused(theirs, "padded")
    batch = layers(3)
    batch[1].caches[0].cache[0] = mx.ones((2, 2))
    save_prompt_cache(str(theirs), batch)
    refused(theirs, "slots of its layer 1.0.0 are not of one conversation")
    plain = KVCache()
    plain.update_and_fetch(*[mx.ones((2, 1, 3, 2))] * 2)
    save_prompt_cache(str(theirs), [plain, layers(3)[1]])
    refused(theirs, "layer 0 is not of one conversation")


# --- versions and the checksum ------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2", "10", "9" * 5000])
def test_a_newer_version_is_refused_whatever_its_checksum(ours, version):
    resave(ours.rename(ours.with_suffix(".safetensors")), metadata("0.segue_version", version))
    refused(ours.with_suffix(".safetensors"), "newer than this Segue reads")


def test_a_newer_version_may_have_metadata_of_other_kinds(ours):
    edit(ours, lambda header, _: header["__metadata__"].update({"0.segue_version": "2", "3": "x"}))
    refused(ours, "newer than this Segue reads")


@pytest.mark.parametrize("version", ["0", "-1", "01", "one", "", "²"])
def test_a_version_that_there_never_was(ours, version):
    edit(ours, lambda header, _: header["__metadata__"].update({"0.segue_version": version}))
    refused(ours, "version or its checksum is missing")


@pytest.mark.parametrize("name", ["segue_version", "segue_checksum"])
def test_without_version_or_checksum_ours_is_not_taken_for_theirs(ours, name):
    edit(ours, lambda header, _: header["__metadata__"].pop(f"0.{name}"))
    refused(ours, "missing")


def test_ours_written_over_by_another_program_is_damaged(ours):
    path = ours.rename(ours.with_suffix(".safetensors"))
    cache, texts = load_prompt_cache(str(path), return_metadata=True)
    cache[0].keys = cache[0].keys + 1
    save_prompt_cache(str(path), cache, texts)
    refused(path, "checksum is not that of its content")


def test_a_model_that_leaves_layers_unused(ours):
    refused(ours, "leaves layers", PromptCacheError, [*OWN, KVCache()])
