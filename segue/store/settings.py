"""A session's settings as text that files keep.

The form on disk is older than the split of settings into those of a reply and those of a cache:
both are in one object, under the names that they had then.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from ..config import CacheConfig, GenerationConfig
from ..engine import Engine
from ..errors import ConfigurationError
from ..files.json_text import read_object

PROMPT_LOOKUP: Literal["prompt-lookup"] = "prompt-lookup"
# Fields that hold code, which no file brings back.
CODE = ("logits_processors",)
# Fields of CacheConfig by their names on disk.
CACHE_FIELDS = {
    "kv_bits": "kv_bits",
    "kv_group_size": "kv_group_size",
    "quantized_kv_start": "quantized_kv_start",
    "max_kv_size": "max_kv_size",
    "max_marks": "max_checkpoints",
    "max_mark_bytes": "max_checkpoint_bytes",
}


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """A session's settings, as far as a file can keep them."""

    generation: GenerationConfig = field(default_factory=GenerationConfig)
    """The settings of its replies, without logits processors."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    """The settings of its KV cache."""
    draft: Literal["prompt-lookup"] | None = None
    """Its draft, if that is prompt lookup; a model does not go into a file."""
    draft_model: str | None = None
    """The name that its draft was loaded by, if that was a model."""
    on_overflow: str = "error"
    """The way it treats a full context; ``"error"`` in place of a function."""
    fixed_date: bool = False
    """True if its date was given, so that `clear` keeps it."""
    left_out: tuple[str, ...] = ()
    """The names of settings that were code, and are missing."""

    @classmethod
    def of(
        cls,
        generation: GenerationConfig,
        cache: CacheConfig,
        draft: Engine | Literal["prompt-lookup"] | None,
        on_overflow: object,
        *,
        fixed_date: bool = False,
    ) -> SessionSettings:
        """Return what a file can keep of a session's settings."""
        left_out = [name for name in CODE if getattr(generation, name)]
        if not isinstance(on_overflow, str):
            left_out.append("on_overflow")
            on_overflow = "error"
        return cls(
            generation=dataclasses.replace(generation, logits_processors=()),
            cache=cache,
            draft=draft if isinstance(draft, str) else None,
            draft_model=None if draft is None or isinstance(draft, str) else draft.source,
            on_overflow=str(on_overflow),
            fixed_date=fixed_date,
            left_out=tuple(left_out),
        )

    def to_json(self) -> str:
        """Return the settings as JSON."""
        generation = {
            field.name: getattr(self.generation, field.name)
            for field in dataclasses.fields(GenerationConfig)
            if field.name not in CODE
        }
        generation["logit_bias"] = [list(entry) for entry in self.generation.logit_bias.items()]
        generation |= {old: getattr(self.cache, new) for old, new in CACHE_FIELDS.items()}
        return json.dumps(
            {
                "generation": generation,
                "prompt_lookup_tokens": self.generation.num_draft_tokens if self.draft else None,
                "draft_model": self.draft_model,
                "on_overflow": self.on_overflow,
                "fixed_date": self.fixed_date,
                "left_out": self.left_out,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> SessionSettings:
        """Read settings; fields that the text lacks have their defaults.

        Raises:
            ValueError: if the text isn't settings, or has impossible ones.
        """
        entry = read_object(text)
        try:
            generation: dict[str, Any] = dict(entry.get("generation", {}))
            cache = {
                new: generation.pop(old) for old, new in CACHE_FIELDS.items() if old in generation
            }
            generation["logit_bias"] = dict(generation.get("logit_bias", ()))
            if generation.keys() & set(CODE):
                raise ValueError("they hold code")
            drafts = entry.get("prompt_lookup_tokens")
            if drafts is not None:
                generation["num_draft_tokens"] = drafts
            settings = cls(
                generation=GenerationConfig(**generation),
                cache=CacheConfig(**cache),
                draft=None if drafts is None else PROMPT_LOOKUP,
                draft_model=entry.get("draft_model"),
                on_overflow=entry.get("on_overflow", "error"),
                fixed_date=entry.get("fixed_date", False),
                left_out=_names(entry.get("left_out", [])),
            )
        except (TypeError, ConfigurationError) as error:
            raise ValueError(f"they can't be used ({error})") from error
        sound = (
            isinstance(settings.draft_model, str | None)
            and settings.on_overflow in ("error", "drop-oldest")
            and isinstance(settings.fixed_date, bool)
        )
        if not sound:
            raise ValueError("they have a wrong type")
        return settings


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise TypeError("what was left out must be a list of names")
    return tuple(value)
