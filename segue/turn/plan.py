"""A turn, planned before anything changes.

A plan builds nothing and changes nothing: it may be thrown away, and then nothing happened. Turns
of four kinds are planned here, and all of them are opened by `SessionCore.open`:

- a turn with new messages (`plan_turn`), also one that replaces the last reply;
- reading ahead (`plan_ahead`): what every next prompt begins with, without a reply;
- a cut (`plan_cut`): messages are taken back, and nothing is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from ..config import GenerationConfig
from ..conversation import Conversation
from ..errors import TemplateError
from ..grammar.constraint import reply_grammar
from ..grammar.schema import Answer
from ..ledger import TokenLedger, common_prefix
from ..messages import Message, Role
from ..text.form import ReplyForm
from ..text.reader import ReplyReader
from .continuing import begun_reply
from .overflow import ContextLimit, dropped_from
from .prompts.prompt import Prompt, PromptBuilder
from .prompts.spelling import append_reply


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnPlan:
    """A turn before it is taken: what it feeds, and what it makes of the conversation."""

    conversation: Conversation
    """The conversation once the turn is open: without what was dropped, with what is asked."""
    prompt: Prompt
    """The prompt that the cache will be filled from."""
    config: GenerationConfig
    """The settings of the reply, as far as the context has room for it."""
    length: int
    """How many tokens the prompt has, an opaque prefix included."""
    dropped: tuple[Message, ...] = ()
    """The messages that have to leave the history, so that the prompt fits into the context."""
    if_empty: tuple[Message, ...] | None = None
    """The history if the reply ends before its first token; ``None`` records an empty reply."""
    answer: Answer[Any] | None = None
    """The form of the answer, if it was asked for in one."""
    grammar: str | None = None
    """What the reply must match then."""
    begun: tuple[int, ...] = ()
    """The ids at the end of the prompt that are the reply so far, if it is continued."""
    said: Message | None = None
    """The reply so far, if it is continued."""
    replies: bool = True
    """False if nothing is said, so that no reply is recorded."""
    form: ReplyForm = field(default_factory=ReplyForm)
    """What will be written around the reply's text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheView:
    """A session's cache, as far as planning must know it."""

    ledger: TokenLedger
    """The ids that it holds after its opaque prefix."""
    prefix: int
    """How many tokens the opaque prefix has."""
    wants_checkpoints: bool
    """True if the cache can rewind to checkpoints alone."""


class Planner:
    """Plans turns.

    Args:
        prompts: Makes prompts.
        limit: The model's context.
    """

    def __init__(self, prompts: PromptBuilder, limit: ContextLimit) -> None:
        self._prompts = prompts
        self._limit = limit

    def with_limit(self, limit: ContextLimit) -> Self:
        """Return a planner with another limit."""
        return type(self)(self._prompts, limit)

    def copy(self) -> Self:
        """Return another one, for a fork, which may be used in another thread."""
        return type(self)(self._prompts.copy(), self._limit)

    def plan_turn(
        self,
        conversation: Conversation,
        messages: Sequence[Message],
        config: GenerationConfig,
        cache: CacheView,
        *,
        if_empty: tuple[Message, ...] | None = None,
        said: Message | None = None,
        answer: Answer[Any] | None = None,
    ) -> TurnPlan:
        """Plan a reply to new messages, and make room for it.

        Args:
            conversation: What was said before.
            messages: What is said now; not empty.
            config: The settings of the reply.
            cache: What the model has read.
            if_empty: See `TurnPlan`.
            said: What was said of the reply already, if it is to be continued.
            answer: The form of the answer, if it is to have one.

        Raises:
            TemplateError: if the chat template refuses the conversation, or leaves out what is
                said now.
            ContextLengthError: if the prompt does not fit into the model's context.
            MessageError: if a function for `on_overflow` returned something else than messages.
        """
        history = conversation.messages

        def build(
            history: Sequence[Message], *, checkpoints: bool, check: bool
        ) -> tuple[Prompt, tuple[int, ...], int]:
            """Return a prompt, the ids of the reply so far, and how many tokens both have."""
            asked = conversation.with_messages((*history, *messages))
            new = len(messages) if check else None
            prompt = self._prompts.build(asked, cache.ledger, checkpoints=checkpoints, asked=new)
            begun = () if said is None else self._begun(asked, prompt, said, cache.ledger)
            return prompt, begun, cache.prefix + len(prompt.ledger.ids) + len(begun)

        def measure(history: Sequence[Message]) -> int:
            return build(history, checkpoints=False, check=False)[2]

        kept: Sequence[Message] = history
        dropped: tuple[Message, ...] = ()
        prompt, begun, length = build(kept, checkpoints=cache.wants_checkpoints, check=True)
        if self._limit.needs_room(length, config.max_tokens):
            kept = self._limit.make_room(history, messages, measure, max_tokens=config.max_tokens)
            dropped = dropped_from(history, kept)
            prompt, begun, length = build(kept, checkpoints=cache.wants_checkpoints, check=True)
        self._limit.check(length)
        asked = conversation.with_messages((*kept, *messages))
        form = self._prompts.form(asked, prompt)
        if begun:
            whole = append_reply(self._prompts.tokenizer, prompt.ledger, begun)
            prompt = replace(prompt, ledger=whole)
        grammar = None
        if answer is not None:
            opened = self._reader(form).in_reasoning
            grammar = reply_grammar(answer.rules, form, opened=opened)
        return TurnPlan(
            conversation=asked,
            prompt=prompt,
            begun=begun,
            said=said,
            answer=answer,
            grammar=grammar,
            config=self._limit.within(config, length),
            length=length,
            dropped=dropped,
            if_empty=if_empty,
            form=form,
        )

    def _begun(
        self, asked: Conversation, prompt: Prompt, said: Message, cached: TokenLedger
    ) -> tuple[int, ...]:
        """Return the ids of a reply that is to be continued."""
        tokenizer, form = self._prompts.tokenizer, self._prompts.form(asked, prompt)
        return begun_reply(
            tokenizer,
            prompt.ledger,
            said,
            cached,
            form=form,
            reader=lambda: self._reader(form),
            allow_control_tokens=asked.allow_control_tokens,
        )

    def _reader(self, form: ReplyForm) -> ReplyReader:
        """Return what reads a reply of a form, to see what it makes of some tokens."""
        tokenizer = self._prompts.tokenizer
        ends = tokenizer.eos_token_ids
        return ReplyReader(tokenizer.detokenizer(), ends=ends, max_tokens=1, form=form)

    def plan_ahead(
        self, conversation: Conversation, config: GenerationConfig, cache: CacheView
    ) -> TurnPlan | None:
        """Plan to read what every prompt begins with that adds a question to a conversation.

        Returns:
            The plan; ``None`` if the cache holds all of it already, or if the next turn has to
            drop messages first.

        Raises:
            TemplateError: if the chat template refuses the conversation.
            ContextLengthError: if the prompt does not fit into the model's context.
        """
        prompt = self._prompts.build_opening(conversation, cache.ledger)
        ids = prompt.ledger.ids
        length = cache.prefix + len(ids)
        if common_prefix(cache.ledger.ids, ids) == len(ids) or self._limit.needs_room(length, 1):
            return None
        self._limit.check(length)
        return TurnPlan(
            conversation=conversation,
            prompt=prompt,
            config=replace(config, max_tokens=0),
            length=length,
            replies=False,
        )

    def plan_cut(
        self, conversation: Conversation, config: GenerationConfig, cache: CacheView
    ) -> TurnPlan:
        """Plan to take back messages: the cache keeps what later prompts still begin with.

        Args:
            conversation: What is left.
            config: The settings of replies.
            cache: What the model has read.
        """
        ledger = cache.ledger
        keep = common_prefix(ledger.ids, self._expected_ids(conversation, ledger))
        return TurnPlan(
            conversation=conversation,
            prompt=Prompt(ledger.truncate(keep)),
            config=config,
            length=cache.prefix + keep,
            replies=False,
        )

    def _expected_ids(self, conversation: Conversation, cached: TokenLedger) -> tuple[int, ...]:
        """Return what the next prompt may begin with; nothing if the template refuses it."""
        messages = conversation.messages
        try:
            if not messages or messages[-1].role in (Role.ASSISTANT, Role.SYSTEM):
                return self._prompts.shared_ids(conversation, cached)
            return self._prompts.build(conversation, cached, checkpoints=False).ledger.ids
        except TemplateError:
            return ()
