"""A conversation: its history, and the KV cache that follows it."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from .config import GenerationConfig
from .engine import Context, Engine, PrefillProgress
from .errors import ConfigurationError
from .interrupt import InterruptHold
from .ledger import TokenLedger, tokens_to_keep
from .messages import Message, Role, as_messages, check_messages
from .prompt import append_reply, build_prompt
from .reply import Reply


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

    Raises:
        ConfigurationError: An argument has the wrong type.
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
        self._engine = engine
        self.instructions = instructions
        self.generation = generation
        self._template_kwargs = copy.deepcopy(dict(template_kwargs or {}))
        self._history = list(check_messages(history))
        self._context: Context | None = None
        self._context_settings: tuple[int | None, ...] = ()
        self._ledger = TokenLedger()
        self._live: weakref.ref[Reply] | None = None

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
        if not isinstance(generation, GenerationConfig):
            raise ConfigurationError(
                f"generation is a GenerationConfig, not {type(generation).__name__}.",
                remedy="Build one: GenerationConfig(max_tokens=..., temperature=...).",
            )
        self._generation = generation

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
        """Whether a KV cache holds any of this conversation."""
        return self.cached_tokens > 0

    @property
    def cached_tokens(self) -> int:
        """How many tokens the KV cache stands for.

        With `GenerationConfig.max_kv_size`, and in models with sliding windows, the oldest of them
        are counted although their keys and values have made room for newer ones.
        """
        return 0 if self._context is None else self._context.offset

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
        if prompt_progress_callback is not None and not callable(prompt_progress_callback):
            raise ConfigurationError(
                f"{prompt_progress_callback!r} can't be told about progress: it is not callable.",
                remedy="Pass a function of (tokens fed, tokens to feed).",
            )
        self._close_live()
        config = self._generation
        tokenizer = self._engine.tokenizer
        # A cache of another kind is replaced only once nothing can be refused any more.
        fresh = self._context is None or self._context_settings != config.cache_settings
        held = TokenLedger() if fresh else self._ledger.truncate(self.cached_tokens)
        system = () if self._instructions is None else (Message.system(self._instructions),)
        prompt_ledger = build_prompt(
            tokenizer, (*system, *self._history, *messages), held, self._template_kwargs
        )
        context = self._engine.context(config) if fresh else self._context
        assert context is not None
        steps = context.generate(prompt_ledger.ids, config, prompt_progress_callback)

        detokenizer = tokenizer.detokenizer()

        hold = InterruptHold()
        with hold:
            self._context, self._context_settings = context, config.cache_settings
            cached = context.rewind(tokens_to_keep(held, prompt_ledger))
            # From here on the cache is filled from this prompt, and holds its first `offset` ids.
            self._ledger = prompt_ledger
            self._history.extend(messages)
            reply = Reply(
                steps,
                context=context,
                eos_token_ids=tokenizer.eos_token_ids,
                detokenizer=detokenizer,
                config=config,
                prompt_tokens=len(prompt_ledger.ids),
                cached_tokens=cached,
                record=self._record,
            )
            self._live = weakref.ref(reply)
            # The reply is dropped then, which records it as empty.
            hold.deliver()
        return reply

    def clear(self) -> None:
        """Forget the conversation: drop cache and history, keep instructions and settings."""
        self._close_live()
        self._context = None
        self._ledger = TokenLedger()
        self._history.clear()

    def _close_live(self) -> None:
        reply = self._live() if self._live is not None else None
        if reply is not None:
            reply.close()
        self._live = None

    def _record(self, reply: Reply) -> None:
        """Write back what a turn really did; called by the reply, once."""
        context = self._context
        assert context is not None
        self._history.append(Message.assistant(reply.text))
        ledger = append_reply(self._engine.tokenizer, self._ledger, reply.tokens)
        # After a failure the cache may hold less than was generated, or nothing; an interrupt may
        # have struck before the last token was told, and then the cache gives it back.
        context.rewind(len(ledger.ids))
        self._ledger = ledger.truncate(context.offset)
