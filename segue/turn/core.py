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
from typing import Any, Literal, Self

from ..config import CacheConfig, GenerationConfig, check_generation
from ..conversation import Conversation, last_reply, last_turn
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
from ..grammar.schema import Answer
from ..ledger import TokenLedger, common_prefix
from ..messages import Message
from ..prompt_cache import PromptCache
from ..text.reader import ReplyReader
from ..usage import Reuse, TurnUsage, Usage
from .cache import CachedContext
from .overflow import ContextLimit, OnOverflow
from .plan import Planner, TurnPlan
from .prompts.prompt import PromptBuilder
from .reuse import Opening, Read, explain


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
        prompts = PromptBuilder(engine.tokenizer)
        self._planner = Planner(prompts, self.limit)
        self.writes_date = prompts.renderer.writes_date
        """True if the chat template writes the conversation's date."""
        self.fixed_date = False
        """True if the conversation's date was given, so that it stays when all else is cleared."""
        self.busy = False
        """True while a prompt is made, so that what is called then (templates, `on_overflow`) finds
        the session busy. Set with a plain ``try`` and ``finally``: an interrupt inside a context
        manager's own code could leave it set."""
        self._turns: list[TurnUsage] = []
        self._prewarmed = 0
        # What the cache was read from, and how much of that it held when that was last known.
        self._read: Read | None = None
        if prompt_cache is not None and prompt_cache.ledger is not None:
            self._read = Read(prompt_cache.conversation, prompt_cache.ledger)
        self._held = self.cache.offset
        self._opening = self._found(self._held)
        # The latest turn that replied, with what it found, and what it reused.
        self._latest: tuple[Opening, TurnPlan, int] | None = None
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
        answer: Answer[Any] | None = None,
    ) -> TurnPlan:
        """Plan a reply to new messages.

        Args:
            messages: What is said now; not empty.
            config: The settings of the reply.
            history: What was said before, if not the present history.
            answer: The form of the answer, if it is to have one.

        Raises:
            TemplateError: if the chat template refuses the conversation.
            ContextLengthError: if the prompt does not fit into the model's context.
        """
        before = self.conversation
        if history is not None:
            before = before.with_messages(history)
        return self._planner.plan_turn(before, messages, config, self.cache.view, answer=answer)

    def plan_retry(
        self, config: GenerationConfig, *, answer: Answer[Any] | None = None
    ) -> TurnPlan:
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
            answer=answer,
        )

    def plan_continuation(self, config: GenerationConfig) -> TurnPlan:
        """Plan to continue the last reply.

        Raises:
            HistoryError: if the history does not end in a reply that can be continued.
            TemplateError: if the chat template refuses the conversation.
            ContextLengthError: if the prompt does not fit into the model's context.
        """
        history = self.conversation.messages
        said = last_reply(history)
        before, asked = last_turn(history)
        return self._planner.plan_turn(
            self.conversation.with_messages(before),
            asked,
            config,
            self.cache.view,
            if_empty=history,
            said=said,
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

    def explain_plan(self, plan: TurnPlan) -> Reuse:
        """Return how much a turn would reuse, at most, and why not more."""
        shared = self.shared_tokens(plan)
        return explain(self.engine.tokenizer, self._found(shared), plan, shared)

    def explain(self, opening: Opening, plan: TurnPlan, reused: int) -> Reuse:
        """Return how much a turn reused, and why not more.

        Args:
            opening: The cache, as the turn found it: `opening`.
            plan: The turn.
            reused: How many tokens were reused.
        """
        return explain(self.engine.tokenizer, opening, plan, reused)

    @property
    def opening(self) -> Opening:
        """The cache, as the turn found it that was opened last."""
        return self._opening

    @property
    def latest_reuse(self) -> Reuse | None:
        """What the latest turn reused; ``None`` before the first reply."""
        return None if self._latest is None else self.explain(*self._latest)

    def _found(self, kept: int) -> Opening:
        """Return the cache as it is now, and how many tokens it holds once it was rewound."""
        read = self._read
        if read is not None and not read.lost and self.cache.offset < self._held:
            # Between calls, engines may take memory from their contexts.
            read = replace(read, lost="the engine let go of a part of the cache")
        return Opening(read, self.cache.prefix, self.cache.offset - self.cache.prefix, kept)

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
                grammar=plan.grammar,
            )
        )

    def reader(self, plan: TurnPlan) -> ReplyReader:
        """Return what reads a turn's tokens into text."""
        tokenizer = self.engine.tokenizer
        reader = ReplyReader(
            tokenizer.detokenizer(),
            ends=tokenizer.eos_token_ids,
            max_tokens=plan.config.max_tokens,
            stop=plan.config.stop,
            stop_in_reasoning=plan.config.stop_in_reasoning,
            form=plan.form,
        )
        if plan.said is not None:
            reader.resume(plan.begun, plan.said)
        return reader

    def open(self, plan: TurnPlan, *, feeds: bool = True) -> int:
        """Begin a turn: the cache goes back to what it shares with the prompt.

        Args:
            plan: The turn.
            feeds: Whether its prompt will be fed; if not, the turn is over with this.

        Returns:
            How many tokens of the prompt are cached.
        """
        found = self._found(0)
        cached = self.cache.turn_to(plan.prompt.ledger, feeds=feeds)
        self._opening = replace(found, kept=cached)
        # While it was planned, `on_overflow` may have set instructions or template arguments.
        self.conversation = self.conversation.with_messages(plan.conversation.messages)
        if not feeds:
            self.cache.commit()
            self._read = self._after_cut(plan)
            self._held = self.cache.offset
        return cached

    def _after_cut(self, plan: TurnPlan) -> Read | None:
        """Return what the cache was read from, once messages were taken back."""
        read = self._opening.read
        if read is None:
            return None
        cut = common_prefix(read.conversation.messages, plan.conversation.messages)
        left: int | None = len(plan.prompt.ledger.ids)
        if left == self._opening.held:  # of what was still there, all stays
            left = read.left
        return replace(read, cut=cut if read.cut is None else min(cut, read.cut), left=left)

    def commit(self, plan: TurnPlan, reader: ReplyReader, usage: TurnUsage) -> None:
        """Write back what a turn really did."""
        read = plan.conversation
        if not plan.replies:
            self._prewarmed += usage.fed_tokens
        else:
            self._turns.append(usage)
            self.conversation = self.conversation.with_messages(self.messages_after(plan, reader))
            if plan.if_empty is None or reader.tokens:
                read = read.extended(self.conversation.messages[-1])
            self._latest = (self._opening, plan, usage.cached_tokens)
        self.cache.commit(reader.tokens, begun=plan.begun)
        self._held = self.cache.offset
        if self._held >= self._opening.kept:
            self._read = Read(read, self.cache.ledger)
        else:
            kept = plan.prompt.ledger.truncate(self._opening.kept - self.cache.prefix)
            self._read = Read(plan.conversation, kept, "the cache was emptied by a failure")

    def messages_after(self, plan: TurnPlan, reader: ReplyReader) -> tuple[Message, ...]:
        """Return the history as it is once an open turn ends with what was read so far."""
        if plan.if_empty is not None and not reader.tokens:
            return tuple(plan.if_empty)
        said = Message.assistant(
            reader.text, tool_calls=reader.calls, reasoning=reader.reasoning or None
        )
        return (*self.conversation.messages, said)

    def clear(self, date: datetime) -> None:
        """Forget the conversation; instructions and template arguments stay.

        Args:
            date: The new conversation's date, unless the session has a fixed one.
        """
        self.cache.clear()
        self._read, self._held = None, self.cache.offset
        self.conversation = self.conversation.with_messages(())
        if not self.fixed_date:
            self.conversation = replace(self.conversation, date=date)

    def fork(self) -> Self:
        """Return another core that holds the same; its usage begins anew."""
        twin = copy.copy(self)
        twin.cache = self.cache.fork()
        twin._planner = self._planner.copy()
        twin._turns, twin._prewarmed, twin._latest = [], 0, None
        twin._take_read(self)
        return twin

    def _take_read(self, other: SessionCore) -> None:
        """Note that the cache is a fork of another core's."""
        self._read, self._held = other._read, self.cache.offset
        if self._read is not None and self._held < other._held:
            self._read = replace(self._read, lost="this engine can't copy caches into forks")

    def return_to(self, other: SessionCore) -> None:
        """Hold the conversation of a core that is like this one, and what its context holds."""
        self.cache = self.cache.replaced_by(other.cache)
        self._take_read(other)
        self.conversation = other.conversation

    def set_overflow(self, on_overflow: OnOverflow) -> None:
        """Treat prompts that are too long in another way.

        Raises:
            ConfigurationError: if there is no such way.
        """
        # Not in place: forks share the limit.
        self.limit = ContextLimit(self.engine.context_length, on_overflow)
        self._planner = self._planner.with_limit(self.limit)

    def restore(
        self,
        stored: Mapping[str, StoredState],
        ledger: TokenLedger,
        usage: Usage,
        *,
        conversation: Conversation,
        missing: str,
    ) -> Mapping[str, str]:
        """Continue a saved session.

        Args:
            stored: What its context held.
            ledger: The ids in that.
            usage: What the session had cost.
            conversation: What its context was read from.
            missing: Why nothing of its context is stored, in words.

        Returns:
            The sections that could not be used, and why.
        """
        self._turns, self._prewarmed = list(usage.turns), usage.prewarmed_tokens
        unused = self.cache.restore(
            stored, ledger, Acceptance(usage.proposed_tokens, usage.accepted_tokens)
        )
        self._held = self.cache.offset
        if self.cache.ledger.ids:
            self._read = Read(conversation, self.cache.ledger)
        elif conversation.messages:
            self._read = Read(conversation, None, unused.get("cache", missing).rstrip("."))
        return unused
