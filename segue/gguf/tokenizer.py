"""The tokenizer in a GGUF file, built with Hugging Face's tokenizers.

How it works: a file has a vocabulary (tokens, their types, and merges or scores) and names the kind
of tokenizer that it belongs to. Each kind has a function here that gives an empty Hugging Face
tokenizer its model:

- ``gpt2``: byte-level BPE. The merges are in the file; text is cut into words by the rule that the
  file names (`words.py`).
- ``llama``: SentencePiece. The file has a score for each piece instead of merges, and SentencePiece
  joins the two neighbours whose piece has the best score. So each way to cut a piece in two is a
  merge, and ranks as the piece does.

Then control tokens become special tokens, and the file's roles (BOS, EOS, ...) are filled. A reply
ends at what the file names as end of text, turn or message, and at a few texts that end it in any
case, as in llama.cpp. Where the file demands BOS at the start of every prompt, the chat template is
wrapped to write it: encoding adds nothing, for what is encoded in the middle of a conversation must
not have one.

What does not work:

- Other kinds of tokenizer, and other rules for words: they are refused by name.
- Use without MLX: the wrapper is mlx-lm's (``mlx_lm.tokenizer_utils``), and importing that imports
  MLX.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from ..errors import ModelFormatError, UnsupportedModelError
from ..tokenizers.control import END_OF_GENERATION
from .header import GGUFFile
from .words import WORDS, Words

# Token types, as the file numbers them.
UNDEFINED, NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 0, 1, 2, 3, 4

# Roles of special tokens in Hugging Face's tokenizers, and their names in files.
ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
# SentencePiece's own numbers, which old files leave out.
SENTENCEPIECE_IDS = {"unknown": 0, "bos": 1, "eos": 2}

# What stands for a space in SentencePiece's vocabularies.
SPACE = "\u2581"

# gpt-oss ends each of several messages in a reply by the last of these, and the reply by another.
SEVERAL_MESSAGES = ("<|return|>", "<|call|>", "<|end|>")


def load_tokenizer(file: GGUFFile) -> TokenizerWrapper:
    """Return the tokenizer of a GGUF file, with its chat template and the ids that end a reply.

    Raises:
        UnsupportedModelError: if its kind or its rule for words is not supported.
        ModelFormatError: if its vocabulary is missing or inconsistent.
    """
    vocabulary = _Vocabulary(file)
    # A quarter of a million tokens take seconds to copy, and a tokenizer copies what it is made of:
    # so it gets its model afterwards.
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()),
        chat_template=file.text("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
    )
    try:
        _KINDS[vocabulary.kind](wrapped.backend_tokenizer, vocabulary)
    except (ModelFormatError, UnsupportedModelError):
        raise
    except Exception as error:  # tokenizers raises bare Exceptions
        raise ModelFormatError(
            f"The vocabulary in {file.path} can't be used: {error}.",
            remedy="Convert the model again.",
        ) from error
    _add_special_tokens(wrapped, vocabulary)
    return TokenizerWrapper(
        wrapped,
        eos_token_ids=vocabulary.ends,
        chat_template=_with_bos(wrapped) if vocabulary.demands_bos else None,
    )


@dataclass(frozen=True)
class _Vocabulary:
    """A file's vocabulary, checked as far as all kinds have it in common."""

    file: GGUFFile

    def __post_init__(self) -> None:
        embedding = self.file.tensors.get("token_embd.weight")
        if self.kind not in _KINDS:
            raise UnsupportedModelError(
                f"{self.file.path} has a tokenizer of the kind {self.kind!r}, and Segue reads only "
                f"{' and '.join(map(repr, _KINDS))}.",
                remedy="Use the same model as an mlx-lm folder.",
            )
        if embedding is not None and len(self.tokens) > embedding.shape[0]:
            raise ModelFormatError(
                f"{self.file.path} has {len(self.tokens)} tokens, but embeddings for only "
                f"{embedding.shape[0]}.",
                remedy="Convert the model again.",
            )
        if len(self.types) != len(self.tokens) or len(self.ids) != len(self.tokens):
            raise self.contradiction()

    @cached_property
    def kind(self) -> str:
        """The kind of tokenizer that it belongs to."""
        return self.file.text("tokenizer.ggml.model") or ""

    @cached_property
    def tokens(self) -> list[str]:
        """The tokens, by id."""
        return self.values("tokens", str)

    @cached_property
    def types(self) -> list[int]:
        """The tokens' types, by id."""
        return self.values("token_type", int)

    @cached_property
    def ids(self) -> dict[str, int]:
        """The tokens' ids."""
        return {token: index for index, token in enumerate(self.tokens)}

    @cached_property
    def words(self) -> Words:
        """The rule by which text is cut into words; of byte-level vocabularies.

        Raises:
            UnsupportedModelError: if the rule is not supported.
        """
        pre = self.file.text("tokenizer.ggml.pre") or "default"
        if pre not in WORDS:
            raise UnsupportedModelError(
                f"{self.file.path} cuts words by the rule {pre!r}, which Segue does not know.",
                remedy=f"Use a model with one of {', '.join(WORDS)}, or an mlx-lm folder.",
            )
        return WORDS[pre]

    @property
    def ends(self) -> set[int]:
        """The ids that end a reply."""
        ends = {self.special("eos"), self.special("eot"), self.special("eom"), *END_OF_GENERATION}
        if all(token in self.ids for token in SEVERAL_MESSAGES):
            ends.discard(SEVERAL_MESSAGES[-1])
        return {self.ids[token] for token in ends if token in self.ids}

    @property
    def demands_bos(self) -> bool:
        """True if every prompt starts with BOS, template or not; by default as in llama.cpp."""
        demanded = self.file.metadata.get("tokenizer.ggml.add_bos_token")
        if isinstance(demanded, bool):
            return demanded
        return self.kind == "llama" or self.words.bos

    def special(self, role: str) -> str | None:
        """Return the token that has a role, such as ``"eos"``, if the file names one."""
        default = SENTENCEPIECE_IDS.get(role) if self.kind == "llama" else None
        index = self.file.metadata.get(f"tokenizer.ggml.{role}_token_id", default)
        if not isinstance(index, int) or not 0 <= index < len(self.tokens):
            return None
        return self.tokens[index]

    def values(self, key: str, *kinds: type) -> list[Any]:
        """Return a list of the file's metadata.

        Raises:
            ModelFormatError: if there is none, or an item is not of one of these types.
        """
        values = self.file.metadata.get(f"tokenizer.ggml.{key}")
        if not isinstance(values, list) or not set(map(type, values)) <= set(kinds):
            raise ModelFormatError(
                f"{self.file.path} has no usable tokenizer.ggml.{key}.",
                remedy="Convert the model again, with its vocabulary.",
            )
        return values

    def contradiction(self) -> ModelFormatError:
        """Return the error for a vocabulary whose lists don't fit together."""
        return ModelFormatError(
            f"The vocabulary in {self.file.path} contradicts itself.",
            remedy="Convert the model again.",
        )


def _byte_level(tokenizer: Tokenizer, vocabulary: _Vocabulary) -> None:
    """Kind ``gpt2``: merges in order, over bytes."""
    merges = vocabulary.values("merges", str)
    if any(merge.count(" ") != 1 for merge in merges):
        raise vocabulary.contradiction()
    words = vocabulary.words
    tokenizer.model = models.BPE(
        vocab=vocabulary.ids,
        merges=[tuple(merge.split(" ")) for merge in merges],
        ignore_merges=words.whole_words,
    )
    tokenizer.pre_tokenizer = words.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()


def _sentencepiece(tokenizer: Tokenizer, vocabulary: _Vocabulary) -> None:
    """Kind ``llama``: the best-scored pieces first, over characters; bytes for unknown ones."""
    scores = vocabulary.values("scores", int, float)
    if len(scores) != len(vocabulary.ids):
        raise vocabulary.contradiction()
    tokenizer.model = models.BPE(
        vocab=vocabulary.ids,
        merges=_merges(vocabulary, scores),
        unk_token=vocabulary.special("unknown"),
        fuse_unk=True,
        byte_fallback=True,
    )
    spaced = bool(vocabulary.file.metadata.get("tokenizer.ggml.add_space_prefix", True))
    prefixed = [normalizers.Prepend(SPACE)] if spaced else []
    tokenizer.normalizer = normalizers.Sequence([*prefixed, normalizers.Replace(" ", SPACE)])
    trimmed = [decoders.Strip(" ", 1, 0)] if spaced else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *trimmed]
    )


def _merges(vocabulary: _Vocabulary, scores: list[float]) -> list[tuple[str, str]]:
    """Return the pairs of pieces that make a piece, in the order that SentencePiece merges them."""
    types = vocabulary.types
    pieces = {
        token: index
        for token, index in vocabulary.ids.items()
        if types[index] in (UNDEFINED, NORMAL)
    }
    return [
        (piece[:cut], piece[cut:])
        for piece in sorted(pieces, key=lambda piece: (-scores[pieces[piece]], pieces[piece]))
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]


_KINDS = {"gpt2": _byte_level, "llama": _sentencepiece}


def _add_special_tokens(tokenizer: Any, vocabulary: _Vocabulary) -> None:
    """Have a tokenizer never cut its control tokens, and know which of them are BOS, EOS, ..."""
    tokenizer.backend_tokenizer.add_tokens(
        [
            AddedToken(token, special=kind != USER_DEFINED, normalized=False)
            for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
            if kind in (UNKNOWN, CONTROL, USER_DEFINED) or token in END_OF_GENERATION
        ]
    )
    named = {f"{role}_token": vocabulary.special(name) for role, name in ROLES.items()}
    tokenizer.add_special_tokens(
        {role: token for role, token in named.items() if token is not None}
    )


def _with_bos(tokenizer: Any) -> Callable[..., str] | None:
    """Return a tokenizer's chat template, with BOS before what does not start with it."""
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
