"""The tokenizer that a GGUF file carries, built with Hugging Face's tokenizers."""

from __future__ import annotations

from typing import Any

from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, TokenizerWrapper
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ..errors import ModelFormatError, UnsupportedModelError
from .gguf_file import GGUFFile

# Token types, as the file numbers them.
CONTROL = 3
USER_DEFINED = 4

# Texts that end a reply whatever the file names as eos, as llama.cpp has it.
END_OF_GENERATION = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<EOT>",
)

_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _words(pattern: str) -> list[Any]:
    return [
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


# How text is cut into words before merging, by the name in `tokenizer.ggml.pre`.
PRE_TOKENIZERS: dict[str, list[Any]] = {
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ],
    "llama-bpe": _words(_LLAMA3_WORDS),
}
# Vocabularies in which a whole word that is a token is never split by merges.
IGNORE_MERGES = ("llama-bpe",)


def load_tokenizer(file: GGUFFile) -> TokenizerWrapper:
    """The tokenizer of a GGUF file, with its chat template and the ids that end a reply.

    Raises:
        UnsupportedModelError: Its kind or its pre-tokenizer is not supported.
        ModelFormatError: Its vocabulary is missing or inconsistent.
    """
    kind = file.text("tokenizer.ggml.model")
    if kind != "gpt2":
        raise UnsupportedModelError(
            f"{file.path} has a tokenizer of the kind {kind!r}, and Segue reads 'gpt2' alone.",
            remedy="Use the same model as an mlx-lm folder.",
        )
    pre = file.text("tokenizer.ggml.pre") or "gpt-2"
    if pre not in PRE_TOKENIZERS:
        raise UnsupportedModelError(
            f"{file.path} cuts words by the rule {pre!r}, which Segue does not know.",
            remedy=f"Use a model with one of {', '.join(PRE_TOKENIZERS)}, or an mlx-lm folder.",
        )
    tokens = _list(file, "tokenizer.ggml.tokens", str)
    merges = _list(file, "tokenizer.ggml.merges", str)
    types = _list(file, "tokenizer.ggml.token_type", int)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is not None and len(tokens) > embedding.shape[0]:
        raise ModelFormatError(
            f"{file.path} has {len(tokens)} tokens, but embeds {embedding.shape[0]} alone.",
            remedy="Convert the model again.",
        )
    if len(types) != len(tokens) or any(merge.count(" ") != 1 for merge in merges):
        raise ModelFormatError(
            f"The vocabulary in {file.path} contradicts itself.", remedy="Convert the model again."
        )
    ids = {token: index for index, token in enumerate(tokens)}
    try:
        model = models.BPE(
            vocab=ids,
            merges=[tuple(merge.split(" ")) for merge in merges],
            ignore_merges=pre in IGNORE_MERGES,
        )
    except Exception as error:  # tokenizers raises bare Exceptions
        raise ModelFormatError(
            f"The vocabulary in {file.path} can't be used: {error}.",
            remedy="Convert the model again.",
        ) from error
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(PRE_TOKENIZERS[pre])
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind_of_token in zip(tokens, types, strict=True):
        if kind_of_token in (CONTROL, USER_DEFINED):
            special = kind_of_token == CONTROL
            tokenizer.add_tokens([AddedToken(token, special=special, normalized=False)])

    def named(key: str) -> str | None:
        index = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        return tokens[index] if isinstance(index, int) and 0 <= index < len(tokens) else None

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=named("bos"),
        eos_token=named("eos"),
        unk_token=named("unknown"),
        pad_token=named("padding"),
        chat_template=file.text("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
    )
    ends = {named("eos"), named("eot"), named("eom"), *END_OF_GENERATION}
    return TokenizerWrapper(
        wrapped,
        BPEStreamingDetokenizer,
        eos_token_ids={ids[token] for token in ends if token in ids},
    )


def _list(file: GGUFFile, key: str, kind: type) -> list[Any]:
    values = file.metadata.get(key)
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise ModelFormatError(
            f"{file.path} has no usable {key}.",
            remedy="Convert the model again, with its vocabulary.",
        )
    return values
