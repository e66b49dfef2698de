"""Settings: of a reply, and of a session's KV cache."""

# No `from __future__ import annotations` here: public names carry `segue` as their module, and
# typing.get_type_hints would not find there what strings name.

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

from .checks import check_flag, is_encodable, named_arguments, unknown_argument
from .errors import ConfigurationError

LogitsProcessor = Callable[[Any, Any], Any]
"""``(tokens, logits) -> logits``, in the engine's own arrays, as in mlx-lm.

`tokens` (shape ``(n,)``) are all ids of the conversation so far, oldest first; `logits` has shape
``(1, vocabulary)``.
"""

KV_BITS = (2, 3, 4, 5, 6, 8)
KV_GROUP_SIZES = (32, 64, 128)
# A bounded cache always keeps its first four tokens, and needs space beside them.
SMALLEST_KV_SIZE = 8
# Beyond this, no draft is right often enough to pay for what it makes the model read.
MOST_DRAFT_TOKENS = 64
# Engines take sizes as 32-bit integers, and logits overflow long before their type does.
LARGEST_INT = 2**31 - 1
LARGEST = 1e9


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """Settings of a reply; immutable (``dataclasses.replace`` makes a changed one).

    Names and meanings are mlx-lm's wherever it has them. Every field may also be given to one
    reply: ``session.stream("Hello", temperature=1.0)``.

    Examples:
        >>> import segue
        >>> segue.GenerationConfig(temperature=0.7, stop="END").stop
        ('END',)

    Raises:
        ConfigurationError: if a value is out of its range or of the wrong type.
    """

    max_tokens: int = 256
    """The most tokens a reply may have; 0 reads the prompt and records an empty reply."""
    temperature: float = 0.0
    """0 takes the likeliest token; higher samples more freely."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that together hold this probability (nucleus sampling,
    Holtzman et al. 2020). 0 and 1 turn it off."""
    min_p: float = 0.0
    """Drop tokens below this share of the likeliest one's probability (Nguyen et al. 2024)."""
    min_tokens_to_keep: int = 1
    """How many tokens `min_p` always leaves."""
    top_k: int = 0
    """Sample from this many of the likeliest tokens; 0 turns it off."""
    xtc_probability: float = 0.0
    """How often, per token, the likeliest candidates are excluded (XTC)."""
    xtc_threshold: float = 0.1
    """The probability above which XTC excludes all candidates but the last; 0 to 0.5."""
    repetition_penalty: float | None = None
    """Divide the logits of recent tokens by this (Keskar et al. 2019); 1 changes nothing."""
    repetition_context_size: int = 20
    """How many of the conversation's last tokens are recent to `repetition_penalty`."""
    presence_penalty: float | None = None
    """Subtract this from the logits of recent tokens."""
    presence_context_size: int = 20
    """How many of the conversation's last tokens are recent to `presence_penalty`."""
    frequency_penalty: float | None = None
    """Subtract this from a token's logit for each time that it was generated or read recently."""
    frequency_context_size: int = 20
    """How many of the conversation's last tokens are recent to `frequency_penalty`."""
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    """Added to the logits of these token ids."""
    stop: str | Iterable[str] = ()
    """Strings (or one string) that end the reply where they appear in its answer; they are not part
    of it. Read it as a tuple."""
    stop_in_reasoning: bool = False
    """True if they end the reply where they appear in its reasoning, too, before any answer."""
    seed: int | None = None
    """Makes sampling repeatable: each turn starts from it, so the same prompt gets the same reply.
    ``None`` draws from the engine's own random state."""
    logprobs: int = 0
    """How many of the likeliest tokens each response reports; 0 reports none."""
    prefill_step_size: int = 2048
    """How many prompt tokens are fed at a time."""
    num_draft_tokens: int = 5
    """The most tokens that a session's draft proposes at a time, up to 64; 0 drafts none. Without a
    draft, it has no effect."""
    logits_processors: Iterable[LogitsProcessor] = ()
    """More processors, applied after penalties and bias. Each turn works on deep copies of them, so
    what an object gathers in one turn never reaches the next. (Python copies no functions: one that
    gathers state in a closure keeps it.) Read it as a tuple."""

    def __post_init__(self) -> None:
        for name in ("max_tokens", "top_k", "logprobs"):
            _check_int(name, getattr(self, name), least=0)
        _check_int("num_draft_tokens", self.num_draft_tokens, least=0, most=MOST_DRAFT_TOKENS)
        for name in (  # sizes of slices
            "min_tokens_to_keep",
            "repetition_context_size",
            "presence_context_size",
            "frequency_context_size",
            "prefill_step_size",
        ):
            _check_int(name, getattr(self, name), least=1)
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
        check_flag("stop_in_reasoning", self.stop_in_reasoning)
        # The dataclass is frozen: normalized fields go in through the base class.
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        object.__setattr__(self, "logit_bias", _logit_bias(self.logit_bias))
        object.__setattr__(self, "logits_processors", _processors(self.logits_processors))


class GenerationOverrides(TypedDict, total=False):
    """Settings of one reply, as keywords: the fields of `GenerationConfig`."""

    max_tokens: int
    temperature: float
    top_p: float
    min_p: float
    min_tokens_to_keep: int
    top_k: int
    xtc_probability: float
    xtc_threshold: float
    repetition_penalty: float | None
    repetition_context_size: int
    presence_penalty: float | None
    presence_context_size: int
    frequency_penalty: float | None
    frequency_context_size: int
    logit_bias: Mapping[int, float]
    stop: str | Iterable[str]
    stop_in_reasoning: bool
    seed: int | None
    logprobs: int
    prefill_step_size: int
    num_draft_tokens: int
    logits_processors: Iterable[LogitsProcessor]


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """Settings of a session's KV cache, fixed for the session's life.

    Engines differ in what they can do; `ChatSession` refuses what its engine can't.

    Examples:
        >>> import segue
        >>> segue.CacheConfig(kv_bits=8).kv_group_size
        64

    Raises:
        ConfigurationError: if a value is out of its range, of the wrong type, or contradicts
            another.
    """

    kv_bits: int | None = None
    """Quantize the KV cache to this many bits (2, 3, 4, 5, 6 or 8); ``None`` leaves it as it is."""
    kv_group_size: int = 64
    """How many values share a scale in a quantized cache: 32, 64 or 128."""
    quantized_kv_start: int = 5000
    """How many tokens the cache holds before quantizing begins."""
    max_kv_size: int | None = None
    """Keep at most this many tokens in the cache (those of the instructions, and the latest); 8 or
    more, not together with `kv_bits`. ``None`` keeps all. Refused where all layers bring bounded
    caches of their own."""
    max_checkpoints: int = 8
    """How many checkpoints a cache that can't be trimmed (a sliding window past its size, a
    recurrent state) keeps; 0 for none."""
    max_checkpoint_bytes: int = 2**30
    """The most memory that checkpoints may use, in bytes."""

    def __post_init__(self) -> None:
        for name in ("quantized_kv_start", "max_checkpoints"):
            _check_int(name, getattr(self, name), least=0)
        _check_int("max_checkpoint_bytes", self.max_checkpoint_bytes, least=0, most=2**63 - 1)
        if self.max_kv_size is not None:
            _check_int("max_kv_size", self.max_kv_size, least=SMALLEST_KV_SIZE)
        if self.kv_bits is not None:
            _check_choice("kv_bits", self.kv_bits, KV_BITS)
        _check_choice("kv_group_size", self.kv_group_size, KV_GROUP_SIZES)
        if self.kv_bits is not None and self.max_kv_size is not None:
            raise ConfigurationError(
                "kv_bits and max_kv_size can't go together: a cache of bounded size is not "
                "quantized.",
                remedy="Set one of the two.",
            )

    @property
    def kind(self) -> tuple[int | None, ...]:
        """The settings that shape the cache: a cache made under one value serves no other."""
        quantized = (self.kv_bits, self.kv_group_size, self.quantized_kv_start)
        return (self.max_kv_size, *(quantized if self.kv_bits is not None else ()))


# By name: settings of the other kind, and where they belong.
GENERATION_NAMES = tuple(field.name for field in dataclasses.fields(GenerationConfig))
GENERATION_HINTS = {
    name: f"It is a setting of replies: generation=GenerationConfig({name}=...)."
    for name in GENERATION_NAMES
}
CACHE_HINTS = {
    field.name: "It belongs to the session's cache: "
    f"ChatSession(engine, cache=CacheConfig({field.name}=...))."
    for field in dataclasses.fields(CacheConfig)
}


def _naming(kind: type[Any], hints: Mapping[str, str]) -> None:
    """Have a class of settings name what was meant by a setting that it does not have."""
    kind.__init__ = named_arguments(hints, owner=kind.__name__)(kind.__init__)


_naming(GenerationConfig, CACHE_HINTS)
_naming(CacheConfig, GENERATION_HINTS)


def with_overrides(config: GenerationConfig, overrides: Mapping[str, Any]) -> GenerationConfig:
    """Return settings with some of them replaced.

    Raises:
        UnknownArgumentError: if there is no such setting.
        ConfigurationError: if a value is refused.
    """
    for name in overrides:
        if name not in GENERATION_NAMES:
            raise unknown_argument(
                "A reply",
                name,
                GENERATION_NAMES,
                CACHE_HINTS,
                otherwise="Use fields of GenerationConfig, such as temperature or seed.",
            )
    return dataclasses.replace(config, **overrides) if overrides else config


def check_generation(generation: object) -> GenerationConfig:
    """Return the argument if it is a GenerationConfig.

    Raises:
        ConfigurationError: if it isn't.
    """
    if isinstance(generation, GenerationConfig):
        return generation
    raise ConfigurationError(
        f"generation must be a GenerationConfig, not {type(generation).__name__}.",
        remedy="Build one: GenerationConfig(max_tokens=..., temperature=...).",
    )


def check_cache(cache: object) -> CacheConfig:
    """Return the argument if it is a CacheConfig.

    Raises:
        ConfigurationError: if it isn't.
    """
    if isinstance(cache, CacheConfig):
        return cache
    raise ConfigurationError(
        f"cache must be a CacheConfig, not {type(cache).__name__}.",
        remedy="Build one: CacheConfig(kv_bits=...). What segue.load_prompt_cache returns goes "
        "into prompt_cache=.",
    )


def _check_int(name: str, value: object, *, least: int, most: int = LARGEST_INT) -> None:
    bound = f"{least} or more" if most == LARGEST_INT else f"from {least} to {most}"
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigurationError(
            f"{name} must be a whole number, not {value!r}.", remedy=f"Use an int, {bound}."
        )
    if not least <= value <= most:
        raise _out_of_range(name, bound, value)


def _check_float(name: str, value: object, *, least: float, most: float) -> None:
    # Whole numbers may be too large to be looked at as floats; NaN lies between no bounds.
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ConfigurationError(
            f"{name} must be a number, not {value!r}.", remedy=f"Pass {name} as a float."
        )
    if not least <= value <= most:
        bound = f"from {least:g} to {most:g}" if most < LARGEST else f"{least:g} or more"
        raise _out_of_range(name, bound, value)


def _out_of_range(name: str, bound: str, value: float) -> ConfigurationError:
    return ConfigurationError(
        f"{name} must be {bound}, not {value}.",
        remedy="Pass another number, or leave it out for its default.",
    )


def _check_choice(name: str, value: object, choices: tuple[int, ...]) -> None:
    if type(value) is not int or value not in choices:
        raise ConfigurationError(
            f"{name} must be one of {', '.join(map(str, choices))}, not {value!r}.",
            remedy="Pass one of those, or leave it out for its default.",
        )


def _stop_strings(stop: object) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else stop
    if not isinstance(strings, Iterable):
        raise ConfigurationError(
            f"stop must be a string or a list of strings, not {stop!r}.",
            remedy='Pass stop=["..."], or leave it out.',
        )
    strings = tuple(strings)
    for string in strings:
        if not isinstance(string, str) or not string:
            raise ConfigurationError(
                f"A stop string must be text that isn't empty, not {string!r}.",
                remedy="Use strings that are not empty.",
            )
        if not is_encodable(string):
            raise ConfigurationError(
                f"The stop string {string!r} contains a lone surrogate, which isn't a character.",
                remedy="Decode the text with errors='replace' where it comes from.",
            )
    return strings


def _logit_bias(bias: object) -> dict[int, float]:
    if not isinstance(bias, Mapping):
        raise ConfigurationError(
            f"logit_bias must map token ids to numbers, not be {bias!r}.",
            remedy="Pass a dict such as {42: -5.0}.",
        )
    for token, value in bias.items():
        _check_int("a logit_bias token id", token, least=0)
        _check_float(f"logit_bias[{token}]", value, least=-LARGEST, most=LARGEST)
    return {token: float(value) for token, value in bias.items()}


def _processors(processors: object) -> tuple[LogitsProcessor, ...]:
    if callable(processors) or not isinstance(processors, Iterable):
        raise ConfigurationError(
            f"logits_processors must be a sequence of callables, not {processors!r}.",
            remedy="Pass a list, even for a single processor.",
        )
    checked = tuple(processors)
    for processor in checked:
        if not callable(processor):
            raise ConfigurationError(
                f"logits_processors must hold callables, not {processor!r}.",
                remedy="Use callables (tokens, logits) -> logits.",
            )
    return checked
