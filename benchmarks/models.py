"""The models of the workloads, each as a folder that every peer loads.

SmolLM2 is the real one, its weights in float32, as Segue holds them on a CPU. The sliding-window
and the hybrid model are tiny, with random weights and SmolLM2's tokenizer: their caches are of the
kind, what they say is noise. The folders are laid out as publishers do it, so that mlx-lm and
transformers load the same files.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import segue
import segue.mlx  # a good BLAS, before MLX

# isort: split
import mlx.core as mx
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import gemma3_text, lfm2

from benchmarks.chat_templates import CHAT_TEMPLATES
from segue import names

# The sliding-window model looks back on so many tokens.
WINDOW = 128
# Runtimes look for a thinking model's marks among its tokens: two that are reserved in SmolLM2's
# vocabulary are renamed. Not for SmolLM2 itself, which never learned what to say after them.
THOUGHT = {"<jupyter_start>": "<think>", "<jupyter_text>": "</think>"}

SLIDING = {
    "model_type": "gemma3_text",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "intermediate_size": 96,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": WINDOW,
    "sliding_window_pattern": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "max_position_embeddings": 8192,
}
HYBRID = {
    "model_type": "lfm2",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 8192,
    "norm_eps": 1e-5,
    "conv_bias": False,
    "conv_L_cache": 3,
    "block_dim": 64,
    "block_ff_dim": 96,
    "block_multiple_of": 32,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": False,
    "layer_types": ["conv", "full_attention"] * 2,
}
TINY = {
    "sliding": (gemma3_text, SLIDING, "Gemma3ForCausalLM"),
    "hybrid": (lfm2, HYBRID, "Lfm2ForCausalLM"),
}
DESCRIPTIONS = {
    "smollm2": "SmolLM2-135M-Instruct, float32",
    "sliding": f"random weights, Gemma 3's layers, 4 of them, window {WINDOW}",
    "hybrid": "random weights, LFM2's layers, 4 of them, every second one convolutional",
}


def tiny_model(kind: str, vocabulary: int) -> Any:
    """A tiny model with random weights, large enough that its logits tell tokens apart."""
    module, config, _ = TINY[kind]
    model = module.Model(module.ModelArgs.from_dict({**config, "vocab_size": vocabulary}))
    if kind == "sliding":
        model.sanitize({})  # its output layer is its embedding
    key = mx.random.key(5)

    def draw(weight: mx.array) -> mx.array:
        nonlocal key
        key, drawn = mx.random.split(key)
        noise = mx.random.normal(weight.shape, key=drawn)
        return noise * (weight.shape[-1] ** -0.5) if weight.ndim > 1 else 1 + 0.1 * noise

    model.update(tree_map(draw, model.parameters()))
    model.eval()
    mx.eval(model.parameters())
    return model


def make_models(folder: Path) -> dict[str, str]:
    """Write what is missing; every model with every template, by ``model/template``.

    Args:
        folder: Where they are kept.

    Returns:
        Paths: of the folders, and, as ``gguf``, of SmolLM2's own file.
    """
    folder = folder.resolve()  # peers run elsewhere
    gguf = names.find("smollm2")
    paths = {"gguf": str(gguf)}
    made = [
        f"{model}/{template}"
        for model in DESCRIPTIONS
        for template in CHAT_TEMPLATES
        if model == "smollm2" or template != "tools"
    ]
    if not all((folder / name / "ready").exists() for name in made):
        engine = segue.load(gguf)
        for name in made:
            _write(folder / name, engine)
    return paths | {name: str(folder / name) for name in made}


def _write(folder: Path, engine: segue.MlxEngine) -> None:
    model, template = folder.parent.name, folder.name
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer: Any = engine.tokenizer
    tokenizer.wrapped.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATES[template])
    if template == "thinking" and model != "smollm2":
        _rename_tokens(folder)
    weights = folder.parent / "model.safetensors"
    if model == "smollm2":
        config = _llama_config(engine.model.args)
        held = engine.model
    else:
        config = {**TINY[model][1], "architectures": [TINY[model][2]], "tie_word_embeddings": True}
        held = tiny_model(model, engine.vocabulary)
    if not weights.exists():
        mx.save_safetensors(str(weights), _published(held, config), metadata={"format": "pt"})
    tokens = {
        f"{name}_token_id": getattr(tokenizer.wrapped, f"{name}_token_id")
        for name in ("bos", "eos", "pad")
    }
    config = {**config, **tokens, "vocab_size": engine.vocabulary, "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    link = folder / weights.name
    link.unlink(missing_ok=True)
    os.symlink(Path("..") / weights.name, link)
    (folder / "ready").touch()


def _llama_config(args: Any) -> dict[str, Any]:
    names_ = (
        "hidden_size",
        "num_hidden_layers",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "rms_norm_eps",
        "max_position_embeddings",
        "rope_theta",
    )
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        **{name: getattr(args, name) for name in names_},
        "head_dim": args.head_dim or args.hidden_size // args.num_attention_heads,
        "hidden_act": "silu",
        "tie_word_embeddings": args.tie_word_embeddings,
    }


def _published(model: Any, config: dict[str, Any]) -> dict[str, mx.array]:
    """The weights in the layout that publishers use."""
    parameters: Any = tree_flatten(model.parameters())
    weights: dict[str, mx.array] = dict(parameters)
    for name, weight in weights.items():
        if config["model_type"] == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            # GGUF files hold the two halves of each rotary pair side by side.
            rows, columns = weight.shape
            pairs = weight.reshape(-1, config["head_dim"] // 2, 2, columns)
            weights[name] = pairs.swapaxes(1, 2).reshape(rows, columns)
        elif name.endswith("conv.conv.weight"):
            weights[name] = mx.contiguous(weight.swapaxes(1, 2))
    return weights


def _rename_tokens(folder: Path) -> None:
    for path in (folder / "tokenizer.json", folder / "tokenizer_config.json"):
        text = path.read_text(encoding="utf-8")
        for old, new in THOUGHT.items():
            text = text.replace(f'"{old}"', f'"{new}"')
        path.write_text(text, encoding="utf-8")
