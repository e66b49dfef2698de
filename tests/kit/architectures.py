"""Small models of many types: mlx-lm's architectures with random weights.

The settings of the models come from a file beside the project, in the folder that SEGUE_DATA names.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map_with_path
from mlx_lm.models.cache import make_prompt_cache

from kit.oracle import TOLERANCE, EditingTokenizer, Expected, Talk, relative_error, wrap
from segue import CacheConfig, ConfigurationError, MlxEngine

DATA = os.environ.get("SEGUE_DATA")
NO_DATA = "SEGUE_DATA does not name the folder that holds architectures.json"

# The most of each setting, by its name wherever it stands. Heads of 32 and of 64 numbers can be
# quantized.
CAPS: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "model_dim", "block_dim"), 256),
    **dict.fromkeys(
        (
            "intermediate_size",
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "ffn_hidden_size",
            "block_ff_dim",
        ),
        128,
    ),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 4),
    **dict.fromkeys(("head_dim", "kv_channels"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts"), 4),
    **dict.fromkeys(("mamba_d_state", "state_size"), 16),
    "mamba_d_head": 32,
    "n_shared_head": 2,
    "time_step_rank": 8,
    "mamba_expand": 2,
    "n_heads_in_group": 2,
    "index_n_heads": 4,
    "index_head_dim": 32,
    # So that a short talk is longer than these.
    "sliding_window": 16,
    "attention_window_size": 16,
    "loop_window_size": 16,
    "index_topk": 16,
}
# How many layers, where there are more of them than a pattern needs.
LAYERS = ("num_hidden_layers", "n_layer", "num_transformer_layers")
MOST_LAYERS = 4
# What caps by name would break.
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "afm7": {"num_layers": 4, "num_kv_reuse_layers": 2},
    "falcon_h1": {"mamba_n_heads": 4, "mamba_d_ssm": 128},
    "gemma3_text": {"num_hidden_layers": 6},
    "gemma4": {"num_hidden_layers": 10},
    "jamba": {"num_hidden_layers": 4},
    "openelm": {"num_query_heads": [4] * 4, "num_kv_heads": [2] * 4},
    # Heads of 64 numbers, 0.4 of them rotated, would rotate an odd number.
    "phi": {"partial_rotary_factor": 0.5},
    # It writes to the logits of some ids up to this, whether or not there are any.
    "phi3small": {"vocab_size": 100352},
    "olmo3": {"num_hidden_layers": 4},
}


def configurations() -> dict[str, dict[str, Any]]:
    """What the file says: by model type, the module and the settings."""
    if DATA is None:
        return {}
    found: dict[str, dict[str, Any]] = json.loads(
        (Path(DATA) / "architectures.json").read_text(encoding="utf-8")
    )
    return found


def shrink(name: str, settings: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
    """Settings of a model of the same kind that is small enough for a test."""
    layers = next((settings[key] for key in LAYERS if key in settings), None)
    fewer = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            value = shrink(name, value, vocabulary)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            value = [shrink(name, item, vocabulary) for item in value[:MOST_LAYERS]]
        elif key in EXCEPTIONS.get(name, {}):
            value = EXCEPTIONS[name][key]
        elif key in ("vocab_size", "vocab_size_per_layer_input"):
            value = vocabulary
        elif key in LAYERS:
            value = min(value, MOST_LAYERS)
        elif key in CAPS and isinstance(value, int):
            value = min(value, CAPS[key])
        elif isinstance(value, list) and layers is not None and len(value) == layers:
            value = value[: EXCEPTIONS.get(name, {}).get("num_hidden_layers", MOST_LAYERS)]
        fewer[key] = value
    return fewer


def make_model(name: str, vocabulary: int) -> Any:
    """A small model of this type, in float32, whose logits tell tokens apart."""
    settings = configurations()[name]
    module = importlib.import_module(settings["module"])
    args = module.ModelArgs.from_dict(shrink(name, settings["args"], vocabulary))
    mx.random.seed(0)
    model = module.Model(args)
    key = mx.random.key(0)

    def draw(path: str, weight: mx.array) -> mx.array:
        nonlocal key
        if not mx.issubdtype(weight.dtype, mx.floating):
            return weight
        key, drawn = mx.random.split(key)
        noise = mx.random.normal(weight.shape, key=drawn)
        if weight.ndim < 2 or path.endswith(("A_log", "dt_bias", "D", "norm.weight")):
            return weight.astype(mx.float32) + 0.1 * noise
        return noise * (weight.shape[-1] ** -0.5)

    model.update(tree_map_with_path(draw, model.parameters()))
    model.eval()
    mx.eval(model.parameters())
    return model


def make_engine(name: str) -> MlxEngine:
    return wrap(make_model(name, len(EditingTokenizer())), name)


def kinds(layers: Sequence[Any]) -> dict[str, int]:
    """How many layers have which kind of cache."""

    def named(layer: Any) -> str:
        inner = ", ".join(map(named, getattr(layer, "caches", ())))
        return f"{type(layer).__name__}({inner})" if inner else type(layer).__name__

    return dict(Counter(map(named, layers)))


def chunk_error(model: Any, *, tokens: int = 70) -> float:
    """What mlx-lm itself makes of feeding in parts rather than in one go; no Segue in it."""
    ids = [(7 * place + 3) % 250 for place in range(tokens)]
    whole = model(mx.array([ids]), cache=make_prompt_cache(model))[0, -1]
    worst = 0.0
    for parts in ((30, 69, 70), (5, 11, 40, 41, 42, 43, 70), (12, *range(13, 71))):
        cache = make_prompt_cache(model)
        for start, end in itertools.pairwise((0, *parts)):
            logits = model(mx.array([ids[start:end]]), cache=cache)[0, -1]
            mx.eval(logits, [layer.state for layer in cache])
        worst = max(worst, relative_error(logits, whole))
    return worst


START = {"quantized_kv_start": 0}
LATER = {"quantized_kv_start": 60}
# By what is asked for: settings, of which the first that the model can do are taken.
SETUPS: dict[str, list[dict[str, Any]]] = {
    "as they are": [{}],
    "`max_kv_size`": [{"max_kv_size": 40}],
    "`kv_bits`": [{"kv_bits": 8, "kv_group_size": size, **START} for size in (32, 64)],
    "`kv_bits`, later": [{"kv_bits": 8, "kv_group_size": size, **LATER} for size in (64, 32)],
}


@dataclass
class Result:
    """What became of one model type.

    Attributes:
        kinds: Its kinds of caches, and how many layers have each.
        by_checkpoints: Whether there are layers that come back to checkpoints alone.
        own_error: How far mlx-lm's logits are from its own, if it is fed in other parts; no Segue
            in it.
        outcomes: By setup: what held, or why it was refused.
        worst: The largest error.
        rounded: The largest error against one pass where quantized numbers were rounded otherwise.
    """

    kinds: dict[str, int]
    by_checkpoints: bool
    own_error: float
    outcomes: dict[str, str] = field(default_factory=dict)
    worst: float = 0.0
    rounded: float = 0.0

    def row(self, name: str) -> str:
        """Its line in the table of the docs."""
        caches = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items())
        back = "checkpoints" if self.by_checkpoints else "any place"
        return f"| {' | '.join([name, caches, back, *self.outcomes.values()])} |"


class CannotRunError(Exception):
    """This machine can't run a model of this type, Segue or not."""


EXACT = "yes"
FED_ONLY = "tokens only"
# What the engine's refusals come from, by what they say; the last one by all that they may say.
REFUSALS = {
    "its layers bring bounded caches": "no plain layer",
    "none of its layers can be": "no plain layer",
    "RotatingKVCache Quantization NYI": "windows",
    "needs to be divisible": "head size",
    "": "model's own attention",
}


def refusal(message: str) -> str:
    """A refusal, in a table's cell."""
    return f"refused: {next(short for text, short in REFUSALS.items() if text in message)}"


def examine(name: str) -> Result:
    """Hold the scripted talk with a model of this type, in all setups.

    Raises:
        CannotRunError: mlx-lm alone can't run it.
        AssertionError: A turn fed other tokens than it should, or the logits were others.
    """
    engine = make_engine(name)
    try:
        own_error = chunk_error(engine.model.model)
    except RuntimeError as error:
        raise CannotRunError(str(error)) from error
    result = Result(
        kinds(make_prompt_cache(engine.model)),
        Expected(engine, CacheConfig()).by_checkpoints,
        own_error,
    )
    for setup, choices in SETUPS.items():
        for settings in choices:
            config = CacheConfig(**settings)
            try:
                engine.context(config)
            except ConfigurationError as error:
                result.outcomes.setdefault(setup, refusal(str(error)))
                continue
            # Where mlx-lm's logits depend on the parts it is fed in, no cache can make up for it.
            talk = Talk(engine, config, logits=own_error < TOLERANCE)
            talk.run()
            result.outcomes[setup] = EXACT if talk.logits else FED_ONLY
            result.worst = max(result.worst, talk.worst)
            result.rounded = max(result.rounded, talk.rounded)
            break
    return result
