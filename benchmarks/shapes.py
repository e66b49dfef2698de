"""Models with random weights in the shapes of known ones, for machines without a model."""

from __future__ import annotations

from typing import NamedTuple

import segue
import segue.mlx  # a good BLAS, before MLX

# isort: split
import mlx.core as mx
from mlx_lm.models import llama
from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, TokenizerWrapper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


class Shape(NamedTuple):
    """The sizes of a llama; `tied`: its output weights are its embedding."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int
    tied: bool = True


SHAPES = {
    "tiny": Shape(64, 2, 4, 2, 128, 512),
    "135M": Shape(576, 30, 9, 3, 1536, 49152),
    "1B": Shape(2048, 16, 32, 8, 8192, 128256),
    "8B": Shape(4096, 32, 32, 8, 14336, 128256, tied=False),
}


def random_engine(name: str) -> segue.MlxEngine:
    """A llama with random bfloat16 weights, the same ones each time.

    Its tokenizer has a token for every byte, and is filled up to the vocabulary with tokens that
    no text encodes to; its template writes the messages' texts and nothing else.
    """
    shape = SHAPES[name]
    mx.random.seed(0)
    model = llama.Model(
        llama.ModelArgs(
            model_type="llama",
            hidden_size=shape.hidden,
            num_hidden_layers=shape.layers,
            intermediate_size=shape.inner,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            rms_norm_eps=1e-5,
            vocab_size=shape.vocabulary,
            tie_word_embeddings=shape.tied,
        )
    )
    model.set_dtype(mx.bfloat16)
    mx.eval(model.parameters())
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    names = [*alphabet, *(f"w{index}" for index in range(len(alphabet), shape.vocabulary))]
    tokenizer = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template)
    return segue.MlxEngine(
        model, TokenizerWrapper(wrapped, BPEStreamingDetokenizer), name=f"random llama {name}"
    )
