"""ChatSession: a conversation, and everything one can do with it."""

from __future__ import annotations

import difflib
import os
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, TypeVar, Unpack, overload

from .checks import check_engine, check_flag, named_arguments
from .config import (
    CACHE_HINTS,
    GENERATION_HINTS,
    CacheConfig,
    GenerationConfig,
    GenerationOverrides,
    check_cache,
    check_generation,
    with_overrides,
)
from .conversation import Conversation, checked_index, start_of_turns
from .engine import Engine, PrefillProgress, StoredState, Stores
from .errors import ConfigurationError, PromptCacheError, SessionWarning
from .files.lock import FileLock
from .files.path import checked_path
from .grammar.constraint import asked_form
from .grammar.schema import Lark, Regex
from .interrupt import InterruptHold
from .messages import AnyRole, Message, Role, as_messages, check_messages
from .prompt_cache import PromptCache
from .store.opening import SavedState, lock_to_read, opening_arguments, warn_of_losses
from .store.prompt_cache import describe
from .store.saving import write_session
from .store.session_file import SessionFile
from .store.settings import SessionSettings
from .turn.core import SessionCore
from .turn.overflow import OnOverflow
from .turn.plan import TurnPlan
from .turn.reply import Reply
from .usage import Reuse, TurnPreview, Usage

Answered = TypeVar("Answered")


class ChatSession:
    """A multi-turn conversation with one model, whose KV cache stays from turn to turn.

    Each turn feeds the model only the tokens it has not read yet. A session has at most one live
    reply: whatever needs the cache (another turn, `clear`) closes it first, which records it. A
    session belongs to one thread at a time; any number of sessions may share an engine. Use the
    same few threads again and again: an engine may keep memory for each that ever ran a model.

    Examples:
        >>> import segue
        >>> from segue.testing import FakeEngine
        >>> session = segue.ChatSession(FakeEngine(["Hello!", "Fine."]), instructions="Be brief.")
        >>> session.respond("Hi")
        'Hello!'
        >>> session.respond("How are you?", temperature=0.7)
        'Fine.'
        >>> [message.role.value for message in session.history]
        ['user', 'assistant', 'user', 'assistant']

    Args:
        engine: The model, from `segue.load` or `segue.MlxEngine`.
        instructions: The system message, before every prompt but not in the history.
        history: An existing conversation to start from, a leading system message included. It is
            read in the first turn.
        template_kwargs: Arguments for the model's chat template (``tools``, ``enable_thinking``);
            copied.
        generation: Settings of the replies. Every verb that replies takes overrides.
        cache: Settings of the KV cache, fixed for the session's life.
        draft: Decode faster: ``"prompt-lookup"`` proposes what followed the same tokens earlier in
            the conversation (Saxena 2023), at no cost in memory; an engine proposes with its own,
            smaller model, which must have the same vocabulary. The model checks several proposals
            in one pass. The reply stays what the model alone would have said: the same tokens where
            the likeliest one is taken, and the same distribution where they are sampled (rejection
            sampling, Leviathan et al. 2023, "Fast Inference from Transformers via Speculative
            Decoding"). A draft that does not pay, by the clock, is left out until it is tried
            again, ever more rarely.
        prompt_cache: A KV cache to begin with, from `segue.load_prompt_cache`. If its tokens are
            known, the session continues the conversation that it was saved from, unless
            `instructions`, `history` or `template_kwargs` are given; the cache is used as far as
            prompts begin with its text. If they aren't, it stays before everything that is said.
        on_overflow: What to do when a prompt would not fit into the model's context: ``"error"``
            raises ContextLengthError; ``"drop-oldest"`` drops the oldest whole turns (never the
            instructions, never half a tool exchange) so that a reply fits, too, and lists them as
            `Reply.dropped`; a function gets the history and returns the one to continue with.
        date: The time that the chat template writes, if it writes the date; see `date`.
        allow_control_tokens: Let the model read control tokens that are spelled in what people and
            tools say (``<|im_end|>``) as control tokens: whoever writes a message can end it then,
            and speak as the system. By default they are text, as far as the engine's tokenizer can
            tell the two apart (`segue.engine.ControlTokens`).

    Raises:
        ConfigurationError: if an argument has the wrong type, or the draft, the cache or the prompt
            cache does not suit the engine.
        UnsupportedFeatureError: if the engine lacks what an argument asks for.
        MessageError: if the history holds something other than messages.
    """

    @named_arguments({**CACHE_HINTS, **GENERATION_HINTS}, owner="ChatSession")
    def __init__(
        self,
        engine: Engine,
        *,
        instructions: str | None = None,
        history: Iterable[Message] = (),
        template_kwargs: Mapping[str, Any] | None = None,
        generation: GenerationConfig = GenerationConfig(),  # noqa: B008 (immutable)
        cache: CacheConfig = CacheConfig(),  # noqa: B008 (immutable)
        draft: Engine | Literal["prompt-lookup"] | None = None,
        prompt_cache: PromptCache | None = None,
        on_overflow: OnOverflow = "error",
        date: datetime | None = None,
        allow_control_tokens: bool = False,
    ) -> None:
        check_engine(engine)
        check_generation(generation)
        check_cache(cache)
        conversation = Conversation(
            instructions,
            history,
            {} if template_kwargs is None else template_kwargs,
            date,
            allow_control_tokens,
        )
        given = instructions is not None or conversation.messages or template_kwargs is not None
        begun = None
        if isinstance(prompt_cache, PromptCache):
            # Other words may be given, but the cache's own text has its date.
            begun = prompt_cache.conversation.date
            if not given:
                conversation = prompt_cache.conversation
                if allow_control_tokens:
                    conversation = replace(conversation, allow_control_tokens=True)
        conversation = replace(conversation, date=date or begun or _now())
        self._take(
            SessionCore(
                engine,
                conversation,
                generation=generation,
                cache=cache,
                draft=draft,
                prompt_cache=prompt_cache,
                on_overflow=on_overflow,
            )
        )
        self._core.fixed_date = date is not None

    def _take(self, core: SessionCore) -> None:
        self._core = core
        # The lock of the file that this session was saved to or opened from.
        self._lock: FileLock | None = None
        self._live: weakref.ref[Reply] | None = None

    def __repr__(self) -> str:
        history = self._core.conversation.messages
        return (
            f"<ChatSession with {self._core.engine.name}: {len(history)} messages, "
            f"{self.cached_tokens:,} tokens cached>"
        )

    # Type checkers would take any attribute of a class that has this.
    if not TYPE_CHECKING:

        def __setattr__(self, name: str, value: object) -> None:
            """Refuse what is no attribute of a session: a misspelt setting would do nothing.

            Subclasses may keep what they like.
            """
            if type(self) is ChatSession and not (
                name.startswith("_") or hasattr(ChatSession, name)
            ):
                known = [each for each in dir(ChatSession) if not each.startswith("_")]
                near = difflib.get_close_matches(name, known, n=1)
                hint = f" Did you mean {near[0]}?" if near else ""
                raise AttributeError(f"ChatSession has no attribute {name!r}.{hint}")
            super().__setattr__(name, value)

    @property
    def instructions(self) -> str | None:
        """The system message, or ``None``. Settable; takes effect in the next turn."""
        return self._core.conversation.instructions

    @instructions.setter
    def instructions(self, instructions: str | None) -> None:
        self._core.conversation = replace(self._core.conversation, instructions=instructions)

    @property
    def template_kwargs(self) -> Mapping[str, Any]:
        """Arguments for the chat template. Settable; takes effect in the next turn."""
        # Forks share the mapping, so nobody may write to it.
        return MappingProxyType(self._core.conversation.template_kwargs)

    @template_kwargs.setter
    def template_kwargs(self, template_kwargs: Mapping[str, Any]) -> None:
        self._core.conversation = replace(self._core.conversation, template_kwargs=template_kwargs)

    @property
    def date(self) -> datetime:
        """The time that the chat template writes, if it writes the date. Settable.

        By default the time when the conversation began: it stays the same on later days, in forks
        and in files, so that nothing is read again because a day has passed. `clear` begins a new
        conversation, with the time of then. Another date, or ``None`` for the present time, takes
        effect in the next turn, which reads the conversation again from where the date stands; and
        a date that was given stays after `clear`, too.

        Examples:
            >>> from datetime import datetime
            >>> from segue import ChatSession
            >>> from segue.testing import FakeEngine
            >>> ChatSession(FakeEngine(), date=datetime(2026, 7, 26)).date.year
            2026
        """
        date = self._core.conversation.date
        assert date is not None
        return date

    @date.setter
    def date(self, date: datetime | None) -> None:
        self._core.conversation = replace(
            self._core.conversation, date=_now() if date is None else date
        )
        self._core.fixed_date = date is not None

    @property
    def writes_date(self) -> bool:
        """True if the chat template writes the date, so that `date` matters."""
        return self._core.writes_date

    @property
    def allow_control_tokens(self) -> bool:
        """True if control tokens in what people and tools say are not taken for text.

        Settable; takes effect in the next turn.
        """
        return self._core.conversation.allow_control_tokens

    @allow_control_tokens.setter
    def allow_control_tokens(self, allow_control_tokens: bool) -> None:
        self._core.conversation = replace(
            self._core.conversation, allow_control_tokens=allow_control_tokens
        )

    @property
    def generation(self) -> GenerationConfig:
        """The settings of replies. Settable; takes effect in the next turn."""
        return self._core.generation

    @generation.setter
    def generation(self, generation: GenerationConfig) -> None:
        self._core.generation = self._core.checked(generation)

    @property
    def cache(self) -> CacheConfig:
        """The settings of the KV cache, completed with those of a prompt cache."""
        return self._core.cache.config

    @property
    def history(self) -> tuple[Message, ...]:
        """The messages, oldest first, without the instructions.

        A live reply's own message joins it when the reply ends.
        """
        return self._core.conversation.messages

    @property
    def conversation(self) -> Conversation:
        """Instructions, history and template arguments, as one value. Settable.

        The next turn reads what the cache lacks of a conversation that was set. A live reply is
        closed first.
        """
        return self._core.conversation

    @conversation.setter
    def conversation(self, conversation: Conversation) -> None:
        if not isinstance(conversation, Conversation):
            raise ConfigurationError(
                f"conversation must be a Conversation, not {type(conversation).__name__}.",
                remedy="Build one: segue.Conversation(instructions, messages).",
            )
        self._close_live()
        self._core.conversation = conversation

    @property
    def on_overflow(self) -> OnOverflow:
        """What is done about a full context. Settable; takes effect in the next turn."""
        return self._core.limit.on_overflow

    @on_overflow.setter
    def on_overflow(self, on_overflow: OnOverflow) -> None:
        self._core.set_overflow(on_overflow)

    @property
    def has_cache(self) -> bool:
        """True if the KV cache holds any of this conversation, or a prefix of it."""
        return self.cached_tokens > 0 or self._core.cache.opaque

    @property
    def cached_tokens(self) -> int:
        """How many tokens the KV cache stands for.

        With `CacheConfig.max_kv_size`, and in models with sliding windows, the oldest of them are
        counted although their keys and values have made room for newer ones. Where the engine owns
        its cache (a server), this is what it was sent.
        """
        return self._core.cache.offset

    @property
    def acceptance_rate(self) -> float | None:
        """The share of the draft's tokens that the model took, over all turns so far.

        ``None`` as long as nothing was proposed.
        """
        proposed, accepted = self._core.cache.acceptance
        return accepted / proposed if proposed else None

    @property
    def usage(self) -> Usage:
        """The cost of the session so far; a live reply counts once it has ended."""
        return self._core.usage

    @property
    def reuse(self) -> Reuse | None:
        """How much of the latest turn's prompt was cached, and why not more; see `Reply.reuse`.

        ``None`` before the first turn of this process has ended.
        """
        return self._core.latest_reuse

    @overload
    def respond(
        self,
        prompt: str | Message | Sequence[Message],
        *,
        schema: None = ...,
        role: AnyRole = ...,
        reasoning: bool = ...,
        prompt_progress_callback: PrefillProgress | None = ...,
        **overrides: Unpack[GenerationOverrides],
    ) -> str: ...

    @overload
    def respond(
        self,
        prompt: str | Message | Sequence[Message],
        *,
        schema: type[Answered],
        role: AnyRole = ...,
        reasoning: bool = ...,
        prompt_progress_callback: PrefillProgress | None = ...,
        **overrides: Unpack[GenerationOverrides],
    ) -> Answered: ...

    @overload
    def respond(
        self,
        prompt: str | Message | Sequence[Message],
        *,
        schema: Regex | Lark,
        role: AnyRole = ...,
        reasoning: bool = ...,
        prompt_progress_callback: PrefillProgress | None = ...,
        **overrides: Unpack[GenerationOverrides],
    ) -> str: ...

    @overload
    def respond(
        self,
        prompt: str | Message | Sequence[Message],
        *,
        schema: Any,
        role: AnyRole = ...,
        reasoning: bool = ...,
        prompt_progress_callback: PrefillProgress | None = ...,
        **overrides: Unpack[GenerationOverrides],
    ) -> Any: ...

    def respond(
        self,
        prompt: str | Message | Sequence[Message],
        *,
        schema: Any = None,
        role: AnyRole = Role.USER,
        reasoning: bool = False,
        prompt_progress_callback: PrefillProgress | None = None,
        **overrides: Unpack[GenerationOverrides],
    ) -> Any:
        """Take a turn and return the whole reply, or its value.

        Raises what `stream` raises, a GenerationError if the model fails, and, with a schema, an
        AnswerError if the reply was cut before its answer was whole.

        Examples:
            >>> import segue
            >>> from segue.testing import FakeEngine
            >>> segue.ChatSession(FakeEngine(["Paris."])).respond("The capital of France?")
            'Paris.'
            >>> segue.ChatSession(FakeEngine(["[2, 3]"])).respond("Primes?", schema=list[int])
            [2, 3]

        Args:
            prompt: See `stream`.
            schema: See `stream`.
            role: See `stream`.
            reasoning: Put the model's reasoning before its answer, with a blank line between them.
            prompt_progress_callback: See `stream`.
            overrides: See `stream`.

        Returns:
            The reply's text, as the history records it; with a schema, its value.
        """
        _check_reasoning(reasoning, schema)
        reply = self.stream(
            prompt,
            schema=schema,
            role=role,
            prompt_progress_callback=prompt_progress_callback,
            **overrides,
        )
        return _whole(reply, reasoning, schema)

    def stream(
        self,
        prompt: str | Message | Sequence[Message],
        *,
        schema: Any = None,
        role: AnyRole = Role.USER,
        prompt_progress_callback: PrefillProgress | None = None,
        **overrides: Unpack[GenerationOverrides],
    ) -> Reply:
        """Begin a turn; the model works as the reply is iterated.

        A live reply is closed first, whatever becomes of this one. The new messages are in the
        history when this returns; nothing has been fed yet.

        Examples:
            >>> import segue
            >>> from segue.testing import FakeEngine
            >>> session = segue.ChatSession(FakeEngine(["hello world"]))
            >>> [response.text for response in session.stream("Hi", max_tokens=2)]
            ['hello', ' world']

        Args:
            prompt: Text, a message, or several messages (the results of several tools, say).
            schema: The form of the answer, which the model is held to: a type that pydantic knows
                (a model, a dataclass, a TypedDict, ``list[...]``, ``Literal``, an enum, a number),
                a JSON schema as a dict, a `Regex`, or a `Lark`. Thoughts before the answer are
                free. `Reply.value` has the value. Say in the prompt what you want: the schema is
                not shown to the model.
            role: Who speaks a prompt that is plain text.
            prompt_progress_callback: Called with ``(tokens fed, tokens to feed)`` during prefill.
            overrides: Settings of this reply alone, as fields of GenerationConfig:
                ``session.stream("Hello", temperature=1.0, stop=["END"])``.

        Raises:
            MessageError: if the prompt has none of these forms; nothing changed.
            ConfigurationError: if there is no such setting, its value is refused, or the engine
                can't do what it asks; nothing changed.
            TemplateError: if the chat template refuses the conversation; nothing changed.
            LostWordsError: if the chat template leaves out what is said, or the instructions;
                nothing changed.
            ContextLengthError: if the prompt does not fit into the model's context; nothing
                changed.
            SessionBusyError: if a turn of this session is running at this moment.

        Warns:
            TemplateWarning: if the chat template leaves out words of earlier messages, a call of a
                tool, or the tools; once of each.
        """
        messages = as_messages(prompt, role)
        config = self._settings(prompt_progress_callback, overrides)
        answer = asked_form(self._core.engine, schema)
        return self._start(
            lambda: self._core.plan_turn(messages, config, answer=answer), prompt_progress_callback
        )

    @overload
    def retry(
        self,
        *,
        schema: None = ...,
        reasoning: bool = ...,
        prompt_progress_callback: PrefillProgress | None = ...,
        **overrides: Unpack[GenerationOverrides],
    ) -> str: ...

    @overload
    def retry(
        self,
        *,
        schema: type[Answered],
        reasoning: bool = ...,
        prompt_progress_callback: PrefillProgress | None = ...,
        **overrides: Unpack[GenerationOverrides],
    ) -> Answered: ...

    @overload
    def retry(
        self,
        *,
        schema: Regex | Lark,
        reasoning: bool = ...,
        prompt_progress_callback: PrefillProgress | None = ...,
        **overrides: Unpack[GenerationOverrides],
    ) -> str: ...

    @overload
    def retry(
        self,
        *,
        schema: Any,
        reasoning: bool = ...,
        prompt_progress_callback: PrefillProgress | None = ...,
        **overrides: Unpack[GenerationOverrides],
    ) -> Any: ...

    def retry(
        self,
        *,
        schema: Any = None,
        reasoning: bool = False,
        prompt_progress_callback: PrefillProgress | None = None,
        **overrides: Unpack[GenerationOverrides],
    ) -> Any:
        """Replace the last reply, and return the new one, or its value.

        The cache goes back to the end of the prompt, so that next to nothing is read again. Raises
        what `stream_retry` raises, and a GenerationError if the model fails.

        Examples:
            >>> import segue
            >>> from segue.testing import FakeEngine
            >>> session = segue.ChatSession(FakeEngine(["Hm.", "Paris."]))
            >>> session.respond("The capital of France?"), session.retry(temperature=1.0)
            ('Hm.', 'Paris.')
            >>> len(session.history)
            2

        Args:
            schema: See `stream`.
            reasoning: See `respond`.
            prompt_progress_callback: See `stream`.
            overrides: See `stream`.

        Returns:
            The reply's text, as the history records it; with a schema, its value.
        """
        _check_reasoning(reasoning, schema)
        reply = self.stream_retry(
            schema=schema, prompt_progress_callback=prompt_progress_callback, **overrides
        )
        return _whole(reply, reasoning, schema)

    def stream_retry(
        self,
        *,
        schema: Any = None,
        prompt_progress_callback: PrefillProgress | None = None,
        **overrides: Unpack[GenerationOverrides],
    ) -> Reply:
        """Begin to replace the last reply, or to answer a question that has none (see `edit`).

        The old reply leaves the history at once. If the new one ends before its first token, the
        history is as it was.

        Examples:
            >>> import segue
            >>> from segue.testing import FakeEngine
            >>> session = segue.ChatSession(FakeEngine(["Hm.", "Paris."]))
            >>> _ = session.respond("The capital of France?")
            >>> "".join(response.text for response in session.stream_retry())
            'Paris.'

        Args:
            schema: See `stream`.
            prompt_progress_callback: See `stream`.
            overrides: See `stream`; another `seed`, say.

        Raises:
            HistoryError: if there is nothing to reply to; nothing changed.
            ConfigurationError, TemplateError, ContextLengthError, SessionBusyError: See `stream`;
                nothing changed.
        """
        config = self._settings(prompt_progress_callback, overrides)
        answer = asked_form(self._core.engine, schema)
        return self._start(
            lambda: self._core.plan_retry(config, answer=answer), prompt_progress_callback
        )

    def continue_reply(
        self,
        *,
        reasoning: bool = False,
        prompt_progress_callback: PrefillProgress | None = None,
        **overrides: Unpack[GenerationOverrides],
    ) -> str:
        """Continue the last reply where it ended, and return what was added to it.

        For replies that `max_tokens`, a stop string or a person cut short. Next to nothing is read
        again; a cache that rewinds to checkpoints alone reads the reply again. Raises what
        `stream_continue` raises, and a GenerationError if the model fails.

        Examples:
            >>> import segue
            >>> from segue.testing import FakeEngine
            >>> session = segue.ChatSession(FakeEngine(["one two", " three"]))
            >>> session.respond("Count", max_tokens=7), session.continue_reply()
            ('one two', ' three')
            >>> session.history[-1].text
            'one two three'

        Args:
            reasoning: See `respond`.
            prompt_progress_callback: See `stream`.
            overrides: See `stream`.

        Returns:
            The text that was added.
        """
        check_flag("reasoning", reasoning)
        reply = self.stream_continue(prompt_progress_callback=prompt_progress_callback, **overrides)
        return str(_whole(reply, reasoning))

    def stream_continue(
        self,
        *,
        prompt_progress_callback: PrefillProgress | None = None,
        **overrides: Unpack[GenerationOverrides],
    ) -> Reply:
        """Begin to continue the last reply; it grows in the history when this one ends.

        The reply's responses, and its `Reply.text`, are what is added. Until it ends, the history
        ends in the question. If it ends before its first token, the history is as it was.

        Examples:
            >>> import segue
            >>> from segue.testing import FakeEngine
            >>> session = segue.ChatSession(FakeEngine(["one", " two"]))
            >>> _ = session.respond("Count", max_tokens=3)
            >>> "".join(response.text for response in session.stream_continue())
            ' two'

        Args:
            prompt_progress_callback: See `stream`.
            overrides: See `stream`; a larger `max_tokens`, say. It counts what is added.

        Raises:
            HistoryError: if the history does not end in a reply, or that calls tools; nothing
                changed.
            ConfigurationError, TemplateError, ContextLengthError, SessionBusyError: See `stream`;
                nothing changed.
        """
        config = self._settings(prompt_progress_callback, overrides)
        return self._start(lambda: self._core.plan_continuation(config), prompt_progress_callback)

    def preview(
        self,
        prompt: str | Message | Sequence[Message],
        *,
        role: AnyRole = Role.USER,
        history: Iterable[Message] | None = None,
        **overrides: Unpack[GenerationOverrides],
    ) -> TurnPreview:
        """Return what a turn would cost, without taking it. Nothing changes.

        What `stream` would refuse is refused here, too, and a function for `on_overflow` is called
        as it would be. A live reply continues, and counts as if it ended here; its own tokens are
        not among the cached ones yet.

        Examples:
            >>> import segue
            >>> from segue.testing import FakeEngine
            >>> segue.ChatSession(FakeEngine()).preview("Hi").cached_tokens
            0

        Args:
            prompt: See `stream`.
            role: See `stream`.
            history: What was said before, if not the present history.
            overrides: See `stream`.

        Raises:
            MessageError, ConfigurationError, TemplateError, ContextLengthError: See `stream`.
            SessionBusyError: if the session is making a prompt at this moment.
        """
        messages = as_messages(prompt, role)
        config = self._settings(None, overrides)
        before = self._history_so_far if history is None else check_messages(history)
        self._core.check_idle()
        self._core.busy = True
        try:
            plan = self._core.plan_turn(messages, config, history=before)
            # An engine checks its settings when it is asked, and feeds nothing before a step. With
            # a seed, it need not draw one, which would change the replies to come.
            seeded = replace(plan, config=replace(plan.config, seed=0))
            self._core.run(seeded, None).close()
            reuse = self._core.explain_plan(plan)
            return TurnPreview(plan.length, reuse.tokens, plan.dropped, reuse)
        finally:
            self._core.busy = False

    def undo(self, turns: int = 1) -> tuple[Message, ...]:
        """Take back the last turns, tool exchanges with the turn they are part of.

        A live reply is closed first, and taken back with its turn. The cache goes back to where the
        turns began; what is left of the conversation is not read again. `usage` still counts them.

        Examples:
            >>> import segue
            >>> from segue.testing import FakeEngine
            >>> session = segue.ChatSession(FakeEngine(["Hello!"]))
            >>> session.respond("Hi"), [message.text for message in session.undo()]
            ('Hello!', ['Hi', 'Hello!'])
            >>> session.history
            ()

        Args:
            turns: How many.

        Returns:
            The messages that were taken back, oldest first.

        Raises:
            HistoryError: if there are not that many; nothing changed.
        """
        start_of_turns(self._history_so_far, turns)
        self._close_live()
        return self._cut(start_of_turns(self.history, turns))

    def edit(self, index: int, content: str) -> tuple[Message, ...]:
        """Change a message, and drop what followed it.

        If the message awaits a reply, `retry` gives one. The cache goes back to where the
        conversation changed.

        Examples:
            >>> import segue
            >>> from segue.testing import FakeEngine
            >>> session = segue.ChatSession(FakeEngine(["Paris.", "Rome."]))
            >>> _ = session.respond("The capital of France?")
            >>> _ = session.edit(-2, "The capital of Italy?")
            >>> session.retry()
            'Rome.'

        Args:
            index: The message's index in `history`; a negative one counts from the end.
            content: Its new text; the other fields stay.

        Returns:
            The messages that were taken out, oldest first: the old one, and what followed.

        Raises:
            HistoryError: if there is no such message; nothing changed.
            MessageError: if the content isn't text; nothing changed.
        """
        before = self._history_so_far
        replace(before[checked_index(before, index)], content=content)
        self._close_live()
        index = checked_index(self.history, index)
        return self._cut(index, replace(self.history[index], content=content))

    def fork(self) -> Self:
        """Return an independent copy: the same history, cache, checkpoints and settings.

        Nothing is copied until one of the two continues, and then only what comes after the fork:
        forks share the keys and values of what they have in common. (Where an engine can't copy
        contexts, the fork reads the conversation again.) A live reply is closed first. The fork's
        `usage` begins anew, and it has no file.

        Examples:
            >>> import segue
            >>> from segue.testing import FakeEngine
            >>> session = segue.ChatSession(FakeEngine(["Hello!", "Fine."]))
            >>> _ = session.respond("Hi")
            >>> branch = session.fork()
            >>> branch.respond("How are you?"), len(session.history)
            ('Fine.', 2)
        """
        self._close_live()
        twin = self.__class__.__new__(self.__class__)
        twin.__dict__.update(self.__dict__)  # what a subclass keeps in its sessions
        twin._take(self._core.fork())
        return twin

    def return_to(self, fork: ChatSession) -> None:
        """Continue from where a fork is: with its conversation, and what its cache holds.

        So a fork is a way back, from `clear` too, on which nothing is read again. The fork stays as
        it is. Settings, `usage` and the file are still this session's own. A live reply is closed
        first.

        Examples:
            >>> import segue
            >>> from segue.testing import FakeEngine
            >>> session = segue.ChatSession(FakeEngine(["Hello!"]))
            >>> _ = session.respond("Hi")
            >>> before = session.fork()
            >>> session.clear()
            >>> session.return_to(before)
            >>> len(session.history), session.cached_tokens == before.cached_tokens
            (2, True)

        Args:
            fork: A fork of this session, or another session of the same model.

        Raises:
            ConfigurationError: if it is of another model, or its cache is of another kind.
        """
        if not isinstance(fork, ChatSession) or not self._core.cache.is_like(fork._core.cache):
            raise ConfigurationError(
                "A session can return to one of the same engine and kind of cache alone, not to "
                f"{fork!r}.",
                remedy="Pass what fork() returned.",
            )
        self._close_live()
        fork._close_live()
        hold = InterruptHold()
        with hold:
            self._core.return_to(fork._core)
            hold.deliver()

    def prewarm(
        self,
        *,
        prompt_progress_callback: PrefillProgress | None = None,
        prefill_step_size: int | None = None,
    ) -> int:
        """Read ahead, while nobody waits: what the next prompt begins with and the cache lacks.

        Before the first turn, that is instructions, tools and history; between turns, what a
        template renders otherwise than it was said (many leave reasoning out). The turn after it
        feeds only its own message. A live reply is closed first. To break it off, raise an
        exception in the callback: what was read until then stays.

        Examples:
            >>> import segue
            >>> from segue.testing import FakeEngine
            >>> session = segue.ChatSession(FakeEngine(["Hello!"]), instructions="Be brief.")
            >>> session.prewarm() > 0, session.prewarm()
            (True, 0)

        Args:
            prompt_progress_callback: Called with ``(tokens fed, tokens to feed)``.
            prefill_step_size: How many tokens are fed at a time, if not as `generation` has it.

        Returns:
            How many tokens were fed.

        Raises:
            TemplateError: if the chat template refuses the conversation; nothing changed.
            ConfigurationError: if the engine can't do what `generation` asks; nothing changed.
            ContextLengthError: if it does not fit into the model's context; nothing changed.
            GenerationError: if the model failed.
        """
        size = {} if prefill_step_size is None else {"prefill_step_size": prefill_step_size}
        config = self._settings(prompt_progress_callback, size)
        self._close_live()
        self._core.busy = True
        try:
            plan = self._core.plan_ahead(config)
            if plan is None:
                return 0
            reading = self._begin(plan, prompt_progress_callback)
        finally:
            self._core.busy = False
        with reading:
            for _ in reading:
                pass
        return reading.usage.fed_tokens

    def save_cache(self, path: str | os.PathLike[str]) -> None:
        """Write the KV cache to a file, for `segue.load_prompt_cache`.

        mlx-lm opens it as well, and its commands do if they can load the model themselves.

        The file holds the tokens read and generated so far, with their ids. (If the session itself
        began with a cache whose ids are unknown, so does the file.) A live reply is closed first.
        The file is replaced in one piece: if anything goes wrong, an earlier one is left as it was.

        Examples:
            >>> import segue
            >>> from segue.testing import FakeEngine
            >>> session = segue.ChatSession(FakeEngine(), instructions="Be brief.")
            >>> _ = session.prewarm()
            >>> session.save_cache("brief.safetensors")

        Args:
            path: The file; mlx-lm opens it if its name ends in ``.safetensors``.

        Raises:
            PromptCacheError: if there is no cache yet, or the file can't be written.
            UnsupportedFeatureError: if the engine has no prompt caches.
        """
        path = checked_path(path)
        cache = self._core.cache
        context = cache.require(
            Stores, feature="prompt caches", remedy="Save the session instead: save(path)."
        )
        self._close_live()
        if not self.has_cache:
            raise PromptCacheError(
                "This session has no cache yet, so there is nothing to save.",
                remedy="Take a turn first, or call prewarm().",
            )
        ledger = None if cache.opaque else cache.view.ledger
        context.save(path, describe(self._core.engine.fingerprint, ledger, self.conversation))

    def save(self, path: str | os.PathLike[str], *, kv: bool = True) -> None:
        """Write the whole session to a file, for `ChatSession.open`.

        A live reply is closed first. The file is replaced in one piece: after a failure, or a kill
        at any moment, the earlier one is whole. From here on the file is this session's: other
        processes can't open it before `close`, or before this session saves to another file or
        ends. (Of two sessions of one process on one file, the last one saved is what it has.)

        Settings that are code (logits processors, a function for `on_overflow`) and a model that
        drafts can't be saved; pass them to `open`.

        Examples:
            >>> import segue
            >>> from segue.testing import FakeEngine
            >>> session = segue.ChatSession(FakeEngine(["Hello!"]))
            >>> _ = session.respond("Hi")
            >>> session.save("talk.segue")

        Args:
            path: The file; ``.segue`` by custom.
            kv: Whether to save the KV cache, which makes most of the file. Without it, `open` has
                the conversation read again. An opaque prefix is saved in any case.

        Raises:
            ConfigurationError: if the path isn't one, or `kv` is neither True nor False.
            SessionLockedError: if another process has the file open.
            SessionFileError: if it can't be written, or the conversation holds what JSON can't
                express.

        Warns:
            SessionWarning: if files have no form for this model's cache; it is left out.
        """
        path = checked_path(path)
        check_flag("kv", kv)
        self._close_live()
        cache = self._core.cache
        stored: Mapping[str, StoredState] = {}
        try:
            stored = cache.stored(kv=kv)
        except PromptCacheError as error:
            message = f"The session is saved without its KV cache. {error}"
            warnings.warn(message, SessionWarning, stacklevel=2)
        lock = write_session(
            path,
            self._core.engine,
            self.conversation,
            SessionSettings.of(
                self.generation,
                self.cache,
                cache.draft,
                self._core.limit.on_overflow,
                fixed_date=self._core.fixed_date,
            ),
            self.usage,
            cache.view.ledger if "cache" in stored else None,
            stored,
        )
        self._release()
        self._lock = lock

    @classmethod
    def open(cls, path: str | os.PathLike[str], engine: Engine, **overrides: Any) -> Self:
        """Continue a session that `save` wrote, in this process or another.

        With the engine that it was saved with, the next turn reads only its own message, and the
        reply is the same as if the session had never stopped. With another engine, or where the
        cache is damaged, you still get the conversation, and the next turn reads it again. The file
        is this session's from here on, as after `save`.

        Examples:
            >>> import segue
            >>> from segue.testing import FakeEngine
            >>> with segue.ChatSession(FakeEngine(["Hello!"])) as session:
            ...     _ = session.respond("Hi")
            ...     session.save("talk.segue")
            >>> again = segue.ChatSession.open("talk.segue", FakeEngine(["Fine."]))
            >>> again.respond("How are you?"), len(again.history)
            ('Fine.', 4)

        Args:
            path: The file.
            engine: The model.
            overrides: Arguments of ChatSession to use instead of what the file holds:
                `instructions`, `template_kwargs`, `generation`, `cache`, `draft`, `on_overflow`,
                `date`, `allow_control_tokens`. With a `cache` of another kind, the saved KV cache
                is left out.

        Raises:
            ConfigurationError: if an argument has the wrong type, or the engine can't do what the
                settings ask.
            SessionNotFoundError: if there is no such file.
            SessionLockedError: if another process has it open.
            SessionFileFormatError: if it isn't a session file, is of a newer version, or the
                conversation in it is damaged; `readable` has what isn't.
            SessionFileError: if it can't be read.

        Warns:
            SessionWarning: if something in the file could not be used, such as the KV cache; the
                message says what and why.
        """
        path = checked_path(path)
        check_engine(engine)
        with lock_to_read(path) as lock:
            file = SessionFile.read(path, load=True)
            arguments = opening_arguments(file, overrides)
            saved = SavedState(file, engine)
            conversation = arguments.pop("conversation")
            session = cls(
                engine,
                instructions=conversation.instructions,
                history=conversation.messages,
                template_kwargs=conversation.template_kwargs,
                allow_control_tokens=conversation.allow_control_tokens,
                prompt_cache=saved.prefix,
                **arguments,
            )
            core = session._core
            core.conversation = replace(core.conversation, date=conversation.date or _now())
            core.fixed_date = (
                overrides["date"] is not None if "date" in overrides else file.settings.fixed_date
            )
            unused = core.restore(
                saved.usable_with(core.cache.config),
                file.ledger,
                file.usage,
                conversation=replace(file.conversation, date=file.date),
                missing=saved.missing_with(core.cache.config),
            )
            warn_of_losses(file, {**saved.losses, **unused}, overrides)
        session._lock = lock
        return session

    def close(self) -> None:
        """Let other processes have the file that this session was saved to or opened from.

        A live reply is closed first. The session can continue, and be saved again. Leaving a
        ``with`` block does the same, and so does garbage collection.

        Examples:
            >>> import segue
            >>> from segue.testing import FakeEngine
            >>> session = segue.ChatSession(FakeEngine())
            >>> session.save("talk.segue")
            >>> session.close()
        """
        self._close_live()
        self._release()

    def clear(self) -> None:
        """Forget the conversation: drop cache and history, leave instructions and settings.

        A new conversation begins, with a `date` of its own, unless one was given.
        A cache that the session began with, and whose tokens are unknown, stays before all.

        Examples:
            >>> import segue
            >>> from segue.testing import FakeEngine
            >>> session = segue.ChatSession(FakeEngine(["Hello!"]))
            >>> _ = session.respond("Hi")
            >>> session.clear()
            >>> session.history, session.cached_tokens
            ((), 0)
        """
        self._close_live()
        hold = InterruptHold()
        with hold:
            self._core.clear(_now())
            hold.deliver()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        """Copies and pickles would share what one session alone may change."""
        raise ConfigurationError(
            "A session can't be copied or pickled as other objects are.",
            remedy="Use fork() for another one, or save() and open() for another process.",
        )

    @property
    def _history_so_far(self) -> tuple[Message, ...]:
        """The history as it would be if a live reply ended here."""
        live = None if self._live is None else self._live()
        return self.history if live is None else live.history_so_far

    def _settings(
        self, progress: PrefillProgress | None, overrides: Mapping[str, Any]
    ) -> GenerationConfig:
        """Return the settings of one reply; refuse what can't report progress."""
        if progress is not None and not callable(progress):
            raise ConfigurationError(
                f"prompt_progress_callback must be callable, not {progress!r}.",
                remedy="Pass a function of (tokens fed, tokens to feed).",
            )
        config = with_overrides(self.generation, overrides)
        return self._core.checked(config) if overrides else config

    def _start(self, plan: Callable[[], TurnPlan], progress: PrefillProgress | None) -> Reply:
        """Plan a turn, and begin it."""
        self._close_live()
        self._core.busy = True
        try:
            return self._begin(plan(), progress, stacklevel=4)
        finally:
            self._core.busy = False

    def _begin(
        self, plan: TurnPlan, progress: PrefillProgress | None, *, stacklevel: int = 3
    ) -> Reply:
        """Open a turn, and return what drives it."""
        # Whatever may fail comes before the turn is open.
        self._core.warn(plan, stacklevel=stacklevel)
        steps, reader = self._core.run(plan, progress), self._core.reader(plan)
        hold = InterruptHold()
        with hold:
            reply = Reply(self._core, plan, steps, reader, self._core.open(plan))
            self._live = weakref.ref(reply)
            # If this raises, the reply is dropped, which records it as empty.
            hold.deliver()
        return reply

    def _cut(self, index: int, *instead: Message) -> tuple[Message, ...]:
        """Drop the messages from an index on, and what the cache holds of them."""
        history = self.history
        self._core.busy = True
        try:
            plan = self._core.plan_cut((*history[:index], *instead))
            hold = InterruptHold()
            with hold:
                self._core.open(plan, feeds=False)
                hold.deliver()
        finally:
            self._core.busy = False
        return history[index:]

    def _close_live(self) -> None:
        self._core.check_idle()
        reply = self._live() if self._live is not None else None
        if reply is not None:
            reply.close()
        self._live = None

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _now() -> datetime:
    return datetime.now().astimezone()


def _check_reasoning(reasoning: bool, schema: object) -> None:
    check_flag("reasoning", reasoning)
    if reasoning and schema is not None:
        raise ConfigurationError(
            "reasoning must be False where a schema asks for a value.",
            remedy="Use stream(...): it has reply.reasoning and reply.value.",
        )


def _whole(reply: Reply, reasoning: bool, schema: object = None) -> Any:
    """Return a reply's text or value, once it is over; text after its reasoning, if wanted."""
    with reply:
        for _ in reply:
            pass
    if schema is not None:
        return reply.value
    return "\n\n".join(text for text in (reply.reasoning if reasoning else "", reply.text) if text)
