"""The model that a GGUF file carries, as an mlx-lm model."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import llama

from ..errors import ModelFormatError, UnsupportedModelError
from .gguf_file import GGUFFile, TensorType

# Tensor types that MLX reads, and the bits of those it holds as quantized weights.
QUANTIZED_BITS = {TensorType.Q4_0: 4, TensorType.Q4_1: 4, TensorType.Q8_0: 8}
READABLE = (TensorType.F32, TensorType.F16, *QUANTIZED_BITS)
GROUP_SIZE = 32
LARGEST_SETTING = 2**31

_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}
_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def load_model(file: GGUFFile) -> nn.Module:
    """The model of a GGUF file of architecture ``llama``, its quantized weights kept as such.

    Raises:
        UnsupportedModelError: Its architecture, a tensor type or a rotary scaling is not supported.
        ModelFormatError: Settings or tensors are missing or of the wrong shape.
    """
    architecture = file.text("general.architecture")
    if architecture != "llama":
        raise UnsupportedModelError(
            f"{file.path} holds a model of architecture {architecture!r}, and Segue reads 'llama' "
            "alone from GGUF files.",
            remedy="Use the same model as an mlx-lm folder.",
        )
    for tensor in file.tensors.values():
        if tensor.type not in READABLE:
            kind = tensor.type.name if isinstance(tensor.type, TensorType) else tensor.type
            raise UnsupportedModelError(
                f"{file.path} holds {tensor.name!r} as {kind}, a tensor type that Segue does not "
                "read.",
                remedy=f"Use a file of {', '.join(kind.name for kind in READABLE)}.",
            )
        _rename(tensor.name, file)
    model = llama.Model(_arguments(file))
    try:
        arrays = mx.load(str(file.path), format="gguf")
    except RuntimeError as error:
        raise ModelFormatError(
            f"MLX could not read {file.path}: {error}.", remedy="Download or copy it again."
        ) from error
    assert isinstance(arrays, dict)
    weights = {_rename(name, file): array for name, array in arrays.items()}

    def quantization(path: str, _: nn.Module) -> bool | dict[str, Any]:
        scales, weight = weights.get(f"{path}.scales"), weights.get(f"{path}.weight")
        if scales is None or weight is None:
            return False
        bits = weight.shape[-1] * 32 // (scales.shape[-1] * GROUP_SIZE)
        return {"group_size": GROUP_SIZE, "bits": bits}

    try:
        nn.quantize(model, class_predicate=quantization)
        model.load_weights(list(weights.items()))
    except ValueError as error:
        raise ModelFormatError(
            f"The tensors in {file.path} don't fit its own settings: {str(error)[:200]}.",
            remedy="Convert the model again.",
        ) from error
    model.eval()
    mx.eval(model.parameters())
    return model


def _arguments(file: GGUFFile) -> llama.ModelArgs:
    """The settings of the model, in mlx-lm's words."""

    def setting(key: str, default: float | None = None) -> float:
        value = file.number(f"llama.{key}")
        if value is None:
            value = default
        if value is None or not 0 < value < LARGEST_SETTING:
            raise ModelFormatError(
                f"{file.path} has no usable llama.{key}.", remedy="Convert the model again."
            )
        return value

    def count(key: str, default: int | None = None) -> int:
        value = setting(key, default)
        if not isinstance(value, int):
            raise ModelFormatError(
                f"llama.{key} in {file.path} is {value}, not a whole number.",
                remedy="Convert the model once more.",
            )
        return value

    scaling = file.text("llama.rope.scaling.type")
    if scaling not in (None, "none") or "rope_freqs.weight" in file.tensors:
        raise UnsupportedModelError(
            f"{file.path} stretches its rotary embedding ({scaling or 'rope_freqs'}), which Segue "
            "does not read from GGUF files.",
            remedy="Use the same model as an mlx-lm folder.",
        )
    if file.number("llama.expert_count"):
        raise UnsupportedModelError(
            f"{file.path} is a mixture of experts, which Segue does not read from GGUF files.",
            remedy="Use the same model as an mlx-lm folder.",
        )
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelFormatError(
            f"{file.path} has no token embedding.", remedy="Convert the model again."
        )
    heads = count("attention.head_count")
    hidden = count("embedding_length")
    layers = count("block_count")
    # Checked before a model of that many layers is built.
    if {int(layer) for layer in _layers(file)} != set(range(layers)):
        raise ModelFormatError(
            f"{file.path} says it has {layers} layers, but holds the tensors of others.",
            remedy="Download it again, or convert the model again.",
        )
    head_dim = count("attention.key_length", hidden // heads)
    for key in ("rope.dimension_count", "attention.value_length"):
        if count(key, head_dim) != head_dim:
            raise UnsupportedModelError(
                f"{file.path} has heads of {head_dim} values but a llama.{key} of {count(key)}.",
                remedy="Use the same model as an mlx-lm folder.",
            )
    return llama.ModelArgs(
        model_type="llama",
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=count("feed_forward_length"),
        num_attention_heads=heads,
        num_key_value_heads=count("attention.head_count_kv", heads),
        head_dim=head_dim,
        rms_norm_eps=setting("attention.layer_norm_rms_epsilon"),
        vocab_size=embedding.shape[0],
        max_position_embeddings=count("context_length"),
        rope_theta=setting("rope.freq_base", 10000.0),
        # Converters permute the rows of q and k for interleaved rotary embedding. Rotating that
        # way, MLX's "traditional" one, gives the same attention as putting the rows back would.
        rope_traditional=True,
        attention_bias="blk.0.attn_q.bias" in file.tensors,
        tie_word_embeddings="output.weight" not in file.tensors,
    )


def _layers(file: GGUFFile) -> set[str]:
    """The layers' numbers in the names of tensors."""
    names = (name.split(".") for name in file.tensors)
    return {
        parts[1] for parts in names if parts[0] == "blk" and parts[1:2] and parts[1].isdecimal()
    }


def _rename(name: str, file: GGUFFile) -> str:
    """A tensor's name in mlx-lm's llama."""
    stem, _, kind = name.rpartition(".")
    parts = stem.split(".")
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in _LAYER:
        return f"model.layers.{parts[1]}.{_LAYER[parts[2]]}.{kind}"
    if stem in _WHOLE:
        return f"{_WHOLE[stem]}.{kind}"
    raise UnsupportedModelError(
        f"{file.path} holds a tensor {name!r} that a llama model has no place for.",
        remedy="Use the same model as an mlx-lm folder.",
    )
