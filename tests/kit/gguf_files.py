"""Small GGUF files of our own, of every architecture and tensor type."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import sentencepiece
from gguf import GGMLQuantizationType as Kind
from mlx.utils import tree_flatten
from mlx_lm.models import gemma3_text, llama, qwen2, qwen3

from kit.models import CHATML, byte_level_tokenizer, randomize
from kit.probe import hugging_face

# Rows of 256 hold blocks of every type.
HEADS, KV_HEADS, HEAD_DIM, HIDDEN, INNER = 2, 1, 128, 256, 256
LAYERS, WINDOW, PATTERN = 2, 8, 2
EPSILON, THETA = 1e-5, 5000.0

KINDS = [Kind[name] for name in ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]]
K_KINDS = [Kind[name] for name in ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]]
# Where a block's half-precision scales stand, and what makes its values about those of a matrix.
K_SCALES = {
    Kind.Q2_K: {80: 2e-3, 82: 3e-3},
    Kind.Q3_K: {108: 5e-4},
    Kind.Q4_K: {0: 1.3e-4, 2: 1e-3},
    Kind.Q5_K: {0: 6e-5, 2: 1e-3},
    Kind.Q6_K: {208: 1.5e-5},
}

LLAMA_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
}
GEMMA3_NAMES = {
    **LLAMA_NAMES,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + "
    "message['role'].replace('assistant', 'model') + '\\n' + message['content'] + "
    "'<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


def reference(architecture: str, vocabulary: int, *, tied: bool = True, **settings: Any) -> Any:
    """mlx-lm's model as published: rotary embedding in halves, norms without an offset."""
    common = {
        "model_type": architecture,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "intermediate_size": INNER,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": EPSILON,
        "vocab_size": vocabulary,
        "rope_theta": THETA,
        "max_position_embeddings": 512,
        **settings,
    }
    if architecture == "gemma3":
        window = {"sliding_window": WINDOW, "sliding_window_pattern": PATTERN}
        scale = {"head_dim": HEAD_DIM, "query_pre_attn_scalar": HEAD_DIM}
        model = gemma3_text.Model(gemma3_text.ModelArgs(**{**window, **scale, **common}))
        if tied:
            model.sanitize({})
    elif architecture == "qwen2":
        model = qwen2.Model(qwen2.ModelArgs(tie_word_embeddings=tied, **common))
    else:
        module = {"llama": llama, "qwen3": qwen3}[architecture]
        model = module.Model(
            module.ModelArgs(tie_word_embeddings=tied, head_dim=HEAD_DIM, **common)
        )
    return randomize(model)


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows reordered for interleaved rotary embedding, as converters to GGUF do."""
    halves = weight.reshape(heads, 2, len(weight) // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def unpermuted(weight: np.ndarray, heads: int) -> np.ndarray:
    pairs = weight.reshape(heads, len(weight) // heads // 2, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def file_name(architecture: str, name: str) -> str:
    """A tensor's name in the file."""
    if name.startswith("model.layers."):
        _, _, layer, rest = name.split(".", 3)
        stem, kind = rest.rsplit(".", 1)
        names = GEMMA3_NAMES if architecture == "gemma3" else LLAMA_NAMES
        return f"blk.{layer}.{names[stem]}.{kind}"
    return {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }[name]


def pack(weight: np.ndarray, kind: Kind, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A matrix as the file holds it, and the values that it then has.

    `gguf` can't quantize to K-quants: for those, the blocks are random, whatever the matrix.
    """
    if kind not in K_SCALES:
        packed = gguf.quants.quantize(weight.astype(np.float32), kind)
    else:
        values, size = gguf.GGML_QUANT_SIZES[kind]
        rows = (*weight.shape[:-1], weight.shape[-1] // values, size)
        blocks = np.random.default_rng(seed).integers(0, 256, rows, dtype=np.uint8)
        for at, scale in K_SCALES[kind].items():
            blocks[..., at : at + 2] = np.array([scale], np.float16).view(np.uint8)
        packed = blocks.reshape(*weight.shape[:-1], -1)
    return packed, gguf.quants.dequantize(packed, kind).reshape(weight.shape)


def write_model(
    path: Path,
    architecture: str = "llama",
    *,
    kind: Kind = Kind.F32,
    tied: bool = True,
    called: str | None = None,
    metadata: dict[str, Any] | None = None,
    template: str | None = "",
    pre: str | None = "gpt-2",
    tokens: dict[str, Any] | None = None,
    more_tokens: int = 0,
    left_out: tuple[str, ...] = (),
    extra: dict[str, np.ndarray] | None = None,
    **settings: Any,
) -> Any:
    """Write a tiny model with its tokenizer; returns mlx-lm's model that it should load as.

    Args:
        called: Another name of the architecture.
        metadata: Key-value pairs that replace or join those written; ``None`` leaves one out.
        template: ``None`` for none; empty for the architecture's own.
        tokens: A vocabulary, as metadata under ``tokenizer.ggml``; by default the architecture's.
        settings: Of mlx-lm's model.
    """
    if tokens is None:
        tokens = gemma_vocabulary() if architecture == "gemma3" else byte_level_vocabulary(pre)
    model = reference(architecture, len(tokens["tokens"]), tied=tied, **settings)
    args = model.args
    pairs: dict[str, Any] = {
        f"{architecture}.{key}": value
        for key, value in {
            "block_count": args.num_hidden_layers,
            "context_length": args.max_position_embeddings,
            "embedding_length": args.hidden_size,
            "feed_forward_length": args.intermediate_size,
            "attention.head_count": HEADS,
            "attention.head_count_kv": KV_HEADS,
            "attention.layer_norm_rms_epsilon": EPSILON,
            "attention.key_length": HEAD_DIM,
            "attention.value_length": HEAD_DIM,
            "rope.freq_base": args.rope_theta,
        }.items()
    }
    if architecture == "gemma3":
        pairs["gemma3.attention.sliding_window"] = args.sliding_window
        pairs["gemma3.attention.sliding_window_pattern"] = args.sliding_window_pattern
    pairs |= {f"tokenizer.ggml.{key}": value for key, value in tokens.items()}
    pairs["tokenizer.ggml.tokens"] = [
        *tokens["tokens"],
        *map("<more {}>".format, range(more_tokens)),
    ]
    pairs["tokenizer.ggml.token_type"] = [*tokens["token_type"], *[1] * more_tokens]
    if template is not None:
        own = GEMMA_TEMPLATE if architecture == "gemma3" else CHATML
        pairs["tokenizer.chat_template"] = template or own
    writer = gguf.GGUFWriter(path, called or architecture)
    for key, value in {**pairs, **(metadata or {})}.items():
        if value is not None:
            add_pair(writer, key, value)
    loaded = []
    for seed, (name, weight) in enumerate(tree_flatten(model.parameters())):
        values = np.array(weight)
        stored, heads = values, HEADS if "q_proj" in name else KV_HEADS
        interleaved = architecture == "llama" and ("q_proj" in name or "k_proj" in name)
        if interleaved:
            stored = permuted(values, heads)
        if stored.ndim > 1:
            stored, values = pack(stored, kind, seed)
            values = unpermuted(values, heads) if interleaved else values
        elif architecture == "gemma3":
            stored = stored + np.float32(1)
        loaded.append((name, mx.array(values)))
        if (written := file_name(architecture, name)) not in left_out:
            raw = None if kind in (Kind.F32, Kind.F16) or stored.ndim < 2 else kind
            writer.add_tensor(written, stored, raw_dtype=raw)
    for name, tensor in (extra or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model.load_weights(loaded)
    return model


def add_pair(writer: Any, key: str, value: Any) -> None:
    kinds = {
        bool: "BOOL",
        str: "STRING",
        int: "UINT32",
        float: "FLOAT32",
        np.float64: "FLOAT64",
        list: "ARRAY",
    }
    inner = None
    if isinstance(value, list):
        inner = {int: "INT32"}.get(type(value[0]), kinds[type(value[0])])
    writer.add_key_value(
        key,
        value,
        gguf.GGUFValueType[kinds[type(value)]],
        gguf.GGUFValueType[inner] if inner else None,
    )


def byte_level_vocabulary(pre: str | None = "gpt-2") -> dict[str, Any]:
    """What a file says of `tiny.byte_level_tokenizer`."""
    tokenizer = byte_level_tokenizer()
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    special = {"<|im_start|>", "<|im_end|>"}
    merges = json.loads(hugging_face(tokenizer).backend_tokenizer.to_str())["model"]["merges"]
    return {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": [3 if token in special else 1 for token in tokens],
        "merges": [" ".join(pair) for pair in merges],
        "eos_token_id": vocabulary["<|im_end|>"],
    }


@functools.cache
def sentencepiece_model(*, space_prefix: bool) -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece BPE model of a few words, as gemma and llama 2 have theirs."""
    written = io.BytesIO()
    texts = ["the quick brown fox says hello to the world, again and again 123"] * 4
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*texts, "naïve café", "aaaa bbbb aa bbb", "  indented   text"]),
        model_writer=written,
        model_type="bpe",
        byte_fallback=True,
        vocab_size=360,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=space_prefix,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        control_symbols=["<start_of_turn>", "<end_of_turn>"],
        user_defined_symbols=["\n\n", "\n\n\n", "<tag>"],
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


def gemma_vocabulary(*, space_prefix: bool = False) -> dict[str, Any]:
    """What a file says of `sentencepiece_model`."""
    model = sentencepiece_model(space_prefix=space_prefix)
    pieces = range(model.get_piece_size())

    def kind(piece: int) -> int:
        if model.is_unknown(piece):
            return 2
        if model.is_control(piece):
            return 3
        if model.id_to_piece(piece) in ("\n\n", "\n\n\n", "<tag>"):
            return 4
        return 6 if model.is_byte(piece) else 1

    return {
        "model": "llama",
        "tokens": [model.id_to_piece(piece) for piece in pieces],
        "scores": [model.get_score(piece) for piece in pieces],
        "token_type": [kind(piece) for piece in pieces],
        "bos_token_id": 2,
        "eos_token_id": 1,
        "unknown_token_id": 3,
        "padding_token_id": 0,
        "add_space_prefix": space_prefix,
    }


# A process begins with the peak that getrusage knows of its parent; /proc counts its own alone.
MEASURE = """
import resource, sys
from pathlib import Path
import segue.mlx
import mlx.core as mx
from mlx.utils import tree_flatten
from segue.gguf.header import GGUFFile
from segue.mlx.gguf.model import load_model
def peak():
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
file = GGUFFile.open(Path(sys.argv[1]))
mx.eval(mx.zeros(8) + 1)
before = peak()
model = load_model(file, float32=sys.argv[2] == "float32")
held = sum(weight.nbytes for _, weight in tree_flatten(model.parameters()))
print(held, peak() - before)
"""
