"""How a reply is generated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .errors import ConfigurationError

if TYPE_CHECKING:
    from .engine import Engine

PROMPT_LOOKUP = "prompt-lookup"

LogitsProcessor = Callable[[Any, Any], Any]
"""``(tokens, logits) -> logits``, in the engine's own arrays, as in mlx-lm.

`tokens` (shape ``(n,)``) are all ids of the conversation so far, oldest first; `logits` has shape
``(1, vocabulary)``.
"""

KV_BITS = (2, 3, 4, 5, 6, 8)
KV_GROUP_SIZES = (32, 64, 128)
# A bounded cache always keeps its first four tokens, and needs room beside them.
SMALLEST_KV_SIZE = 8
# Beyond this, no draft is right often enough to pay for what it makes the model read.
MOST_DRAFT_TOKENS = 64
# MLX takes sizes as 32-bit integers, and logits overflow long before their type does.
LARGEST_INT = 2**31 - 1
LARGEST = 1e9


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """Settings of a reply; immutable (``dataclasses.replace`` makes a changed one).

    Names and meanings are mlx-lm's wherever it has them.

    Args:
        max_tokens: The most tokens a reply may have; 0 reads the prompt and records an empty reply.
        temperature: 0 takes the likeliest token; higher samples more freely.
        top_p: Sample from the likeliest tokens that together hold this probability (nucleus
            sampling, Holtzman et al. 2020). 0 and 1 turn it off.
        min_p: Drop tokens below this share of the likeliest one's probability (Nguyen et al. 2024).
        min_tokens_to_keep: How many tokens `min_p` always leaves.
        top_k: Sample from this many of the likeliest tokens; 0 turns it off.
        xtc_probability: How often, per token, the likeliest candidates are excluded (XTC).
        xtc_threshold: The probability above which XTC excludes all candidates but the last; 0 to
            0.5.
        repetition_penalty: Divide the logits of tokens seen lately by this (Keskar et al. 2019);
            1 changes nothing.
        repetition_context_size: How many of the conversation's last tokens count as "lately".
        presence_penalty: Subtract this from the logits of tokens seen lately.
        presence_context_size: Its window, in tokens.
        frequency_penalty: Subtract this for each time that a token was seen lately.
        frequency_context_size: Its window, in tokens.
        logit_bias: Added to the logits of these token ids.
        stop: Strings (or one string) that end the reply where they appear; not part of it.
        seed: Makes sampling repeatable: each turn starts from it, so the same prompt gets the same
            reply. ``None`` draws from the engine's own random state.
        logprobs: How many of the likeliest tokens each response reports; 0 reports none.
        prefill_step_size: How many prompt tokens are fed at a time.
        kv_bits: Quantize the KV cache to this many bits (2, 3, 4, 5, 6 or 8); ``None`` keeps it
            whole.
        kv_group_size: Values that share a scale in a quantized cache: 32, 64 or 128.
        quantized_kv_start: Tokens the cache holds before quantizing begins.
        max_kv_size: Keep at most this many tokens in the cache (those of the instructions, and the
            latest); 8 or more, not together with `kv_bits`. ``None`` keeps all. Refused where all
            layers bring bounded caches of their own.
        max_marks: How many places a cache that can't be trimmed (a sliding window past its size, a
            recurrent state) can come back to; 0 for none.
        max_mark_bytes: The most memory that those may take, in bytes.
        logits_processors: More processors, applied after penalties and bias. Each turn works on
            deep copies of them, so what an object gathers in one turn never reaches the next.
            (Python copies no functions: one that gathers state in a closure keeps it.)

    Raises:
        ConfigurationError: A value is out of its range or of the wrong type.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    min_p: float = 0.0
    min_tokens_to_keep: int = 1
    top_k: int = 0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repetition_penalty: float | None = None
    repetition_context_size: int = 20
    presence_penalty: float | None = None
    presence_context_size: int = 20
    frequency_penalty: float | None = None
    frequency_context_size: int = 20
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: int = 0
    prefill_step_size: int = 2048
    kv_bits: int | None = None
    kv_group_size: int = 64
    quantized_kv_start: int = 5000
    max_kv_size: int | None = None
    max_marks: int = 8
    max_mark_bytes: int = 2**30
    logits_processors: tuple[LogitsProcessor, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_tokens", "top_k", "logprobs", "quantized_kv_start"):
            _check_int(name, getattr(self, name), least=0)
        for name in (  # sizes of slices
            "min_tokens_to_keep",
            "repetition_context_size",
            "presence_context_size",
            "frequency_context_size",
            "prefill_step_size",
        ):
            _check_int(name, getattr(self, name), least=1)
        if self.max_kv_size is not None:
            _check_int("max_kv_size", self.max_kv_size, least=SMALLEST_KV_SIZE)
        _check_int("max_marks", self.max_marks, least=0)
        _check_int("max_mark_bytes", self.max_mark_bytes, least=0, most=2**63 - 1)
        if self.seed is not None:
            _check_int("seed", self.seed, least=0, most=2**64 - 1)
        _check_float("temperature", self.temperature, least=0.0, most=LARGEST)
        for name in ("top_p", "min_p", "xtc_probability"):
            _check_float(name, getattr(self, name), least=0.0, most=1.0)
        _check_float("xtc_threshold", self.xtc_threshold, least=0.0, most=0.5)
        for name in ("presence_penalty", "frequency_penalty"):
            if getattr(self, name) is not None:
                _check_float(name, getattr(self, name), least=-LARGEST, most=LARGEST)
        if self.repetition_penalty is not None:
            _check_float("repetition_penalty", self.repetition_penalty, least=1e-6, most=1e6)
        if self.kv_bits is not None:
            _check_choice("kv_bits", self.kv_bits, KV_BITS)
        _check_choice("kv_group_size", self.kv_group_size, KV_GROUP_SIZES)
        if self.kv_bits is not None and self.max_kv_size is not None:
            raise ConfigurationError(
                "kv_bits and max_kv_size can't go together: mlx-lm does not quantize a cache of "
                "bounded size.",
                remedy="Set one of the two.",
            )
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        object.__setattr__(self, "logit_bias", _logit_bias(self.logit_bias))
        object.__setattr__(self, "logits_processors", _processors(self.logits_processors))

    @property
    def cache_settings(self) -> tuple[int | None, ...]:
        """What shapes the KV cache: a cache made under one value serves no other."""
        quantized = (self.kv_bits, self.kv_group_size, self.quantized_kv_start)
        return (self.max_kv_size, *(quantized if self.kv_bits is not None else ()))


@dataclass(frozen=True, slots=True)
class SpeculativeDecodingConfig:
    """Decode faster: a draft proposes tokens, and the model checks several in one forward pass.

    What is said stays what the model alone would have said: the same tokens where the likeliest
    one is taken, and the same distribution where they are sampled (rejection sampling, Leviathan
    et al. 2023, "Fast Inference from Transformers via Speculative Decoding"). A draft that does
    not pay, by the clock, is left out until it is tried again, ever more rarely.

    Args:
        draft: ``"prompt-lookup"`` proposes what followed the same tokens earlier in the
            conversation (Saxena 2023), at no cost in memory; an engine proposes with its own
            model, which must have the same vocabulary.
        num_draft_tokens: The most tokens proposed at a time, 1 to 64.

    Raises:
        ConfigurationError: A value is out of its range or of the wrong type.
    """

    draft: Engine | str
    num_draft_tokens: int = 5

    def __post_init__(self) -> None:
        named = isinstance(self.draft, str) and self.draft == PROMPT_LOOKUP
        # A class has methods, too, but no tokenizer yet.
        if not named and not (hasattr(self.draft, "context") and hasattr(self.draft, "tokenizer")):
            raise ConfigurationError(
                f"{self.draft!r} is no draft.",
                remedy=f"Pass {PROMPT_LOOKUP!r} or an engine, such as segue.load(...) returns.",
            )
        _check_int("num_draft_tokens", self.num_draft_tokens, least=1, most=MOST_DRAFT_TOKENS)


def _check_int(name: str, value: object, *, least: int, most: int = LARGEST_INT) -> None:
    bound = f"{least} or more" if most == LARGEST_INT else f"from {least} to {most}"
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigurationError(
            f"{name} is a whole number, not {value!r}.", remedy=f"Use an int, {bound}."
        )
    if not least <= value <= most:
        raise ConfigurationError(f"{name}={value} is out of range.", remedy=f"Use {bound}.")


def _check_float(name: str, value: object, *, least: float, most: float) -> None:
    # Whole numbers may be too large to be looked at as floats; NaN lies between no bounds.
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ConfigurationError(
            f"{name} is a number, not {value!r}.", remedy=f"Pass {name} as a float."
        )
    if not least <= value <= most:
        bound = f"from {least:g} to {most:g}" if most < LARGEST else f"{least:g} or more"
        raise ConfigurationError(f"{name}={value} is beyond its bounds.", remedy=f"Use {bound}.")


def _check_choice(name: str, value: object, choices: tuple[int, ...]) -> None:
    if type(value) is not int or value not in choices:
        raise ConfigurationError(
            f"{name}={value!r} is not possible.",
            remedy=f"Use one of {', '.join(map(str, choices))}.",
        )


def _stop_strings(stop: object) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else stop
    if not isinstance(strings, Iterable):
        raise ConfigurationError(
            f"stop holds strings, not {stop!r}.", remedy="Pass a string or a list of strings."
        )
    strings = tuple(strings)
    for string in strings:
        if not isinstance(string, str) or not string:
            raise ConfigurationError(
                f"{string!r} can't be a stop string.", remedy="Use strings that are not empty."
            )
    return strings


def _logit_bias(bias: object) -> dict[int, float]:
    if not isinstance(bias, Mapping):
        raise ConfigurationError(
            f"logit_bias maps token ids to numbers; it is not {bias!r}.",
            remedy="Pass a dict such as {42: -5.0}.",
        )
    for token, value in bias.items():
        _check_int("a logit_bias token id", token, least=0)
        _check_float(f"logit_bias[{token}]", value, least=-LARGEST, most=LARGEST)
    return {token: float(value) for token, value in bias.items()}


def _processors(processors: object) -> tuple[LogitsProcessor, ...]:
    if callable(processors) or not isinstance(processors, Iterable):
        raise ConfigurationError(
            f"logits_processors is a sequence of callables, not {processors!r}.",
            remedy="Pass a list, even for a single processor.",
        )
    checked = tuple(processors)
    for processor in checked:
        if not callable(processor):
            raise ConfigurationError(
                f"logits_processors holds {processor!r}, which is not callable.",
                remedy="Use callables (tokens, logits) -> logits.",
            )
    return checked
