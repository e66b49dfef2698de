"""The tokenizer that a GGUF file carries, built with Hugging Face's tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from mlx_lm.tokenizer_utils import (
    BPEStreamingDetokenizer,
    SPMStreamingDetokenizer,
    TokenizerWrapper,
)
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from ..errors import ModelFormatError, UnsupportedModelError
from .header import GGUFFile
from .words import WORDS, Words

# Token types, as the file numbers them.
UNDEFINED, NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 0, 1, 2, 3, 4

# What stands for a space in SentencePiece's vocabularies.
SPACE = "\u2581"

# Texts that end a reply whatever the file names as eos, as llama.cpp has it.
END_OF_GENERATION = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<end_of_utterance>",
)


def load_tokenizer(file: GGUFFile) -> TokenizerWrapper:
    """The tokenizer of a GGUF file, with its chat template and the ids that end a reply.

    Where the file demands a BOS in front of every prompt, what its template renders has one.

    Raises:
        UnsupportedModelError: Its kind or its pre-tokenizer is not supported.
        ModelFormatError: Its vocabulary is missing or inconsistent.
    """
    kind = file.text("tokenizer.ggml.model")
    if kind not in _KINDS:
        raise UnsupportedModelError(
            f"{file.path} has a tokenizer of the kind {kind!r}, and Segue reads "
            f"{' and '.join(map(repr, _KINDS))} alone.",
            remedy="Use the same model as an mlx-lm folder.",
        )
    tokens = _list(file, "tokenizer.ggml.tokens", str)
    types = _list(file, "tokenizer.ggml.token_type", int)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is not None and len(tokens) > embedding.shape[0]:
        raise ModelFormatError(
            f"{file.path} has {len(tokens)} tokens, but embeds {embedding.shape[0]} alone.",
            remedy="Convert the model again.",
        )
    ids = {token: index for index, token in enumerate(tokens)}
    if len(types) != len(tokens) or len(ids) != len(tokens):
        raise _contradiction(file)
    # Given its model below: what it is made of here, it copies, and a quarter of a million tokens
    # take seconds.
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()),
        chat_template=file.text("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
    )
    try:
        detokenizer = _KINDS[kind](wrapped.backend_tokenizer, file, ids, types)
    except (ModelFormatError, UnsupportedModelError):
        raise
    except Exception as error:  # tokenizers raises bare Exceptions
        raise ModelFormatError(
            f"The vocabulary in {file.path} can't be used: {error}.",
            remedy="Convert the model again.",
        ) from error
    wrapped.backend_tokenizer.add_tokens(
        [
            AddedToken(token, special=kind_of_token != USER_DEFINED, normalized=False)
            for token, kind_of_token in zip(tokens, types, strict=True)
            if kind_of_token in (UNKNOWN, CONTROL, USER_DEFINED) or token in END_OF_GENERATION
        ]
    )
    # SentencePiece's own numbers, which old files leave out.
    names = {"unknown": 0, "bos": 1, "eos": 2} if kind == "llama" else {}

    def named(key: str) -> str | None:
        index = file.metadata.get(f"tokenizer.ggml.{key}_token_id", names.get(key))
        return tokens[index] if isinstance(index, int) and 0 <= index < len(tokens) else None

    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    wrapped.add_special_tokens(
        {f"{role}_token": named(key) for role, key in roles.items() if named(key) is not None}
    )
    ends = {named("eos"), named("eot"), named("eom"), *END_OF_GENERATION}
    return TokenizerWrapper(
        wrapped,
        detokenizer,
        eos_token_ids={ids[token] for token in ends if token in ids},
        chat_template=_with_bos(wrapped) if _demands_bos(file, kind) else None,
    )


def _byte_level(tokenizer: Tokenizer, file: GGUFFile, ids: dict[str, int], types: list[int]) -> Any:
    """Kind ``gpt2``: merges in order, over bytes."""
    merges = _list(file, "tokenizer.ggml.merges", str)
    if any(merge.count(" ") != 1 for merge in merges):
        raise _contradiction(file)
    words = _words(file)
    tokenizer.model = models.BPE(
        vocab=ids,
        merges=[tuple(merge.split(" ")) for merge in merges],
        ignore_merges=words.whole_words,
    )
    tokenizer.pre_tokenizer = words.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return BPEStreamingDetokenizer


def _words(file: GGUFFile) -> Words:
    pre = file.text("tokenizer.ggml.pre") or "default"
    if pre not in WORDS:
        raise UnsupportedModelError(
            f"{file.path} cuts words by the rule {pre!r}, which Segue does not know.",
            remedy=f"Use a model with one of {', '.join(WORDS)}, or an mlx-lm folder.",
        )
    return WORDS[pre]


def _sentencepiece(
    tokenizer: Tokenizer, file: GGUFFile, ids: dict[str, int], types: list[int]
) -> Any:
    """Kind ``llama``: the best-scored pieces first, over characters; bytes for unknown ones."""
    scores = _list(file, "tokenizer.ggml.scores", int, float)
    if len(scores) != len(ids):
        raise _contradiction(file)
    unknown = file.metadata.get("tokenizer.ggml.unknown_token_id", 0)
    tokenizer.model = models.BPE(
        vocab=ids,
        merges=_merges(ids, types, scores),
        unk_token=next((token for token, index in ids.items() if index == unknown), None),
        fuse_unk=True,
        byte_fallback=True,
    )
    spaced = bool(file.metadata.get("tokenizer.ggml.add_space_prefix", True))
    marked = [normalizers.Prepend(SPACE)] if spaced else []
    tokenizer.normalizer = normalizers.Sequence([*marked, normalizers.Replace(" ", SPACE)])
    trimmed = [decoders.Strip(" ", 1, 0)] if spaced else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *trimmed]
    )
    return partial(SPMStreamingDetokenizer, trim_space=spaced)


def _merges(ids: dict[str, int], types: list[int], scores: list[float]) -> list[tuple[str, str]]:
    """The pairs of pieces that make a piece, in the order that SentencePiece merges them in.

    It joins the two neighbours whose piece has the best score, so a merge ranks as its piece does.
    """
    pieces = {token: index for token, index in ids.items() if types[index] in (UNDEFINED, NORMAL)}
    return [
        (piece[:cut], piece[cut:])
        for piece in sorted(pieces, key=lambda piece: (-scores[pieces[piece]], pieces[piece]))
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]


def _demands_bos(file: GGUFFile, kind: str) -> bool:
    """Whether every prompt starts with BOS, template or not; llama.cpp's defaults."""
    demanded = file.metadata.get("tokenizer.ggml.add_bos_token")
    if isinstance(demanded, bool):
        return demanded
    return kind == "llama" or _words(file).bos


def _with_bos(tokenizer: Any) -> Callable[..., str] | None:
    """The chat template of a tokenizer, with BOS in front of what does not start with it."""
    if tokenizer.chat_template is None or tokenizer.bos_token is None:
        return None

    def render(messages: list[Any], **settings: Any) -> str:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, **settings))
        # What a template renders to nothing stays nothing: an error to whoever asked.
        return (
            text
            if not text or text.startswith(tokenizer.bos_token)
            else (tokenizer.bos_token + text)
        )

    return render


_KINDS = {"gpt2": _byte_level, "llama": _sentencepiece}


def _contradiction(file: GGUFFile) -> ModelFormatError:
    return ModelFormatError(
        f"The vocabulary in {file.path} contradicts itself.", remedy="Convert the model again."
    )


def _list(file: GGUFFile, key: str, *kinds: type) -> list[Any]:
    values = file.metadata.get(key)
    if not isinstance(values, list) or not set(map(type, values)) <= set(kinds):
        raise ModelFormatError(
            f"{file.path} has no usable {key}.",
            remedy="Convert the model again, with its vocabulary.",
        )
    return values
