"""A conversation: its history, and the KV cache that follows it."""

from __future__ import annotations

import copy
import os
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from .atomic import checked_path
from .config import GenerationConfig, SpeculativeDecodingConfig
from .engine import Engine, Marks, PrefillProgress, check_progress
from .errors import ConfigurationError, PromptCacheError, SessionBusyError
from .interrupt import InterruptHold
from .ledger import common_prefix
from .messages import Message, Role, as_messages, check_messages
from .overflow import ContextLimit, OnOverflow, dropped_from
from .prompt import Prompt, PromptBuilder
from .prompt_cache import PromptCache, describe
from .reasoning import ReasoningSplitter
from .reply import Reply
from .session_cache import SessionCache
from .transcript import Conversation
from .usage import TurnUsage, Usage


class ChatSession:
    """A multi-turn conversation with one model, whose KV cache is kept from turn to turn.

    Each turn feeds the model only the tokens it has not read yet. A session has at most one live
    reply: whatever needs the cache (another turn, `clear`) closes it first, which records it. A
    session belongs to one thread at a time; any number of sessions may share an engine.

    Args:
        engine: The model, from `segue.load` or `segue.MlxEngine`.
        instructions: The system message, put in front of every prompt but not in the history.
        history: A conversation to go on from, a leading system message included. It is read in
            the first turn.
        generation: Settings of the replies.
        template_kwargs: Arguments for the model's chat template (``tools``, ``enable_thinking``);
            copied.
        speculative: Decode faster with a draft.
        cache: A KV cache to begin with, from `segue.load_prompt_cache`. If its tokens are known,
            the session goes on with the conversation that it was saved from, as far as no
            `instructions`, `history` or `template_kwargs` are given; it is kept as far as prompts
            begin with its text. If they are not, it stays in front of all that is said.
        on_overflow: What to do when a prompt would not fit into the model's context: ``"error"``
            raises ContextLengthError; ``"drop-oldest"`` drops the oldest whole turns (never the
            instructions, never half a tool exchange) so that a reply fits, too, and tells them as
            `Reply.dropped`; a callable gets the history and returns the one to go on with.

    Raises:
        ConfigurationError: An argument has the wrong type, the draft does not go with the engine,
            or the cache does not go with it or with `generation`.
        MessageError: The history holds something other than messages.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        instructions: str | None = None,
        history: Iterable[Message] = (),
        generation: GenerationConfig = GenerationConfig(),  # noqa: B008 (immutable)
        template_kwargs: Mapping[str, Any] | None = None,
        speculative: SpeculativeDecodingConfig | None = None,
        cache: PromptCache | None = None,
        on_overflow: OnOverflow = "error",
    ) -> None:
        if not callable(getattr(engine, "context", None)):
            raise ConfigurationError(
                f"{engine!r} is not an engine.",
                remedy="Pass what segue.load(...) returns, or an MlxEngine.",
            )
        if template_kwargs is not None and not isinstance(template_kwargs, Mapping):
            raise ConfigurationError(
                f"template_kwargs maps names to values; it is not {template_kwargs!r}.",
                remedy="Pass a dict such as {'enable_thinking': False}.",
            )
        _check_generation(generation)
        self._engine = engine
        self._limit = ContextLimit(engine.context_length, on_overflow)
        self._cache = SessionCache(engine, generation, speculative=speculative, start=cache)
        self._generation = self._cache.config
        self._history = list(check_messages(history))
        given = instructions is not None or self._history or template_kwargs is not None
        if cache is not None and not given:
            instructions, template_kwargs = cache.instructions, cache.template_kwargs
            self._history = list(cache.history)
        self.instructions = instructions
        self._template_kwargs = copy.deepcopy(dict(template_kwargs or {}))
        self._prompts = PromptBuilder(engine.tokenizer, self._template_kwargs)
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
        self._instructions = instructions

    @property
    def generation(self) -> GenerationConfig:
        """The settings of replies. Settable; takes effect in the next turn."""
        return self._generation

    @generation.setter
    def generation(self, generation: GenerationConfig) -> None:
        _check_generation(generation)
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
            tuple(self._turns), read["prewarm"], read["settle"], len(marks.offsets), marks.nbytes
        )

    def respond(
        self,
        prompt: str | Message | Sequence[Message],
        *,
        role: Role = Role.USER,
        reasoning: bool = False,
        prompt_progress_callback: PrefillProgress | None = None,
    ) -> str:
        """Take a turn and return the whole reply.

        Errors are those of `stream`; a GenerationError is raised here.

        Args:
            prompt: See `stream`.
            role: See `stream`.
            reasoning: Put what the model thought in front of its answer, a blank line between them.
            prompt_progress_callback: See `stream`.

        Returns:
            The reply's text, as the history records it.
        """
        with self.stream(
            prompt, role=role, prompt_progress_callback=prompt_progress_callback
        ) as reply:
            for _ in reply:
                pass
        return "\n\n".join(
            text for text in (reply.reasoning if reasoning else "", reply.text) if text
        )

    def stream(
        self,
        prompt: str | Message | Sequence[Message],
        *,
        role: Role = Role.USER,
        prompt_progress_callback: PrefillProgress | None = None,
    ) -> Reply:
        """Begin a turn; the model works as the reply is iterated.

        A live reply is closed first, whatever comes of this one. The new messages are in the
        history when this returns; nothing has been fed yet.

        Args:
            prompt: Text, a message, or several messages (the results of several tools, say).
            role: Who speaks a prompt that is mere text.
            prompt_progress_callback: Called with ``(tokens fed, tokens to feed)`` during prefill.

        Raises:
            MessageError: The prompt is not of such a form; nothing changed.
            TemplateError: The chat template refused the conversation; nothing changed.
            ConfigurationError: The model can't do what `generation` asks; nothing changed.
            ContextLengthError: The prompt does not fit into the model's context; nothing changed.
            SessionBusyError: A turn of this session is running at this moment.
        """
        messages = as_messages(prompt, role)
        check_progress(prompt_progress_callback)
        self._close_live()
        # Whatever is called from here on (templates, on_overflow) finds the session busy.
        self._busy = True
        try:
            return self._begin(messages, prompt_progress_callback)
        finally:
            self._busy = False

    def _begin(self, messages: Sequence[Message], progress: PrefillProgress | None) -> Reply:
        config, prompts, cache = self._generation, self._prompts, self._cache
        tokenizer = self._engine.tokenizer
        # A cache of another kind is replaced only once nothing can be refused any more.
        context = cache.context_for(config)
        held = cache.held(config)

        def build(history: Sequence[Message], *, places: bool) -> tuple[Prompt, int]:
            built = prompts.build(self._system, [*history, *messages], held, places=places)
            return built, context.prefix + len(built.ledger.ids)

        def measure(history: Sequence[Message]) -> int:
            return build(history, places=False)[1]

        history = tuple(self._history)
        dropped: tuple[Message, ...] = ()
        built, length = build(history, places=context.wants_marks)
        if self._limit.needs_room(length, config.max_tokens):
            kept = self._limit.make_room(history, messages, measure, max_tokens=config.max_tokens)
            history, dropped = kept, dropped_from(history, kept)
            built, length = build(history, places=context.wants_marks)
        self._limit.check(length)
        config = self._limit.within(config, length)
        ids, text = built.ledger.ids, built.ledger.text
        marks = (built.opening, built.stable)
        steps = context.generate(ids, config, progress, marks=marks, pinned=built.opening)
        detokenizer = tokenizer.detokenizer()
        # The template may begin the reasoning; a prompt that ends in what was asked does not.
        asked = messages[-1].content.strip()
        behind = "" if asked and text.rstrip().endswith(asked) else text
        hold = InterruptHold()
        with hold:
            cached = cache.turn_to(context, config, built.ledger)
            self._history[:] = [*history, *messages]
            reply = Reply(
                steps,
                context=context,
                eos_token_ids=tokenizer.eos_token_ids,
                detokenizer=detokenizer,
                splitter=ReasoningSplitter(tokenizer.reasoning_tags, behind),
                config=config,
                prompt_tokens=length,
                cached_tokens=cached,
                dropped=dropped,
                record=self._record,
            )
            self._live = weakref.ref(reply)
            # The reply is dropped then, which records it as empty.
            hold.deliver()
        return reply

    def prewarm(
        self,
        *,
        prompt_progress_callback: PrefillProgress | None = None,
        prefill_step_size: int | None = None,
    ) -> int:
        """Read what the next prompt will begin with: instructions, tools and history.

        The turn after that feeds only its own message. A live reply is closed first. To break it
        off, raise an exception in the callback: what was read until then stays.

        Args:
            prompt_progress_callback: Called with ``(tokens fed, tokens to feed)``.
            prefill_step_size: How many tokens are fed at a time, if not as `generation` says.

        Returns:
            How many tokens were fed.

        Raises:
            TemplateError: The chat template refused the conversation; nothing changed.
            ConfigurationError: The model can't do what `generation` asks; nothing changed.
            ContextLengthError: It does not fit into the model's context; nothing changed.
            GenerationError: The model failed.
        """
        return self._read_ahead("prewarm", prompt_progress_callback, prefill_step_size)

    def settle(
        self,
        *,
        prompt_progress_callback: PrefillProgress | None = None,
        prefill_step_size: int | None = None,
    ) -> int:
        """Read, after a turn, what the next prompt has and the cache lacks.

        Many templates render a reply otherwise than it was said, without its reasoning, say, so
        that it must be read again. Better while the person is typing than when they wait.

        Args, errors and what it returns are those of `prewarm`.
        """
        return self._read_ahead("settle", prompt_progress_callback, prefill_step_size)

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

    def save_cache(self, path: str | os.PathLike[str]) -> None:
        """Write the KV cache to a file, for `segue.load_prompt_cache`.

        mlx-lm opens it as well, and its commands do if they can load the model themselves.

        It holds what was read and said so far, and names it. (If the session itself began with a
        cache that does not, the whole is one of that kind.) A live reply is closed first. The file
        is replaced in one piece: if anything goes wrong, an earlier one is left as it was.

        Args:
            path: The file; mlx-lm opens it if its name ends in ``.safetensors``.

        Raises:
            PromptCacheError: There is no cache yet, or the file can't be written.
        """
        place = checked_path(path)
        self._close_live()
        context = self._cache.context
        if context is None or not self.has_cache:
            raise PromptCacheError(
                "This session has no cache yet, so there is nothing to save.",
                remedy="Take a turn first, or call prewarm().",
            )
        metadata = describe(
            self._engine.fingerprint,
            None if self._cache.opaque else self._cache.ledger,
            self._conversation,
        )
        context.save(place, metadata)

    def clear(self) -> None:
        """Forget the conversation: drop cache and history, keep instructions and settings.

        A cache that the session began with, and whose tokens nobody told, stays in front.
        """
        self._close_live()
        self._cache.clear()
        self._history.clear()

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

    def _record(self, reply: Reply) -> None:
        """Write back what a turn really did; called by the reply, once."""
        self._turns.append(reply.usage)
        self._history.append(Message.assistant(reply.text, reasoning=reply.reasoning or None))
        self._cache.commit(reply.tokens)


def _check_generation(generation: GenerationConfig) -> None:
    if not isinstance(generation, GenerationConfig):
        raise ConfigurationError(
            f"generation is a GenerationConfig, not {type(generation).__name__}.",
            remedy="Build one: GenerationConfig(max_tokens=..., temperature=...).",
        )
