"""From a model's name to an engine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import (
    BackendMissingError,
    MissingTemplateError,
    ModelFormatError,
    ModelLoadError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from .names import DEFAULT_MODEL, find

if TYPE_CHECKING:
    from .mlx.engine import MlxEngine

# The share of this machine's memory that weights in float32 may take.
FLOAT32_SHARE = 0.7
LONGEST_CAUSE = 300


def load(name: str | os.PathLike[str] = DEFAULT_MODEL, *, revision: str | None = None) -> MlxEngine:
    """Load a model.

    On a CPU the weights are held in float32, quantized ones included, if they fit in memory: MLX
    computes that faster there than anything smaller. On a GPU they stay as they are; of a GGUF
    file, the 4-bit and 8-bit ones that MLX can hold do, and the rest is held in half precision.

    Args:
        name: ``"smollm2"``; a ``.gguf`` file of architecture ``llama``, ``qwen2``, ``qwen3`` or
            ``gemma3``; a folder that mlx-lm loads; or a Hugging Face repository id, which mlx-lm
            downloads, with progress.
        revision: A branch, tag or commit of the repository.

    Returns:
        The engine, for any number of sessions.

    Raises:
        ModelNotFoundError: Nothing goes by that name, or it can't be fetched.
        ModelFormatError: The file or folder is incomplete, damaged or no model.
        UnsupportedModelError: The model's architecture, tensors or tokenizer are not supported.
        MissingTemplateError: The tokenizer has no chat template.
        BackendMissingError: MLX or mlx-lm is not installed.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise ModelNotFoundError(f"{name!r} is no model's name.", remedy="Pass a string or a path.")
    found = find(os.fspath(name))
    require_backend()
    if isinstance(found, Path) and found.is_file():
        engine = _load_gguf(found)
    else:
        engine = _load_mlx_lm(found, revision)
    # As it was spelled: mlx-lm's commands compare it so.
    engine.source = os.fspath(name)
    return engine


def require_backend() -> None:
    """Raise BackendMissingError, which says what to install, unless MLX and mlx-lm load."""
    try:
        import mlx.core  # noqa: F401
        import mlx_lm  # noqa: F401
    except ImportError as error:
        raise BackendMissingError(
            f"MLX does not load here ({error}), and models run on it.",
            remedy="Install it: pip install 'segue[cpu]' on a Linux CPU, 'segue[cuda13]' or "
            "'segue[cuda12]' with an NVIDIA GPU, plain segue on macOS.",
        ) from error


def _load_gguf(path: Path) -> MlxEngine:
    from .gguf.header import GGUFFile
    from .gguf.tokenizer import load_tokenizer
    from .mlx.engine import MlxEngine
    from .mlx.gguf.model import load_model

    file = GGUFFile.open(path)
    if not file.text("tokenizer.chat_template"):
        raise MissingTemplateError(
            f"{path} carries no chat template, so it can't hold a conversation (it may be a base "
            "model).",
            remedy="Use an instruct or chat model.",
        )
    tokenizer = load_tokenizer(file)
    model = load_model(file, float32=_in_float32(file.parameters))
    return MlxEngine(model, tokenizer, name=path.stem)


def _load_mlx_lm(source: Path | str, revision: str | None) -> MlxEngine:
    import mlx_lm
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    from .mlx.engine import MlxEngine

    if isinstance(source, Path):
        _check_folder(source)
    try:
        model, tokenizer, *_ = mlx_lm.load(str(source), revision=revision)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise ModelNotFoundError(
            f"{source!r} could not be fetched from the hub: {_in_short(error)}.",
            remedy="Check its name, your connection, and whether it needs a login; or download it "
            "and pass its folder.",
        ) from error
    except ModelLoadError:
        raise
    # mlx-lm and what it calls raise all kinds of errors on a model that they can't load.
    except Exception as error:
        message = _in_short(error)
        if "not supported" in message or "trust_remote_code" in message:
            raise UnsupportedModelError(
                f"mlx-lm can't run {source}: {message}.",
                remedy="Update mlx-lm, or use another model.",
            ) from error
        raise ModelFormatError(
            f"mlx-lm could not load {source}: {message}.",
            remedy="Check that its files are whole and readable; download it again if in doubt.",
        ) from error
    name = source.name if isinstance(source, Path) else source
    return MlxEngine(_for_this_device(model), tokenizer, name=name)


def _check_folder(folder: Path) -> None:
    """Refuse a folder that is plainly no model before mlx-lm takes it up."""
    remedy = "Pass the folder that holds config.json, model*.safetensors and the tokenizer."
    config = folder / "config.json"
    if not config.is_file():
        raise ModelFormatError(f"{folder} has no config.json, so it is no model.", remedy=remedy)
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFormatError(f"{config} can't be read: {error}.", remedy=remedy) from error
    if not isinstance(settings, dict) or "model_type" not in settings:
        raise ModelFormatError(f"{config} names no model_type.", remedy=remedy)
    if not any(folder.glob("model*.safetensors")):
        raise ModelFormatError(
            f"{folder} has no weights (model*.safetensors).",
            remedy="Download the model again, or convert it with mlx_lm.convert.",
        )


def _for_this_device(model: Any) -> Any:
    """On a CPU, the model in float32 where it fits; elsewhere, as it is."""
    import mlx.core as mx
    from mlx_lm.utils import dequantize_model, get_total_parameters

    if not _in_float32(get_total_parameters(model)):
        return model
    # Scales first: dequantizing with scales in half precision rounds the weights, and is slower.
    model.set_dtype(mx.float32)
    model = dequantize_model(model)
    mx.eval(model.parameters())
    return model


def _in_float32(parameters: int) -> bool:
    """Whether so many parameters are held in float32: on a CPU, where they fit."""
    import mlx.core as mx

    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    return on_cpu and parameters * mx.float32.size <= FLOAT32_SHARE * physical_memory()


def physical_memory() -> int:
    """This machine's memory, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _in_short(error: BaseException) -> str:
    """An error's message as one line of bearable length."""
    line = " ".join(str(error).split()) or type(error).__name__
    return (line if len(line) <= LONGEST_CAUSE else line[:LONGEST_CAUSE] + " …").rstrip(".")
