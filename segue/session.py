"""A conversation: its history, and the KV cache that follows it."""

from __future__ import annotations

import copy
import os
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from .config import GenerationConfig, SpeculativeDecodingConfig
from .engine import Engine, PrefillProgress
from .errors import ConfigurationError, PromptCacheError, SessionBusyError
from .interrupt import InterruptHold
from .ledger import common_prefix
from .messages import Message, Role, as_messages, check_messages
from .prompt import PromptBuilder
from .prompt_cache import PromptCache, checked_path, describe
from .reply import Reply
from .session_cache import SessionCache


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
        self._reading = False

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

    def respond(
        self,
        prompt: str | Message | Sequence[Message],
        *,
        role: Role = Role.USER,
        prompt_progress_callback: PrefillProgress | None = None,
    ) -> str:
        """Take a turn and return the whole reply.

        Args and errors are those of `stream`; a GenerationError is raised here.

        Returns:
            The reply's text, as the history records it.
        """
        with self.stream(
            prompt, role=role, prompt_progress_callback=prompt_progress_callback
        ) as reply:
            for _ in reply:
                pass
        return reply.text

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
            SessionBusyError: A turn of this session is running at this moment.
        """
        messages = as_messages(prompt, role)
        _check_progress(prompt_progress_callback)
        self._close_live()
        config = self._generation
        tokenizer = self._engine.tokenizer
        # A cache of another kind is replaced only once nothing can be refused any more.
        context = self._cache.context_for(config)
        built = self._prompts.build(
            self._system,
            [*self._history, *messages],
            self._cache.held(config),
            places=context.wants_marks,
        )
        ids = built.ledger.ids
        marks = (built.opening, built.stable)
        steps = context.generate(ids, config, prompt_progress_callback, marks=marks)

        detokenizer = tokenizer.detokenizer()

        hold = InterruptHold()
        with hold:
            cached = self._cache.turn_to(context, config, built.ledger)
            self._history.extend(messages)
            reply = Reply(
                steps,
                context=context,
                eos_token_ids=tokenizer.eos_token_ids,
                detokenizer=detokenizer,
                config=config,
                prompt_tokens=context.prefix + len(ids),
                cached_tokens=cached,
                record=self._record,
            )
            self._live = weakref.ref(reply)
            # The reply is dropped then, which records it as empty.
            hold.deliver()
        return reply

    def prewarm(self, *, prompt_progress_callback: PrefillProgress | None = None) -> int:
        """Read what the next prompt will begin with: instructions, tools and history.

        The turn after that feeds only its own message. A live reply is closed first.

        Args:
            prompt_progress_callback: Called with ``(tokens fed, tokens to feed)``.

        Returns:
            How many tokens were fed.

        Raises:
            TemplateError: The chat template refused the conversation; nothing changed.
            ConfigurationError: The model can't do what `generation` asks; nothing changed.
            GenerationError: The model failed.
        """
        _check_progress(prompt_progress_callback)
        self._close_live()
        config = replace(self._generation, max_tokens=0)
        cache = self._cache
        held = cache.held(config)
        opening = self._prompts.build_opening(self._system, self._history, held)
        ids = opening.ledger.ids
        if common_prefix(held.ids, ids) == len(ids):
            return 0
        context = cache.context_for(config)
        marks = (opening.opening, opening.stable)
        steps = context.generate(ids, config, prompt_progress_callback, marks=marks)
        hold = InterruptHold()
        with hold:
            before = cache.turn_to(context, config, opening.ledger)
            self._reading = True
            try:
                for _ in steps:
                    pass
            except BaseException:
                hold.pass_on()
                raise
            finally:
                self._reading = False
                cache.commit()
            hold.deliver()
        return context.offset - before

    def save_cache(self, path: str | os.PathLike[str]) -> None:
        """Write the KV cache to a file, for `segue.load_prompt_cache` and for mlx-lm.

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
            self._instructions,
            self._history,
            self._template_kwargs,
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
        if self._reading:
            raise SessionBusyError(
                "This session is reading its prompt at this moment.",
                remedy="Don't use it inside its own progress callback, nor from two threads.",
            )
        reply = self._live() if self._live is not None else None
        if reply is not None:
            reply.close()
        self._live = None

    @property
    def _system(self) -> Message | None:
        return None if self._instructions is None else Message.system(self._instructions)

    def _record(self, reply: Reply) -> None:
        """Write back what a turn really did; called by the reply, once."""
        self._history.append(Message.assistant(reply.text))
        self._cache.commit(reply.tokens)


def _check_generation(generation: GenerationConfig) -> None:
    if not isinstance(generation, GenerationConfig):
        raise ConfigurationError(
            f"generation is a GenerationConfig, not {type(generation).__name__}.",
            remedy="Build one: GenerationConfig(max_tokens=..., temperature=...).",
        )


def _check_progress(callback: PrefillProgress | None) -> None:
    if callback is not None and not callable(callback):
        raise ConfigurationError(
            f"{callback!r} can't be told about progress: it is not callable.",
            remedy="Pass a function of (tokens fed, tokens to feed).",
        )
