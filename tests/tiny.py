"""Tiny random models over mlx-lm's architectures, and the oracle: a fresh prefill."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.models import llama, mamba, recurrent_gemma
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, TokenizerWrapper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from segue import ChatSession, MlxEngine
from segue.testing import ToyTokenizer

TOLERANCE = 1e-4
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


def fresh_logits(model: Any, ids: Sequence[int]) -> mx.array:
    """What the model says after these ids, read in one go into an empty cache."""
    return model(mx.array([list(ids)]), cache=make_prompt_cache(model))[0, -1]


def assert_close(got: mx.array, expected: mx.array) -> None:
    error = mx.abs(got - expected).max() / mx.abs(expected).max()
    assert error.item() < TOLERANCE, f"relative error {error.item():.1e}"
    assert mx.argmax(got).item() == mx.argmax(expected).item()


def check_next_logits(session: ChatSession, *, probe: int = 65) -> None:
    """The never-wrong invariant: the next logits are those of a fresh prefill of the same ids."""
    context: Any = session._cache.context
    ids = session._cache.ledger.ids
    assert len(ids) == context.offset
    for layer in context._state.layers:
        if hasattr(layer, "offset"):
            assert layer.offset == context.offset, "the layers are out of step"
    model = context._state.model
    if not ids:
        return
    cache = copy.deepcopy(context._state.layers)
    assert_close(model(mx.array([[probe]]), cache=cache)[0, -1], fresh_logits(model, [*ids, probe]))
