"""Taking turns: what every session does over its cache, its history and one live reply."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, NoReturn

from ..config import GenerationConfig
from ..engine import Engine, Marks, PrefillProgress, check_progress
from ..errors import ConfigurationError, SessionBusyError, TemplateError
from ..interrupt import InterruptHold
from ..ledger import TokenLedger, common_prefix
from ..messages import Message, Role
from ..store.texts import Conversation
from ..text.tags import ReasoningSplitter
from ..usage import TurnUsage, Usage
from .cache import SessionCache
from .overflow import ContextLimit
from .plan import plan_turn
from .prompt import PromptBuilder
from .reply import Reply


class TurnTaker:
    """What a `ChatSession` is at any moment, and how its turns begin, end, and are taken back.

    Nothing but the newest reply is live, and whatever needs the cache closes it first.

    Args:
        engine: The model.
        cache: What it has read.
        limit: What it can look back on.
        history: What was said before.
        instructions: The system message.
        template_kwargs: Arguments for the chat template.
    """

    def __init__(
        self,
        engine: Engine,
        cache: SessionCache,
        limit: ContextLimit,
        history: Sequence[Message],
        instructions: str | None,
        template_kwargs: Mapping[str, Any],
    ) -> None:
        self._engine = engine
        self._cache = cache
        self._generation = cache.config
        self._limit = limit
        self._history = list(history)
        self.instructions = instructions
        self._template_kwargs = template_kwargs
        self._prompts = PromptBuilder(engine.tokenizer, template_kwargs)
        self._live: weakref.ref[Reply] | None = None
        self._busy = False
        self._turns: list[TurnUsage] = []
        # Tokens that were fed outside of turns.
        self._read: Counter[str] = Counter()

    @property
    def instructions(self) -> str | None:
        """The system message, or ``None``. Settable; takes effect in the next turn."""
        return self._instructions

    @instructions.setter
    def instructions(self, instructions: str | None) -> None:
        if instructions is not None and not isinstance(instructions, str):
            raise ConfigurationError(
                f"Instructions are text, not {type(instructions).__name__}.",
                remedy="Pass a string, or None for no system message.",
            )
        if instructions is not None:
            Message.system(instructions)  # refuses what is no text
        self._instructions = instructions

    @property
    def generation(self) -> GenerationConfig:
        """The settings of replies. Settable; takes effect in the next turn."""
        return self._generation

    @generation.setter
    def generation(self, generation: GenerationConfig) -> None:
        check_generation(generation)
        self._generation = self._cache.settle(generation)

    @property
    def template_kwargs(self) -> Mapping[str, Any]:
        """Arguments for the chat template, read-only."""
        return MappingProxyType(self._template_kwargs)

    @property
    def history(self) -> tuple[Message, ...]:
        """What was said, oldest first, without the instructions.

        A live reply's own message joins it when the reply ends.
        """
        return tuple(self._history)

    @property
    def has_cache(self) -> bool:
        """Whether a KV cache holds any of this conversation, or a prefix of it."""
        return self.cached_tokens > 0 or self._cache.opaque

    @property
    def cached_tokens(self) -> int:
        """How many tokens the KV cache stands for.

        With `GenerationConfig.max_kv_size`, and in models with sliding windows, the oldest of them
        are counted although their keys and values have made room for newer ones.
        """
        return self._cache.offset

    @property
    def acceptance_rate(self) -> float | None:
        """The share of the draft's tokens that the model took, over all turns so far.

        ``None`` as long as nothing was proposed.
        """
        proposed, accepted = self._cache.acceptance
        return accepted / proposed if proposed else None

    @property
    def usage(self) -> Usage:
        """What the session has cost so far; a live reply counts once it has ended."""
        marks = Marks() if self._cache.context is None else self._cache.context.marks
        read = self._read
        return Usage(
            tuple(self._turns),
            read["prewarm"],
            read["settle"],
            len(marks.offsets),
            marks.nbytes,
            *self._cache.acceptance,
        )

    def _begin(
        self,
        history: Sequence[Message],
        messages: Sequence[Message],
        config: GenerationConfig,
        progress: PrefillProgress | None,
        otherwise: Sequence[Message] | None = None,
    ) -> Reply:
        """Begin a turn behind this history, which replaces the session's own.

        Should nothing be said, `otherwise` takes its place, if there is such a history.
        """
        # Whatever is called from here on (templates, on_overflow) finds the session busy.
        self._busy = True
        try:
            cache, tokenizer = self._cache, self._engine.tokenizer
            turn = plan_turn(
                history,
                messages,
                system=self._system,
                config=config,
                prompts=self._prompts,
                cache=cache,
                limit=self._limit,
            )
            prompt = turn.prompt
            steps = turn.context.generate(
                prompt.ledger.ids,
                turn.config,
                progress,
                marks=(prompt.opening, prompt.stable),
                pinned=prompt.opening,
            )
            detokenizer = tokenizer.detokenizer()
            hold = InterruptHold()
            with hold:
                cached = cache.turn_to(turn.context, turn.config, prompt.ledger)
                self._history[:] = [*turn.history, *turn.messages]
                reply = Reply(
                    steps,
                    context=turn.context,
                    eos_token_ids=tokenizer.eos_token_ids,
                    detokenizer=detokenizer,
                    splitter=ReasoningSplitter(tokenizer.reasoning_tags, turn.behind),
                    config=turn.config,
                    prompt_tokens=turn.length,
                    cached_tokens=cached,
                    dropped=turn.dropped,
                    record=partial(self._record, otherwise=otherwise),
                )
                self._live = weakref.ref(reply)
                # The reply is dropped then, which records it as empty.
                hold.deliver()
            return reply
        finally:
            self._busy = False

    def _read_ahead(
        self, reason: str, progress: PrefillProgress | None, step_size: int | None
    ) -> int:
        """Feed what every next prompt will begin with; how many tokens that was."""
        check_progress(progress)
        self._close_live()
        step_size = self._generation.prefill_step_size if step_size is None else step_size
        config = replace(self._generation, max_tokens=0, prefill_step_size=step_size)
        cache, hold, fed = self._cache, InterruptHold(), 0
        self._busy = True
        try:
            held = cache.held(config)
            opening = self._prompts.build_opening(self._system, self._history, held)
            ids = opening.ledger.ids
            if common_prefix(held.ids, ids) == len(ids):
                return 0
            context = cache.context_for(config)
            length = context.prefix + len(ids)
            if self._limit.needs_room(length, 1):
                return 0  # the next turn makes room first
            self._limit.check(length)
            places = (opening.opening, opening.stable)
            steps = context.generate(ids, config, progress, marks=places, pinned=opening.opening)
            with hold:
                before = cache.turn_to(context, config, opening.ledger)
                try:
                    for _ in steps:
                        pass
                finally:
                    cache.commit()
                    fed = max(context.offset - before, 0)
                    self._read[reason] += fed
                hold.deliver()
        except BaseException:
            hold.pass_on()
            raise
        finally:
            self._busy = False
        return fed

    def _cut(self, place: int, *instead: Message) -> tuple[Message, ...]:
        """Drop the messages from a place on, and what the cache holds of them."""
        taken, left = tuple(self._history[place:]), [*self._history[:place], *instead]
        hold = InterruptHold()
        self._busy = True
        try:
            held = self._cache.held(self._generation)
            keep = common_prefix(held.ids, self._expected_ids(left, held))
            with hold:
                self._history[:] = left
                self._cache.rewind(keep)
                hold.deliver()
        finally:
            self._busy = False
        return taken

    def _expected_ids(self, history: Sequence[Message], held: TokenLedger) -> tuple[int, ...]:
        """What the next prompt may begin with; nothing if the template refuses such a history."""
        try:
            if not history or history[-1].role in (Role.ASSISTANT, Role.SYSTEM):
                return self._prompts.shared_ids(self._system, history, held)
            return self._prompts.build(self._system, history, held, places=False).ledger.ids
        except TemplateError:
            return ()

    def __reduce__(self) -> NoReturn:
        """Copies and pickles would share what one session alone may change."""
        raise ConfigurationError(
            "A session can't be copied or pickled as other objects are.",
            remedy="Use fork() for another one, or save() and open() for another process.",
        )

    def _close_live(self) -> None:
        if self._busy:
            raise SessionBusyError(
                "This session is making or reading a prompt at this moment.",
                remedy="Don't use it inside its own callbacks, nor from two threads.",
            )
        reply = self._live() if self._live is not None else None
        if reply is not None:
            reply.close()
        self._live = None

    @property
    def _conversation(self) -> Conversation:
        return Conversation(self._instructions, tuple(self._history), self._template_kwargs)

    @property
    def _system(self) -> Message | None:
        return None if self._instructions is None else Message.system(self._instructions)

    def _record(self, reply: Reply, *, otherwise: Sequence[Message] | None) -> None:
        """Write back what a turn really did; called by the reply, once."""
        self._turns.append(reply.usage)
        if otherwise is not None and not reply.tokens:
            self._history[:] = otherwise
        else:
            said = Message.assistant(reply.text, reasoning=reply.reasoning or None)
            self._history.append(said)
        self._cache.commit(reply.tokens)


def check_generation(generation: GenerationConfig) -> None:
    """Refuse what are no settings.

    Raises:
        ConfigurationError: They are not.
    """
    if not isinstance(generation, GenerationConfig):
        raise ConfigurationError(
            f"generation is a GenerationConfig, not {type(generation).__name__}.",
            remedy="Build one: GenerationConfig(max_tokens=..., temperature=...).",
        )
