"""Small GGUF files of our own, written with the gguf package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from tiny import CHATML, byte_level_tokenizer, randomize

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, INNER, LAYERS = 2, 1, 32, 64, 96, 2

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
}


def reference_llama(vocabulary: int, *, tied: bool) -> Any:
    """A llama with rotary embedding in halves, as published; the file holds it permuted."""
    return randomize(
        llama.Model(
            llama.ModelArgs(
                model_type="llama",
                hidden_size=HIDDEN,
                num_hidden_layers=LAYERS,
                intermediate_size=INNER,
                num_attention_heads=HEADS,
                num_key_value_heads=KV_HEADS,
                rms_norm_eps=1e-5,
                vocab_size=vocabulary,
                rope_theta=5000.0,
                tie_word_embeddings=tied,
            )
        )
    )


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows reordered for interleaved rotary embedding, as converters to GGUF do."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def file_name(name: str) -> str:
    """A tensor's name in the file."""
    if name.startswith("model.layers."):
        _, _, layer, rest = name.split(".", 3)
        stem, kind = rest.rsplit(".", 1)
        return f"blk.{layer}.{NAMES[stem]}.{kind}"
    return {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }[name]


def write_llama(
    path: Path,
    *,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    tied: bool = True,
    architecture: str = "llama",
    metadata: dict[str, Any] | None = None,
    template: str | None = CHATML,
    pre: str = "gpt-2",
    more_tokens: int = 0,
    left_out: tuple[str, ...] = (),
    extra: tuple[str, ...] = (),
) -> Any:
    """Write a tiny llama with its tokenizer; returns the model that the file should load as."""
    tokenizer = byte_level_tokenizer()
    vocabulary = tokenizer.get_vocab()
    model = reference_llama(len(vocabulary), tied=tied)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5000.0)
    add_tokenizer(writer, tokenizer, template, pre, more_tokens)
    for key, value in (metadata or {}).items():
        kind_of_value = {str: "STRING", int: "UINT32", list: "ARRAY"}.get(type(value), "FLOAT32")
        if "odd" in key:  # a type that the writer has no method for
            inner = gguf.GGUFValueType.FLOAT64
            outer = gguf.GGUFValueType.ARRAY if isinstance(value, list) else inner
            writer.add_key_value(key, value, outer, inner if outer is not inner else None)
        else:
            for shard in writer.kv_data:
                shard.pop(key, None)
            writer.add_key_value(key, value, gguf.GGUFValueType[kind_of_value])
    for name, weight in tree_flatten(model.parameters()):
        stored = np.array(weight)
        if "q_proj" in name:
            stored = permuted(stored, HEADS)
        elif "k_proj" in name:
            stored = permuted(stored, KV_HEADS)
        if file_name(name) not in left_out:
            add_tensor(writer, file_name(name), stored, kind if stored.ndim > 1 else None)
    for name in extra:
        add_tensor(writer, name, np.ones((32,), np.float32), None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def add_tokenizer(writer: Any, tokenizer: Any, template: str | None, pre: str, more: int) -> None:
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    tokens += [f"<more {index}>" for index in range(more)]
    special = {"<|im_start|>", "<|im_end|>"}
    merges = __import__("json").loads(tokenizer._tokenizer.backend_tokenizer.to_str())["model"][
        "merges"
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(vocabulary["<|im_end|>"])
    if template is not None:
        writer.add_chat_template(template)


def add_tensor(writer: Any, name: str, data: np.ndarray, kind: Any) -> None:
    if kind is None or kind == gguf.GGMLQuantizationType.F32:
        writer.add_tensor(name, data.astype(np.float32))
    elif kind == gguf.GGMLQuantizationType.F16:
        writer.add_tensor(name, data.astype(np.float16))
    else:
        packed = gguf.quants.quantize(data.astype(np.float32), kind)
        writer.add_tensor(name, packed, raw_dtype=kind)


def dequantized(model: Any, kind: gguf.GGMLQuantizationType) -> Any:
    """The model with its matrices rounded as the file rounds them."""
    rounded = []
    for name, weight in tree_flatten(model.parameters()):
        array = np.array(weight)
        if array.ndim > 1:
            array = gguf.quants.dequantize(gguf.quants.quantize(array, kind), kind)
        rounded.append((name, mx.array(array)))
    model.load_weights(rounded)
    return model
