"""From a model's name to an engine.

Each engine is a package with a module ``loading``, which is imported when a model is loaded with
it: a machine needs to have only the engines that it uses.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from .checks import named_arguments
from .engine import Diagnosis
from .errors import ConfigurationError, ModelNotFoundError
from .names import ALIASES, DEFAULT_MODEL, find

if TYPE_CHECKING:
    from .mlx.engine import MlxEngine

ENGINES = {"mlx": "segue.mlx.loading"}
"""The known engines, by name, and the module that loads models for each."""
AUTO = "auto"


class EngineModule(Protocol):
    """What a module in `ENGINES` offers."""

    def load(self, source: Path | str, *, revision: str | None) -> Any:
        """Load a model from a file, a folder, or a repository that `source` names."""
        ...

    def diagnose(self) -> Diagnosis:
        """Return what the engine finds on this machine."""
        ...


@named_arguments()
def load(
    name: str | os.PathLike[str] = DEFAULT_MODEL,
    *,
    engine: str = AUTO,
    revision: str | None = None,
) -> MlxEngine:
    """Load a model.

    On a CPU, weights are loaded as float32, quantized ones included, if they fit in memory: MLX
    computes that faster there than anything smaller. On a GPU they stay as they are; of a GGUF
    file, the 4-bit and 8-bit tensors that MLX can use do, and the rest becomes half precision.

    Examples:
        ```python
        engine = segue.load("smollm2")
        session = segue.ChatSession(engine)
        ```

    Args:
        name: ``"smollm2"``; a ``.gguf`` file of architecture ``llama``, ``qwen2``, ``qwen3`` or
            ``gemma3``; a folder that mlx-lm loads; or a Hugging Face repository id, which mlx-lm
            downloads, showing its progress.
        engine: What runs the model: ``"mlx"``, or ``"auto"`` for what suits the model best.
        revision: A branch, tag or commit of the repository.

    Returns:
        The engine, for any number of sessions.

    Raises:
        ModelNotFoundError: if there is no model of that name, or it can't be downloaded.
        ModelFormatError: if the file or folder is incomplete, damaged or not a model.
        UnsupportedModelError: if the model's architecture, tensors or tokenizer are not supported.
        MissingTemplateError: if the tokenizer has no chat template.
        BackendMissingError: if the engine is not installed.
        ForkedProcessError: if this process was forked from one that uses MLX.
        ConfigurationError: if `engine` is not the name of one.
    """
    module = _module(engine)
    if not isinstance(name, (str, os.PathLike)):
        raise ModelNotFoundError(
            f"A model's name must be a string or a path, not {name!r}.",
            remedy=f"Pass one, such as {DEFAULT_MODEL!r}.",
        )
    found = find(os.fspath(name))
    loaded = _import(module).load(found, revision=revision)
    # As the caller, or a shell, spells it: mlx-lm's commands compare it so.
    loaded.source = os.path.expanduser(os.fspath(name))
    # A session may be continued from another folder. An alias is found anew wherever that is.
    named = isinstance(found, str) or loaded.source in ALIASES
    loaded.location = loaded.source if named else str(Path(found).absolute())
    return cast("MlxEngine", loaded)


def diagnose(engine: str = AUTO) -> Diagnosis:
    """Return what an engine finds on this machine, for ``segue doctor``.

    Raises:
        BackendMissingError: if the engine is not installed.
        ConfigurationError: if `engine` is not the name of one.
    """
    return _import(_module(engine)).diagnose()


def _module(engine: str) -> str:
    """Return the name of the module that loads models for an engine."""
    if engine == AUTO:
        return next(iter(ENGINES.values()))
    if not isinstance(engine, str) or engine not in ENGINES:
        raise ConfigurationError(
            f"engine must be {AUTO!r} or one of {', '.join(map(repr, ENGINES))}, not {engine!r}.",
            remedy="Leave it out: Segue then picks one that can run the model.",
        )
    return ENGINES[engine]


def _import(module: str) -> EngineModule:
    return cast(EngineModule, importlib.import_module(module))
