"""Settings of replies and of caches, by the fields of both."""

from __future__ import annotations

import dataclasses
from typing import Any

from segue import CacheConfig, GenerationConfig

CACHE_FIELDS = {field.name for field in dataclasses.fields(CacheConfig)}


def cache_of(**settings: Any) -> CacheConfig:
    """The settings of a cache among these."""
    return CacheConfig(**{name: settings[name] for name in settings.keys() & CACHE_FIELDS})


def arguments(**settings: Any) -> dict[str, Any]:
    """Arguments of ChatSession: `generation` and `cache`."""
    generation = {name: settings[name] for name in settings.keys() - CACHE_FIELDS}
    return {"generation": GenerationConfig(**generation), "cache": cache_of(**settings)}
