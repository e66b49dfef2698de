"""A conversation: its history, and the KV cache that follows it."""

from __future__ import annotations

import copy
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from .config import GenerationConfig, SpeculativeDecodingConfig
from .conversation import checked_index, last_turn, start_of_turns
from .engine import Engine, PrefillProgress, StoredPart, check_progress
from .errors import ConfigurationError, PromptCacheError, SessionWarning
from .files.atomic import checked_path
from .files.lock import FileLock
from .messages import Message, Role, as_messages, check_messages
from .store.opening import (
    constructor_arguments,
    lock_to_read,
    warn_of_losses,
    write_session,
)
from .store.prompt_cache import PromptCache, describe
from .store.session_file import SessionFile
from .store.settings import SessionSettings
from .turn.cache import SessionCache
from .turn.core import TurnTaker, check_generation
from .turn.overflow import ContextLimit, OnOverflow
from .turn.reply import Reply


class ChatSession(TurnTaker):
    """A multi-turn conversation with one model, whose KV cache is kept from turn to turn.

    Each turn feeds the model only the tokens it has not read yet. A session has at most one live
    reply: whatever needs the cache (another turn, `clear`) closes it first, which records it. A
    session belongs to one thread at a time; any number of sessions may share an engine. Use the
    same few threads again and again: MLX keeps some of its own for each that ever ran a model.

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
        check_generation(generation)
        limit = ContextLimit(engine.context_length, on_overflow)
        kept = SessionCache(engine, generation, speculative=speculative, start=cache)
        said = check_messages(history)
        given = instructions is not None or said or template_kwargs is not None
        if cache is not None and not given:
            said = cache.history
            instructions, template_kwargs = cache.instructions, cache.template_kwargs
        try:
            arguments = copy.deepcopy(dict(template_kwargs or {}))
        except (TypeError, RecursionError) as error:
            raise ConfigurationError(
                f"template_kwargs holds something that can't be copied: {error}.",
                remedy="Use strings, numbers, lists and dicts.",
            ) from None
        super().__init__(engine, kept, limit, said, instructions, arguments)
        # Of the file that this session goes on with.
        self._lock: FileLock | None = None

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
        reply = self.stream(prompt, role=role, prompt_progress_callback=prompt_progress_callback)
        return _said(reply, reasoning)

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
        return self._begin(
            tuple(self._history), messages, self._generation, prompt_progress_callback
        )

    def regenerate(
        self,
        *,
        reasoning: bool = False,
        prompt_progress_callback: PrefillProgress | None = None,
        **overrides: Any,
    ) -> str:
        """Replace the last reply, and return the new one.

        The cache goes back to the end of the prompt, so that next to nothing is read again. Errors
        are those of `stream_again`; a GenerationError is raised here.

        Args:
            reasoning: See `respond`.
            prompt_progress_callback: See `stream`.
            overrides: See `stream_again`.

        Returns:
            The reply's text, as the history records it.
        """
        reply = self.stream_again(prompt_progress_callback=prompt_progress_callback, **overrides)
        return _said(reply, reasoning)

    def stream_again(
        self, *, prompt_progress_callback: PrefillProgress | None = None, **overrides: Any
    ) -> Reply:
        """Begin to replace the last reply, or to answer a question that has none (see `edit`).

        The old reply leaves the history at once. If the new one ends before its first token, the
        history is as it was.

        Args:
            prompt_progress_callback: See `stream`.
            overrides: Settings of this reply alone, as fields of GenerationConfig
                (``temperature=1.0``, another ``seed``).

        Raises:
            HistoryError: There is nothing to reply to; nothing changed.
            ConfigurationError: No such setting, or one that can't be; nothing changed.
            TemplateError, ContextLengthError, SessionBusyError: See `stream`; nothing changed.
        """
        check_progress(prompt_progress_callback)
        self._close_live()
        before, asked = last_turn(self._history)
        try:
            config = self._cache.settle(replace(self._generation, **overrides))
        except TypeError as error:
            raise ConfigurationError(
                f"A reply has no such setting: {error}.",
                remedy="Use fields of GenerationConfig, such as temperature or seed.",
            ) from None
        history = tuple(self._history)
        return self._begin(before, asked, config, prompt_progress_callback, otherwise=history)

    def undo(self, turns: int = 1) -> tuple[Message, ...]:
        """Take back the last turns, tool exchanges with the turn they are part of.

        A live reply is closed first, and taken back with its turn. The cache goes back to where the
        turns began; what is left of the conversation is not read again. `usage` still counts them.

        Args:
            turns: How many.

        Returns:
            The messages that were taken back, oldest first.

        Raises:
            HistoryError: There are not that many; nothing changed.
        """
        self._close_live()
        return self._cut(start_of_turns(self._history, turns))

    def edit(self, index: int, content: str) -> tuple[Message, ...]:
        """Change a message, and drop what followed it.

        If it is one that awaits a reply, `regenerate` gives it. The cache goes back to where the
        conversation changed.

        Args:
            index: The message's place in `history`; a negative one counts from the end.
            content: Its new text; the other fields stay.

        Returns:
            The messages that were taken out, oldest first: the old one, and what followed.

        Raises:
            HistoryError: There is no such message; nothing changed.
            MessageError: The content is no text; nothing changed.
        """
        self._close_live()
        place = checked_index(self._history, index)
        return self._cut(place, replace(self._history[place], content=content))

    def fork(self) -> Self:
        """A session that has the same history, cache, marks and settings, and goes its own way.

        Nothing is copied before one of the two goes on, and then what is behind the fork: forks
        share the keys and values of what they have in common. A live reply is closed first. The
        fork's `usage` begins anew, and it has no file.
        """
        self._close_live()
        twin = self.__class__.__new__(self.__class__)
        twin.__dict__.update(self.__dict__)
        twin._cache = self._cache.fork()
        twin._history, twin._turns, twin._read = list(self._history), [], Counter()
        twin._live = twin._lock = None
        return twin

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

    def save(self, path: str | os.PathLike[str], *, kv: bool = True) -> None:
        """Write the whole session to a file, for `ChatSession.open`.

        A live reply is closed first. The file is replaced in one piece: after a failure, or a kill
        at any moment, the earlier one is whole. From here on the file is this session's: other
        processes can't open it before `close`, or before this one saves to another file or ends.
        (Of two sessions of one process on one file, the last one saved is what it has.)

        Settings that are code (logits processors, a function for `on_overflow`) and a model that
        drafts can't be saved; pass them to `open`.

        Args:
            path: The file; ``.segue`` by custom.
            kv: Whether to keep the KV cache, which makes most of the file. Without it, `open` has
                the conversation read again. An opaque prefix is kept in any case.

        Raises:
            ConfigurationError: The path is none.
            SessionLockedError: Another process has the file open.
            SessionFileError: It can't be written, or the conversation holds what JSON can't
                express.

        Warns:
            SessionWarning: Files have no form for this model's cache; it was left out.
        """
        place = checked_path(path)
        self._close_live()
        parts: Mapping[str, StoredPart] = {}
        try:
            parts = self._cache.parts(self._generation, kv=kv)
        except PromptCacheError as error:
            told = f"The session is saved without its KV cache. {error}"
            warnings.warn(told, SessionWarning, stacklevel=2)
        settings = SessionSettings.of(
            self._generation, self._cache.speculative, self._limit.on_overflow
        )
        ledger = self._cache.ledger if "cache" in parts else None
        lock = write_session(
            place, self._engine, self._conversation, settings, self.usage, ledger, parts
        )
        self._release()
        self._lock = lock

    @classmethod
    def open(cls, path: str | os.PathLike[str], engine: Engine, **overrides: Any) -> Self:
        """Go on with a session that `save` wrote, in this process or another.

        With the engine that it was saved with, the next turn reads nothing but its message, and
        says what the session would have said that never stopped. Without it, or where the cache is
        damaged, the conversation is there all the same, and the next turn reads it again. The file
        is this session's from here on, as after `save`.

        Args:
            path: The file.
            engine: The model.
            overrides: Arguments of ChatSession to use instead of what the file says:
                `instructions`, `generation`, `template_kwargs`, `speculative`, `on_overflow`.

        Raises:
            ConfigurationError: An argument is of the wrong type, or the engine can't do what the
                settings ask.
            SessionNotFoundError: There is no such file.
            SessionLockedError: Another process has it open.
            SessionFileFormatError: It is no session file, of a newer version, or the conversation
                in it is damaged; `readable` tells what is not.
            SessionFileError: It can't be read.

        Warns:
            SessionWarning: Something in the file could not be taken up, such as the KV cache; the
                message says what and why.
        """
        place = checked_path(path)
        with lock_to_read(place) as lock:
            file = SessionFile.read(place, load=True)
            arguments = constructor_arguments(file, overrides)
            session = cls(engine, history=file.history, **arguments)
            session._cache, aside = SessionCache.resume(
                engine, file, session._generation, arguments["speculative"]
            )
            session._generation = session._cache.config
            session._turns = list(file.usage.turns)
            session._read["prewarm"] = file.usage.prewarmed_tokens
            session._read["settle"] = file.usage.settled_tokens
            warn_of_losses(file, aside, overrides)
        session._lock = lock
        return session

    def close(self) -> None:
        """Let other processes have the file that this session was saved to or opened from.

        A live reply is closed first. The session can go on, and be saved again. Leaving a ``with``
        block does the same, and so does garbage collection.
        """
        self._close_live()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def clear(self) -> None:
        """Forget the conversation: drop cache and history, keep instructions and settings.

        A cache that the session began with, and whose tokens nobody told, stays in front.
        """
        self._close_live()
        self._cache.clear()
        self._history.clear()


def _said(reply: Reply, reasoning: bool) -> str:
    """A reply's text, once it is over, with what was thought in front if that is wanted."""
    with reply:
        for _ in reply:
            pass
    return "\n\n".join(text for text in (reply.reasoning if reasoning else "", reply.text) if text)
