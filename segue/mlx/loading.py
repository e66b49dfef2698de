"""Loads models for MLX: GGUF files, and whatever mlx-lm loads.

MLX itself is imported by the functions, so that its absence is a BackendMissingError.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING, Any

from ..errors import (
    BackendMissingError,
    MissingTemplateError,
    ModelFormatError,
    ModelLoadError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from ..installing import install_command
from ..recommended import recommended_settings
from .recommended import NAME, read_recommendations, without_recommendations

if TYPE_CHECKING:
    from ..engine import Diagnosis
    from .engine import MlxEngine

# The share of this machine's memory that weights in float32 may take.
FLOAT32_SHARE = 0.7
LONGEST_CAUSE = 300
# What GGUF files call the settings that they recommend, after "general.sampling.".
GGUF_SETTINGS = {
    "temp": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
    "penalty_last_n": "repetition_context_size",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
}


def load(source: Path | str, *, revision: str | None = None) -> MlxEngine:
    """Load a model.

    On a CPU, weights are loaded as float32, quantized ones included, if they fit in memory: MLX
    computes that faster there than anything smaller. On a GPU they stay as they are; of a GGUF
    file, the 4-bit and 8-bit tensors that MLX can use do, and the rest becomes half precision.

    Args:
        source: A file or folder, or the id of a repository.
        revision: A branch, tag or commit of the repository.

    Raises:
        ModelLoadError: if the model can't be loaded; see `segue.load`.
        BackendMissingError: if MLX or mlx-lm is not installed.
    """
    require_backend()
    from .process.forks import use_model
    from .process.threads import leave_if_closing

    use_model()
    try:
        if isinstance(source, Path) and source.is_file():
            return _load_gguf(source)
        return _load_mlx_lm(source, revision)
    except Exception:
        leave_if_closing()
        raise


def require_backend() -> None:
    """Import MLX and mlx-lm.

    Raises:
        BackendMissingError: if one of them can't be imported; it names what to install.
    """
    try:
        import mlx.core  # noqa: F401
        import mlx_lm  # noqa: F401
    except ImportError as error:
        raise BackendMissingError(
            f"MLX does not load here ({error}), and models run on it.",
            remedy=f"Install it: {install_command('cpu')} on a Linux CPU, with cuda13 or cuda12 "
            "instead of cpu for an NVIDIA GPU; on macOS it comes with Segue.",
        ) from error


def diagnose() -> Diagnosis:
    """Return what MLX computes with on this machine, and what would make it faster.

    Raises:
        BackendMissingError: if MLX or mlx-lm is not installed.
        ForkedProcessError: if this process was forked from one that uses MLX.
    """
    require_backend()
    from .doctor import diagnose
    from .process.forks import use_model

    use_model()
    return diagnose()


def _load_gguf(path: Path) -> MlxEngine:
    from ..gguf.header import GGUFFile
    from ..gguf.tokenizer import load_tokenizer
    from .engine import MlxEngine
    from .gguf.model import load_model

    file = GGUFFile.open(path)
    if not file.text("tokenizer.chat_template"):
        raise MissingTemplateError(
            f"{path} carries no chat template, so it can't hold a conversation (it may be a base "
            "model).",
            remedy="Use an instruct or chat model.",
        )
    tokenizer = load_tokenizer(file)
    model = load_model(file, float32=_in_float32(file.parameters))
    engine = MlxEngine(model, tokenizer, name=path.stem)
    found = {
        name: file.metadata.get(f"general.sampling.{key}") for key, name in GGUF_SETTINGS.items()
    }
    engine.recommended = recommended_settings(found, str(path))
    return engine


def _load_mlx_lm(source: Path | str, revision: str | None) -> MlxEngine:
    import mlx_lm
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from mlx_lm.utils import _download

    from .engine import MlxEngine

    if isinstance(source, Path):
        _check_folder(source)
    try:
        # What mlx_lm.load begins with; a folder stays what it is.
        folder = Path(_download(str(source), revision=revision))
        found = read_recommendations(folder / NAME)
        with without_recommendations(folder) if found is None else nullcontext(folder) as usable:
            try:
                model, tokenizer, *_ = mlx_lm.load(str(usable))
            except (AttributeError, TypeError, ValueError) as error:
                if not _in_detokenizer(error):
                    raise
                model, tokenizer = _load_without_detokenizer(usable)
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
    engine = MlxEngine(_for_this_device(model), tokenizer, name=name)
    engine.recommended = recommended_settings(found or {}, f"{NAME} of {name}")
    return engine


def _in_detokenizer(error: BaseException) -> bool:
    """Return True if an error comes from the table of tokens that mlx-lm's detokenizers make."""
    from mlx_lm.tokenizer_utils import StreamingDetokenizer

    frames = (frame for frame, _ in walk_tb(error.__traceback__))
    return any(isinstance(frame.f_locals.get("self"), StreamingDetokenizer) for frame in frames)


def _load_without_detokenizer(folder: Path) -> tuple[Any, Any]:
    """Load a model whose vocabulary has gaps, say, which mlx-lm's detokenizers don't take."""
    from mlx_lm.tokenizer_utils import TokenizerWrapper
    from mlx_lm.utils import load_model
    from transformers import AutoTokenizer

    model, config = load_model(folder)
    ends = config.get("eos_token_id")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return model, TokenizerWrapper(
        tokenizer, eos_token_ids=[ends] if isinstance(ends, int) else ends
    )


def _check_folder(folder: Path) -> None:
    """Refuse a folder that is plainly not a model before mlx-lm loads it."""
    remedy = "Pass the folder that holds config.json, model*.safetensors and the tokenizer."
    config = folder / "config.json"
    if not config.is_file():
        raise ModelFormatError(f"{folder} has no config.json, so it isn't a model.", remedy=remedy)
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
    """Return the model as this device computes it fastest: on a CPU, in float32 if it fits."""
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
    """Return True if a model of this size is loaded as float32: on a CPU, if it fits."""
    import mlx.core as mx

    from .doctor import physical_memory

    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    return on_cpu and parameters * mx.float32.size <= FLOAT32_SHARE * physical_memory()


def _in_short(error: BaseException) -> str:
    """Return an error's message as one line of limited length."""
    line = " ".join(str(error).split()) or type(error).__name__
    return (line if len(line) <= LONGEST_CAUSE else line[:LONGEST_CAUSE] + " …").rstrip(".")
