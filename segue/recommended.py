"""The settings of replies that a model's publisher recommends.

How it works: each value is checked as a person's own would be. One that isn't a setting's is left
out with a warning that names it, since a model with a bad recommendation is still a good model.
Settings that the publisher does not name stay at the library's defaults.

What is left out on purpose: how long a reply may be (files have anything from 20 to the context's
length there), and what is no setting here (beams, a sampler's order).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Protocol, runtime_checkable

from .config import LARGEST_INT, GenerationConfig
from .errors import ConfigurationError, ModelWarning

# What is taken, in the order in which it is shown.
RECOMMENDED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
MORE = ("repetition_context_size", "xtc_probability", "xtc_threshold")
# Values that publishers write for "off" or "all", where Segue has another.
OFF: Mapping[str, tuple[object, object]] = {
    "top_k": (-1, 0),
    "repetition_penalty": (1, None),
    "repetition_context_size": (-1, LARGEST_INT),
}
# What transformers samples with if a file says to sample, and nothing else.
SAMPLED = 1.0
# Digits of a number that was stored in half the space.
DIGITS = 6


@runtime_checkable
class Recommends(Protocol):
    """An engine that knows what its model's publisher recommends."""

    @property
    def recommended(self) -> GenerationConfig:
        """The publisher's settings of replies; the library's own where there are none."""
        ...


def recommended_settings(found: Mapping[str, Any], source: str) -> GenerationConfig:
    """Return the settings that a publisher recommends.

    Examples:
        >>> recommended_settings({"temperature": 0.6, "top_k": 20, "do_sample": True}, "x").top_k
        20

    Args:
        found: What a file says, by our names and ``do_sample``; anything may be in it.
        source: The file, for warnings.

    Warns:
        ModelWarning: if a value can't be a setting's; it is left out.
    """
    settings = GenerationConfig()
    sampled = found.get("do_sample")
    if sampled is False:
        return settings
    for name in (*RECOMMENDED, *MORE):
        value = found.get(name)
        if value is None:
            continue
        try:
            settings = replace(settings, **{name: _plain(name, value)})
        except ConfigurationError as error:
            warnings.warn(
                f"{source} recommends a setting that is left out: {error.what}",
                ModelWarning,
                stacklevel=2,
            )
    if sampled is True and found.get("temperature") is None:
        settings = replace(settings, temperature=SAMPLED)
    return settings


def changed_settings(settings: GenerationConfig) -> dict[str, Any]:
    """Return the settings that aren't the library's defaults, by name."""
    return {
        field.name: value
        for field in fields(settings)
        if (value := getattr(settings, field.name)) != getattr(GenerationConfig(), field.name)
    }


def _plain(name: str, value: Any) -> Any:
    """Return a value as our settings have it: whole numbers as ints, and our word for off."""
    if isinstance(value, float):
        if name in ("top_k", "repetition_context_size") and value.is_integer():
            value = int(value)
        elif not value.is_integer() and value - value == 0:  # neither infinite nor NaN
            value = float(f"{value:.{DIGITS}g}")
    written, ours = OFF.get(name, (None, None))
    return ours if not isinstance(value, bool) and value == written else value
