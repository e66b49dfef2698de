"""The architectures that GGUF files name, and what mlx-lm calls their tensors and settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models import gemma3_text, llama, qwen2, qwen3

from ...errors import ModelFormatError, UnsupportedModelError
from ...gguf.header import GGUFFile

LARGEST_SETTING = 2**31
FOLDER_REMEDY = "Use the same model as an mlx-lm folder."
ROPE_DIVISORS = "rope_freqs.weight"

_ATTENTION_AND_MLP = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LLAMA = {**_ATTENTION_AND_MLP, "ffn_norm": "post_attention_layernorm"}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_GEMMA3 = {
    **_ATTENTION_AND_MLP,
    **_HEAD_NORMS,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


class Settings:
    """A model's settings in a file's metadata, checked as they are read."""

    def __init__(self, file: GGUFFile, architecture: str) -> None:
        self.file = file
        self.architecture = architecture

    def number(self, key: str, default: float | None = None) -> float:
        """Return a positive number.

        Raises:
            ModelFormatError: if there is no such number, and no default.
        """
        value = self.file.number(f"{self.architecture}.{key}")
        if value is None:
            value = default
        if value is None or not 0 < value < LARGEST_SETTING:
            raise ModelFormatError(
                f"{self.file.path} has no usable {self.architecture}.{key}.",
                remedy="Convert the model again.",
            )
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """Return a positive whole number.

        Raises:
            ModelFormatError: if there is no such number, and no default.
        """
        value = self.number(key, default)
        if not isinstance(value, int):
            raise ModelFormatError(
                f"{self.architecture}.{key} in {self.file.path} is {value}, not a whole number.",
                remedy="Convert the model again with a current llama.cpp.",
            )
        return value

    def expect(self, key: str, value: int) -> None:
        """Refuse a whole number other than this one; the file may leave it out."""
        if self.count(key, value) != value:
            raise UnsupportedModelError(
                f"{self.file.path} has a {self.architecture}.{key} of {self.count(key)} where "
                f"Segue reads only {value}.",
                remedy=FOLDER_REMEDY,
            )

    def refuse(self, *keys: str) -> None:
        """Refuse a file that sets one of these, to anything but zero or false."""
        for key in keys:
            if self.file.metadata.get(f"{self.architecture}.{key}"):
                raise UnsupportedModelError(
                    f"{self.file.path} sets {self.architecture}.{key}, which Segue does not read "
                    "from GGUF files.",
                    remedy=FOLDER_REMEDY,
                )

    @property
    def layers(self) -> int:
        """How many layers the model has: as many as the file has tensors of."""
        layers = self.count("block_count")
        names = (name.split(".") for name in self.file.tensors)
        found = {name[1] for name in names if name[0] == "blk" and name[1:2]}
        # Checked before a model of that many layers is built.
        if {int(layer) for layer in found if layer.isdecimal()} != set(range(layers)):
            raise ModelFormatError(
                f"{self.file.path} should have {layers} layers, but has the tensors of others.",
                remedy="Download it again, or convert the model again.",
            )
        return layers

    @property
    def vocabulary(self) -> int:
        """How many tokens the model embeds."""
        embedding = self.file.tensors.get("token_embd.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise ModelFormatError(
                f"{self.file.path} has no token embedding.", remedy="Convert the model again."
            )
        return embedding.shape[0]

    @property
    def tied(self) -> bool:
        """True if the output layer is the token embedding."""
        return "output.weight" not in self.file.tensors

    @property
    def rope_scaling(self) -> dict[str, Any] | None:
        """How rotary positions are stretched: linearly or not at all."""
        kind = self.file.text(f"{self.architecture}.rope.scaling.type") or "linear"
        if kind not in ("none", "linear"):
            raise UnsupportedModelError(
                f"{self.file.path} stretches its rotary embedding ({kind}), which Segue does not "
                "read from GGUF files.",
                remedy=FOLDER_REMEDY,
            )
        older = self.number("rope.scale_linear", 1.0)
        factor = self.number("rope.scaling.factor", older)
        return {"type": kind, "factor": factor} if kind == "linear" and factor != 1 else None


@dataclass(frozen=True, slots=True)
class Architecture:
    """How to build a model of one architecture, and what its tensors are called."""

    build: Callable[[Settings], Any]
    """Makes the model from a file's settings."""
    layer: Mapping[str, str]
    """mlx-lm's names of a layer's tensors, by their names in files."""
    half: mx.Dtype = mx.float16
    """The type that a GPU computes in, and has weights and scales in that aren't quantized. Files
    have their scales in float16, but activations of models trained in bfloat16 may leave its
    range."""
    norm_offset: float = 0.0
    """What files have added to the weights of norms."""

    def rename(self, name: str) -> str | None:
        """Return a tensor's name in mlx-lm's model; ``None`` if that model has no such tensor."""
        stem, _, kind = name.rpartition(".")
        parts = stem.split(".")
        if len(parts) == 3 and parts[0] == "blk" and parts[2] in self.layer:
            return f"model.layers.{parts[1]}.{self.layer[parts[2]]}.{kind}"
        return f"{_WHOLE[stem]}.{kind}" if stem in _WHOLE else None


def _common(settings: Settings) -> dict[str, Any]:
    """Return the arguments of all of mlx-lm's models of these architectures."""
    settings.refuse("expert_count", "final_logit_softcapping", "attn_logit_softcapping")
    heads = settings.count("attention.head_count")
    hidden = settings.count("embedding_length")
    kv_heads = settings.count("attention.head_count_kv", heads)
    if heads > hidden or heads % kv_heads:
        raise ModelFormatError(
            f"{settings.file.path} shares {kv_heads} key heads among {heads} heads of {hidden} "
            "values together.",
            remedy="Convert the model again.",
        )
    head_dim = settings.count("attention.key_length", hidden // heads)
    for key in ("rope.dimension_count", "attention.value_length"):
        settings.expect(key, head_dim)
    return {
        "model_type": settings.architecture,
        "hidden_size": hidden,
        "num_hidden_layers": settings.layers,
        "intermediate_size": settings.count("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "rms_norm_eps": settings.number("attention.layer_norm_rms_epsilon"),
        "vocab_size": settings.vocabulary,
        "max_position_embeddings": settings.count("context_length"),
        "rope_theta": settings.number("rope.freq_base", 10000.0),
        "rope_scaling": settings.rope_scaling,
    }


def _build_llama(settings: Settings) -> Any:
    return llama.Model(
        llama.ModelArgs(
            **_common(settings),
            # Converters permute the rows of q and k for interleaved rotary embedding. Rotating that
            # way, MLX's "traditional" one, gives the same attention as putting them back would.
            rope_traditional=True,
            attention_bias="blk.0.attn_q.bias" in settings.file.tensors,
            tie_word_embeddings=settings.tied,
        )
    )


def _build_qwen2(settings: Settings) -> Any:
    common = _common(settings)
    common.pop("head_dim")
    settings.expect("attention.key_length", common["hidden_size"] // common["num_attention_heads"])
    return qwen2.Model(qwen2.ModelArgs(**common, tie_word_embeddings=settings.tied))


def _build_qwen3(settings: Settings) -> Any:
    return qwen3.Model(qwen3.ModelArgs(**_common(settings), tie_word_embeddings=settings.tied))


# The 27B model scales its queries by another number; its file shows it only by this.
_GEMMA3_27B_LAYERS = 62


def _build_gemma3(settings: Settings) -> Any:
    common = _common(settings)
    pattern = settings.count("attention.sliding_window_pattern", 6)
    layers, head_dim = common["num_hidden_layers"], common["head_dim"]
    if layers < pattern:
        raise UnsupportedModelError(
            f"{settings.file.path} has {layers} layers, all of them sliding, and mlx-lm's gemma3 "
            f"needs one in {pattern} that isn't.",
            remedy="Use another model.",
        )
    scalar = head_dim
    if layers == _GEMMA3_27B_LAYERS:
        scalar = common["hidden_size"] // common["num_attention_heads"]
    model = gemma3_text.Model(
        gemma3_text.ModelArgs(
            **common,
            query_pre_attn_scalar=scalar,
            sliding_window=settings.count("attention.sliding_window"),
            sliding_window_pattern=pattern,
            rope_local_base_freq=settings.number("rope.freq_base_swa", 10000.0),
        )
    )
    if settings.tied:
        model.sanitize({})
    return model


ARCHITECTURES = {
    "llama": Architecture(_build_llama, _LLAMA),
    "qwen2": Architecture(_build_qwen2, _LLAMA, half=mx.bfloat16),
    "qwen3": Architecture(_build_qwen3, {**_LLAMA, **_HEAD_NORMS}, half=mx.bfloat16),
    "gemma3": Architecture(_build_gemma3, _GEMMA3, half=mx.bfloat16, norm_offset=1.0),
}
