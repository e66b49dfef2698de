"""A session's settings as text that files keep."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from ..config import PROMPT_LOOKUP, GenerationConfig, SpeculativeDecodingConfig
from ..errors import ConfigurationError
from ..files.json_text import read_object

# Fields that hold code, which no file brings back.
CODE = ("logits_processors",)


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What a session does, as far as a file can tell it.

    Attributes:
        generation: The settings of its replies, without logits processors.
        speculative: Its draft, if that is prompt lookup; a model can't be kept in a file.
        draft_model: What its draft was loaded as, if that was a model.
        on_overflow: What it does about a full context; ``"error"`` in place of a function.
        left_out: What is missing: the names of settings that were code.
    """

    generation: GenerationConfig = field(default_factory=GenerationConfig)
    speculative: SpeculativeDecodingConfig | None = None
    draft_model: str | None = None
    on_overflow: str = "error"
    left_out: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        generation: GenerationConfig,
        speculative: SpeculativeDecodingConfig | None,
        on_overflow: object,
    ) -> SessionSettings:
        """Those of a session."""
        left_out = [name for name in CODE if getattr(generation, name)]
        if not isinstance(on_overflow, str):
            left_out.append("on_overflow")
            on_overflow = "error"
        draft_model = None
        if speculative is not None and not isinstance(speculative.draft, str):
            draft_model, speculative = speculative.draft.source, None
        plain = dataclasses.replace(generation, logits_processors=())
        return cls(plain, speculative, draft_model, str(on_overflow), tuple(left_out))

    def to_json(self) -> str:
        """As JSON."""
        generation = {
            field.name: getattr(self.generation, field.name)
            for field in dataclasses.fields(GenerationConfig)
            if field.name not in CODE
        }
        generation["logit_bias"] = [list(entry) for entry in self.generation.logit_bias.items()]
        drafts = None if self.speculative is None else self.speculative.num_draft_tokens
        return json.dumps(
            {
                "generation": generation,
                "prompt_lookup_tokens": drafts,
                "draft_model": self.draft_model,
                "on_overflow": self.on_overflow,
                "left_out": self.left_out,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> SessionSettings:
        """The settings that a text tells; fields it lacks have their defaults.

        Raises:
            ValueError: It tells none, or impossible ones.
        """
        entry = read_object(text)
        try:
            generation: dict[str, Any] = dict(entry.get("generation", {}))
            generation["logit_bias"] = dict(generation.get("logit_bias", ()))
            if generation.keys() & set(CODE):
                raise ValueError("they hold code")
            drafts = entry.get("prompt_lookup_tokens")
            lookup = None if drafts is None else SpeculativeDecodingConfig(PROMPT_LOOKUP, drafts)
            settings = cls(
                GenerationConfig(**generation),
                lookup,
                entry.get("draft_model"),
                entry.get("on_overflow", "error"),
                _names(entry.get("left_out", [])),
            )
        except (TypeError, ConfigurationError) as error:
            raise ValueError(f"they can't be ({error})") from error
        sound = isinstance(settings.draft_model, str | None) and settings.on_overflow in (
            "error",
            "drop-oldest",
        )
        if not sound:
            raise ValueError("they are of a wrong type")
        return settings


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise TypeError("what was left out has no names")
    return tuple(value)
