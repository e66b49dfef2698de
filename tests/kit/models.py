"""Tiny random models, one for each kind of cache that mlx-lm has, and engines over them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map
from mlx_lm.models import baichuan_m1, llama, llama4, longcat_flash_ngram, mamba, recurrent_gemma
from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, TokenizerWrapper
from mlx_lm.utils import save_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from segue import MlxEngine
from segue.testing import ToyTokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def randomize(model: Any, *, seed: int = 0) -> Any:
    """The model with random weights, large enough that its logits tell tokens apart."""
    key = mx.random.key(seed)

    def draw(weight: mx.array) -> mx.array:
        nonlocal key
        key, drawn = mx.random.split(key)
        noise = mx.random.normal(weight.shape, key=drawn)
        return noise * (weight.shape[-1] ** -0.5) if weight.ndim > 1 else 1 + 0.1 * noise

    model.update(tree_map(draw, model.parameters()))
    model.eval()
    mx.eval(model.parameters())
    return model


def tiny_llama(
    vocabulary: int, *, window: int | None = None, head_dim: int = 32, layers: int = 4
) -> Any:
    """A few layers; with a window, every second one slides."""
    kinds = ["sliding_attention", "full_attention"] * (layers // 2) if window else None
    return randomize(
        llama.Model(
            llama.ModelArgs(
                model_type="llama",
                hidden_size=64,
                num_hidden_layers=layers,
                intermediate_size=96,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=head_dim,
                rms_norm_eps=1e-5,
                vocab_size=vocabulary,
                layer_types=kinds,
                sliding_window=window,
            )
        )
    )


def tiny_mamba(vocabulary: int) -> Any:
    """Two recurrent layers: a state that can't be trimmed and has no offset."""
    return randomize(
        mamba.Model(
            mamba.ModelArgs(
                model_type="mamba",
                vocab_size=vocabulary,
                hidden_size=32,
                intermediate_size=64,
                state_size=8,
                num_hidden_layers=2,
                conv_kernel=4,
                use_bias=False,
                use_conv_bias=True,
                time_step_rank=4,
            )
        )
    )


def tiny_hybrid(vocabulary: int) -> Any:
    """Recurrent layers beside sliding attention."""
    return randomize(
        recurrent_gemma.Model(
            recurrent_gemma.ModelArgs(
                model_type="recurrent_gemma",
                attention_bias=False,
                conv1d_width=4,
                hidden_size=32,
                intermediate_size=64,
                logits_soft_cap=30.0,
                num_attention_heads=2,
                num_hidden_layers=3,
                num_key_value_heads=1,
                rms_norm_eps=1e-5,
                rope_theta=10000.0,
                attention_window_size=24,
                vocab_size=vocabulary,
                block_types=["recurrent", "recurrent", "attention"],
            )
        )
    )


def tiny_chunked(vocabulary: int) -> Any:
    """Three layers that keep a chunk of 8 tokens, and one that keeps all."""
    text = {
        "attention_bias": False,
        "attention_chunk_size": 8,
        "head_dim": 16,
        "hidden_size": 32,
        "interleave_moe_layer_step": 2,
        "intermediate_size": 32,
        "intermediate_size_mlp": 32,
        "max_position_embeddings": 1000,
        "model_type": "llama4",
        "num_attention_heads": 2,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 4,
        "num_key_value_heads": 1,
        "num_local_experts": 2,
        "rms_norm_eps": 1e-4,
        "rope_scaling": None,
        "rope_theta": 1000,
        "use_qk_norm": True,
        "vocab_size": vocabulary,
    }
    return randomize(llama4.Model(llama4.ModelArgs(model_type="llama4", text_config=text)))


def tiny_lists(vocabulary: int) -> Any:
    """Each layer keeps recurrent state and keys, the keys of every second one in a window."""
    return randomize(
        baichuan_m1.Model(
            baichuan_m1.ModelArgs(
                vocab_size=vocabulary,
                hidden_size=32,
                intermediate_size=32,
                num_hidden_layers=4,
                num_attention_heads=2,
                num_key_value_heads=1,
                rope_theta=1000.0,
                sliding_window=8,
                sliding_window_layers=[1, 3],
                conv_window=2,
                rms_norm_eps=1e-5,
            )
        )
    )


def tiny_ngram(vocabulary: int) -> Any:
    """The last few token ids beside lists of two latent caches a layer."""
    return randomize(
        longcat_flash_ngram.Model(
            longcat_flash_ngram.ModelArgs(
                attention_bias=False,
                emb_neighbor_num=4,
                emb_split_num=4,
                expert_ffn_hidden_size=32,
                ffn_hidden_size=32,
                hidden_size=32,
                kv_lora_rank=16,
                max_position_embeddings=1000,
                mla_scale_kv_lora=True,
                mla_scale_q_lora=True,
                model_type="longcat_flash_ngram",
                moe_topk=2,
                n_routed_experts=2,
                ngram_vocab_size_ratio=8,
                norm_topk_prob=False,
                num_attention_heads=2,
                num_layers=2,
                q_lora_rank=16,
                qk_nope_head_dim=8,
                qk_rope_head_dim=8,
                rms_norm_eps=1e-5,
                rope_scaling=None,
                rope_theta=1000,
                routed_scaling_factor=1.0,
                router_bias=False,
                v_head_dim=8,
                vocab_size=vocabulary,
                zero_expert_num=2,
                zero_expert_type="identity",
            )
        )
    )


def byte_level_tokenizer(template: str | None = CHATML) -> TokenizerWrapper:
    """A byte-level BPE tokenizer as mlx-lm wraps it, trained on a few words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox says hello to the world"] * 4, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )
    return TokenizerWrapper(wrapped, BPEStreamingDetokenizer)


def disturbed(engine: MlxEngine, make: Any = tiny_llama, *, noise: float, **kwargs: Any) -> Any:
    """A draft for an engine: another of its kind that often, but not always, agrees with it."""
    key = mx.random.key(7)

    def disturb(weight: mx.array) -> mx.array:
        nonlocal key
        key, drawn = mx.random.split(key)
        return weight + noise * mx.random.normal(weight.shape, key=drawn) * weight.shape[-1] ** -0.5

    draft = toy_engine(make, **kwargs)
    draft.model.update(tree_map(disturb, engine.model.parameters()))
    mx.eval(draft.model.parameters())
    return draft


def toy_engine(make: Any = tiny_llama, **kwargs: Any) -> MlxEngine:
    """An engine of a tiny model with the toy tokenizer."""
    tokenizer = ToyTokenizer()
    return MlxEngine(make(len(tokenizer), **kwargs), tokenizer, name="tiny")


def write_folder(folder: Path, *, dtype: mx.Dtype = mx.float32, bits: int | None = None) -> Any:
    """An mlx-lm folder of a tiny llama; returns the model it should load as."""
    tokenizer = byte_level_tokenizer()
    model = tiny_llama(len(tokenizer))
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "intermediate_size": 96,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "rms_norm_eps": 1e-5,
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
    }
    if bits is not None:
        nn.quantize(model, group_size=32, bits=bits)
        config["quantization"] = {"group_size": 32, "bits": bits}
    model.set_dtype(dtype)
    folder.mkdir(exist_ok=True)
    save_model(folder, model)
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save_pretrained(folder)
    return model
