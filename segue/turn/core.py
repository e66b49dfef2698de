"""SessionCore: what a session is at any moment, and what a turn makes of it.

A turn has four moments. Whoever drives it (a `Reply`, an async reply, a scheduler of many sessions)
goes through them in this order::

    plan      pure: builds nothing, changes nothing, may be thrown away
    run       asks the context for a generator; nothing is fed before its first step
    open      rewinds the cache to what it shares with the prompt, and changes the conversation
    commit    writes back what really happened, exactly once, however the turn ended

The core itself has no generator, no clock and no signal; between `open` and `commit` it only waits.
Reading ahead is a turn that records no reply, and taking messages back is one that is opened and
not run.

What does not work: opening a plan after the conversation changed. Plan and open in one go.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Literal, Self

from ..config import CacheConfig, GenerationConfig, check_generation
from ..conversation import Conversation, last_turn
from ..engine import (
    Acceptance,
    Engine,
    PrefillProgress,
    ProcessesLogits,
    Request,
    Step,
    StoredState,
)
from ..errors import SessionBusyError, TemplateWarning
from ..ledger import TokenLedger
from ..messages import Message
from ..prompt_cache import PromptCache
from ..text.reader import ReplyReader
from ..usage import TurnUsage, Usage
from .cache import CachedContext
from .overflow import ContextLimit, OnOverflow
from .plan import Planner, TurnPlan
from .prompt import PromptBuilder


class SessionCore:
    """A conversation, the context that has read it, and how turns change the two.

    Args:
        engine: The model.
        conversation: What was said before.
        generation: The settings of replies.
        cache: The kind of cache.
        draft: What drafts, if anything does.
        prompt_cache: What the cache holds from the start.
        on_overflow: What to do about prompts that are too long.

    Raises:
        ConfigurationError: if something is of the wrong type, or does not suit the engine.
    """

    def __init__(
        self,
        engine: Engine,
        conversation: Conversation,
        *,
        generation: GenerationConfig,
        cache: CacheConfig,
        draft: Engine | Literal["prompt-lookup"] | None = None,
        prompt_cache: PromptCache | None = None,
        on_overflow: OnOverflow = "error",
    ) -> None:
        self.engine = engine
        self.conversation = conversation
        """The conversation so far."""
        self.limit = ContextLimit(engine.context_length, on_overflow)
        """The model's context, and what to do about prompts that are too long."""
        self.cache = CachedContext(engine, cache, draft=draft, prompt_cache=prompt_cache)
        """The context, with the ledger of what it holds."""
        self.generation = self.checked(generation)
        """The settings of replies, unless they are overridden."""
        self._planner = Planner(PromptBuilder(engine.tokenizer), self.limit)
        self.fixed_date = False
        """True if the conversation's date was given, so that it stays when all else is cleared."""
        self.busy = False
        """True while a prompt is made, so that what is called then (templates, `on_overflow`) finds
        the session busy. Set with a plain ``try`` and ``finally``: an interrupt inside a context
        manager's own code could leave it set."""
        self._turns: list[TurnUsage] = []
        self._prewarmed = 0
        # What was said of the template already; forks need not say it again.
        self._warned: set[str] = set()

    def checked(self, generation: GenerationConfig) -> GenerationConfig:
        """Return settings that the engine can follow.

        Raises:
            ConfigurationError: if they are no settings.
            UnsupportedFeatureError: if the engine lacks what they ask for.
        """
        check_generation(generation)
        if generation.logits_processors:
            self.cache.require(
                ProcessesLogits, feature="logits processors", remedy="Leave logits_processors out."
            )
        return generation

    @property
    def usage(self) -> Usage:
        """The cost of the session so far; an open turn counts once it is committed."""
        checkpoints, acceptance = self.cache.checkpoints, self.cache.acceptance
        return Usage(
            turns=tuple(self._turns),
            prewarmed_tokens=self._prewarmed,
            checkpoints=len(checkpoints.offsets),
            checkpoint_bytes=checkpoints.nbytes,
            proposed_tokens=acceptance.proposed,
            accepted_tokens=acceptance.accepted,
        )

    def check_idle(self) -> None:
        """Refuse to be used while a prompt is being made.

        Raises:
            SessionBusyError: if it is.
        """
        if self.busy:
            raise SessionBusyError(
                "This session is making a prompt at this moment.",
                remedy="Don't use it inside its own callbacks, nor from two threads.",
            )

    def plan_turn(
        self,
        messages: Sequence[Message],
        config: GenerationConfig,
        *,
        history: Sequence[Message] | None = None,
    ) -> TurnPlan:
        """Plan a reply to new messages.

        Args:
            messages: What is said now; not empty.
            config: The settings of the reply.
            history: What was said before, if not the present history.

        Raises:
            TemplateError: if the chat template refuses the conversation.
            ContextLengthError: if the prompt does not fit into the model's context.
        """
        before = self.conversation
        if history is not None:
            before = before.with_messages(history)
        return self._planner.plan_turn(before, messages, config, self.cache.view)

    def plan_retry(self, config: GenerationConfig) -> TurnPlan:
        """Plan another reply in place of the last one, or one to a question that has none.

        Raises:
            HistoryError: if there is nothing to reply to.
            TemplateError: if the chat template refuses the conversation.
            ContextLengthError: if the prompt does not fit into the model's context.
        """
        before, asked = last_turn(self.conversation.messages)
        return self._planner.plan_turn(
            self.conversation.with_messages(before),
            asked,
            config,
            self.cache.view,
            if_empty=self.conversation.messages,
        )

    def plan_ahead(self, config: GenerationConfig) -> TurnPlan | None:
        """Plan to read what the next prompt begins with; ``None`` if nothing is to be read.

        Raises:
            TemplateError: if the chat template refuses the conversation.
            ContextLengthError: if the prompt does not fit into the model's context.
        """
        return self._planner.plan_ahead(self.conversation, config, self.cache.view)

    def plan_cut(self, messages: Sequence[Message]) -> TurnPlan:
        """Plan to go back to a shorter history, which may end in another message."""
        left = self.conversation.with_messages(messages)
        return self._planner.plan_cut(left, self.generation, self.cache.view)

    def warn(self, plan: TurnPlan, *, stacklevel: int) -> None:
        """Warn of what the chat template leaves out of a prompt, once of each thing.

        Args:
            plan: The turn.
            stacklevel: As `warnings.warn` has it, from here.
        """
        for sentence in plan.prompt.left_out:
            if sentence not in self._warned:
                # Before it: where warnings are errors, the next attempt is not refused.
                self._warned.add(sentence)
                warnings.warn(sentence, TemplateWarning, stacklevel=stacklevel + 1)

    def shared_tokens(self, plan: TurnPlan) -> int:
        """Return how many tokens of a turn's prompt are cached, at most."""
        return self.cache.prefix + self.cache.shared(plan.prompt.ledger)

    def run(self, plan: TurnPlan, progress: PrefillProgress | None) -> Generator[Step, None, None]:
        """Return a generator of a turn's steps; the first one feeds the prompt.

        Raises:
            ConfigurationError: if the engine can't do what the settings ask.
        """
        prompt = plan.prompt
        return self.cache.run(
            Request(
                ids=prompt.ledger.ids,
                config=plan.config,
                progress=progress,
                ends=self.engine.tokenizer.eos_token_ids,
                checkpoints=(prompt.opening, prompt.stable),
                pinned=prompt.opening,
            )
        )

    def reader(self, plan: TurnPlan) -> ReplyReader:
        """Return what reads a turn's tokens into text."""
        tokenizer = self.engine.tokenizer
        return ReplyReader(
            tokenizer.detokenizer(),
            ends=tokenizer.eos_token_ids,
            max_tokens=plan.config.max_tokens,
            stop=plan.config.stop,
            stop_in_reasoning=plan.config.stop_in_reasoning,
            form=plan.form,
        )

    def open(self, plan: TurnPlan, *, feeds: bool = True) -> int:
        """Begin a turn: the cache goes back to what it shares with the prompt.

        Args:
            plan: The turn.
            feeds: Whether its prompt will be fed; if not, the turn is over with this.

        Returns:
            How many tokens of the prompt are cached.
        """
        cached = self.cache.turn_to(plan.prompt.ledger, feeds=feeds)
        # While it was planned, `on_overflow` may have set instructions or template arguments.
        self.conversation = self.conversation.with_messages(plan.conversation.messages)
        if not feeds:
            self.cache.commit()
        return cached

    def commit(self, plan: TurnPlan, reader: ReplyReader, usage: TurnUsage) -> None:
        """Write back what a turn really did."""
        if not plan.replies:
            self._prewarmed += usage.fed_tokens
        else:
            self._turns.append(usage)
            if plan.if_empty is not None and not reader.tokens:
                self.conversation = self.conversation.with_messages(plan.if_empty)
            else:
                said = Message.assistant(
                    reader.text, tool_calls=reader.calls, reasoning=reader.reasoning or None
                )
                self.conversation = self.conversation.extended(said)
        self.cache.commit(reader.tokens)

    def clear(self, date: datetime) -> None:
        """Forget the conversation; instructions and template arguments stay.

        Args:
            date: The new conversation's date, unless the session has a fixed one.
        """
        self.cache.clear()
        self.conversation = self.conversation.with_messages(())
        if not self.fixed_date:
            self.conversation = replace(self.conversation, date=date)

    def fork(self) -> Self:
        """Return another core that holds the same; its usage begins anew."""
        twin = copy.copy(self)
        twin.cache = self.cache.fork()
        twin._turns, twin._prewarmed = [], 0
        return twin

    def restore(
        self, stored: Mapping[str, StoredState], ledger: TokenLedger, usage: Usage
    ) -> Mapping[str, str]:
        """Continue a saved session.

        Args:
            stored: What its context held.
            ledger: The ids in that.
            usage: What the session had cost.

        Returns:
            The sections that could not be used, and why.
        """
        self._turns, self._prewarmed = list(usage.turns), usage.prewarmed_tokens
        return self.cache.restore(
            stored, ledger, Acceptance(usage.proposed_tokens, usage.accepted_tokens)
        )
