"""A turn, planned before anything changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..config import GenerationConfig
from ..engine import Context
from ..messages import Message
from .cache import SessionCache
from .overflow import ContextLimit, dropped_from
from .prompt import Prompt, PromptBuilder


@dataclass(frozen=True, slots=True)
class Turn:
    """What a turn will feed, to which context, and what will become of the history.

    Attributes:
        context: From `SessionCache.context_for`.
        config: The settings, as far as the context has room for them.
        prompt: The prompt.
        history: What was said before, without what was dropped.
        messages: What is said now.
        dropped: What had to leave the history.
    """

    context: Context
    config: GenerationConfig
    prompt: Prompt
    history: tuple[Message, ...]
    messages: tuple[Message, ...]
    dropped: tuple[Message, ...]

    @property
    def length(self) -> int:
        """How many tokens the prompt has, an opaque prefix included."""
        return self.context.prefix + len(self.prompt.ledger.ids)

    @property
    def behind(self) -> str:
        """What the template may begin a reply with; empty if the prompt ends in what was asked."""
        text, asked = self.prompt.ledger.text, self.messages[-1].content.strip()
        return "" if asked and text.rstrip().endswith(asked) else text


def plan_turn(
    history: Sequence[Message],
    messages: Sequence[Message],
    *,
    system: Message | None,
    config: GenerationConfig,
    prompts: PromptBuilder,
    cache: SessionCache,
    limit: ContextLimit,
) -> Turn:
    """Make the prompt of a turn, and room for it.

    Args:
        history: What was said before.
        messages: What is said now; not empty.
        system: The instructions.
        config: The settings of the reply.
        prompts: Makes prompts.
        cache: What the model has read.
        limit: What it can look back on.

    Raises:
        TemplateError: The chat template refused the conversation.
        ConfigurationError: The model can't do what `config` asks.
        ContextLengthError: The prompt does not fit into the model's context.
    """
    # A cache of another kind is replaced only once nothing can be refused any more.
    context = cache.context_for(config)
    held = cache.held(config)

    def build(history: Sequence[Message], *, places: bool) -> tuple[Prompt, int]:
        built = prompts.build(system, [*history, *messages], held, places=places)
        return built, context.prefix + len(built.ledger.ids)

    def measure(history: Sequence[Message]) -> int:
        return build(history, places=False)[1]

    kept = tuple(history)
    dropped: tuple[Message, ...] = ()
    built, length = build(kept, places=context.wants_marks)
    if limit.needs_room(length, config.max_tokens):
        kept = limit.make_room(history, messages, measure, max_tokens=config.max_tokens)
        dropped = dropped_from(history, kept)
        built, length = build(kept, places=context.wants_marks)
    limit.check(length)
    return Turn(context, limit.within(config, length), built, kept, tuple(messages), dropped)
