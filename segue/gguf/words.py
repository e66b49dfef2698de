"""Rules by which byte-level BPE tokenizers cut text into words, by their names in GGUF files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, pre_tokenizers


@dataclass(frozen=True, slots=True)
class Words:
    """One rule."""

    patterns: tuple[str, ...]
    """Each cuts the pieces that those before it left: what it matches is a piece, and so is what is
    between two matches."""
    whole_words: bool = False
    """True if a word that is a token is never split by merges."""
    bos: bool = False
    """True if a prompt starts with BOS by default."""

    def pre_tokenizer(self) -> Any:
        """Return the rule for Hugging Face's tokenizers."""
        cuts = [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in self.patterns
        ]
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*cuts, byte_level])


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}|{_REST}"
# Words end where a small letter is followed by a capital one. llama.cpp leaves out the combining
# marks (\p{M}) that these models' own tokenizers have here.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_HUMP = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+"
_CAPITALS = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|]+"
_THREE_DIGITS = "[0-9][0-9][0-9]"
_ASIAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_SENTENCE = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"

_BY_RULE = {
    ("default",): Words((_PUNCTUATION, _GPT2, r"\p{N}+", _THREE_DIGITS)),
    (
        "gpt-2",
        "phi-2",
        "mpt",
        "olmo",
        "gigachat",
        "a.x-4.0",
        "mellum",
        "exaone4",
        "trillion",
        "granite-docling",
    ): Words((_GPT2,)),
    (
        "smollm",
        "starcoder",
        "refact",
        "command-r",
        "codeshell",
        "exaone",
        "minerva-7b",
    ): Words((r"\p{N}", _GPT2)),
    (
        "llama-bpe",
        "llama3",
        "llama-v3",
        "falcon3",
        "falcon-h1",
        "pixtral",
        "midm-2.0",
        "lfm2",
    ): Words((_LLAMA3,), whole_words=True, bos=True),
    ("dbrx", "smaug-bpe"): Words((_LLAMA3,)),
    ("qwen2", "deepseek-r1-qwen", "kormo", "megrez", "stablelm2", "hunyuan"): Words((_QWEN2,)),
    ("tekken",): Words((rf"{_HUMP}|{_CAPITALS}|\p{{N}}|{_SLASHED}",), whole_words=True, bos=True),
    ("gpt-4o", "llama4", "kanana2"): Words(
        (rf"{_HUMP}{_CONTRACTIONS}?|{_CAPITALS}{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_SLASHED}",)
    ),
    ("seed-coder",): Words(
        (
            rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+"
            r"|\s+(?!\S)|\s+",
        )
    ),
    ("falcon",): Words((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, _THREE_DIGITS)),
    ("poro-chat", "bloom"): Words((_SENTENCE,)),
    ("viking",): Words((_SENTENCE, r"\p{N}")),
    ("deepseek-coder",): Words((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _ASIAN, r"\p{N}")),
    ("deepseek-llm",): Words(
        (
            r"[\r\n]",
            # Cased letters, but for Georgian and mathematical ones.
            "\\s?[[\\p{Lu}\\p{Ll}\\p{Lt}]&&[^\u10d0-\u10ff\U0001d400-\U0001d7ff]]+",
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
            r"\s+\z",
            _ASIAN,
            r"\p{N}+",
        )
    ),
    ("deepseek-v3", "hunyuan-dense"): Words(
        (
            r"\p{N}{1,3}",
            "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
            r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
            r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+"
            r"|\s+(?!\S)|\s+",
        )
    ),
}
WORDS = {name: words for names, words in _BY_RULE.items() for name in names}
