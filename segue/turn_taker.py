"""Taking turns: what every session does over its cache, its history and one live reply."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from .config import GenerationConfig
from .engine import Engine, PrefillProgress, check_progress
from .errors import SessionBusyError, TemplateError
from .interrupt import InterruptHold
from .ledger import TokenLedger, common_prefix
from .messages import Message, Role
from .overflow import ContextLimit
from .prompt import PromptBuilder
from .reasoning import ReasoningSplitter
from .reply import Reply
from .session_cache import SessionCache
from .transcript import Conversation
from .turn import plan_turn
from .usage import TurnUsage


class TurnTaker:
    """The machinery of a `ChatSession`: how turns begin, end, are taken back, and are read ahead.

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
        self._instructions = instructions
        self._template_kwargs = template_kwargs
        self._prompts = PromptBuilder(engine.tokenizer, template_kwargs)
        self._live: weakref.ref[Reply] | None = None
        self._busy = False
        self._turns: list[TurnUsage] = []
        # Tokens that were fed outside of turns.
        self._read: Counter[str] = Counter()

    def _begin(
        self,
        history: Sequence[Message],
        messages: Sequence[Message],
        config: GenerationConfig,
        progress: PrefillProgress | None,
        instead_of: Sequence[Message] = (),
    ) -> Reply:
        """Begin a turn behind this history, which replaces the session's own.

        Should nothing be said, `instead_of` is put where the reply would be.
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
                    record=partial(self._record, instead_of=tuple(instead_of)),
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
        taken = tuple(self._history[place:])
        hold = InterruptHold()
        with hold:
            self._history[place:] = instead
            self._busy = True
            try:
                held = self._cache.held(self._generation)
                ids = self._expected_ids(held)
                # One id less: that of a whole prompt is always fed.
                self._cache.rewind(common_prefix(held.ids, ids))
            except TemplateError:
                pass  # the next turn's prompt, should there be one, will say how far
            finally:
                self._busy = False
            hold.deliver()
        return taken

    def _expected_ids(self, held: TokenLedger) -> tuple[int, ...]:
        """What the next prompt may begin with."""
        history, system = self._history, self._system
        if not history or history[-1].role in (Role.ASSISTANT, Role.SYSTEM):
            return self._prompts.shared_ids(system, history, held)
        return self._prompts.build(system, history, held, places=False).ledger.ids

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

    def _record(self, reply: Reply, *, instead_of: tuple[Message, ...]) -> None:
        """Write back what a turn really did; called by the reply, once."""
        self._turns.append(reply.usage)
        if instead_of and not reply.tokens:
            self._history.extend(instead_of)
        else:
            said = Message.assistant(reply.text, reasoning=reply.reasoning or None)
            self._history.append(said)
        self._cache.commit(reply.tokens)
