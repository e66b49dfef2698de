"""What a session needs of a model: the seam that engines plug into.

An engine implements these protocols and imports nothing of the session; the session imports no
engine.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple, Protocol

from .config import GenerationConfig

PrefillProgress = Callable[[int, int], None]
"""``(tokens fed so far, tokens to feed)``, called before, between and after prefill's chunks."""


class Step(NamedTuple):
    """One generated token, as a context yields it."""

    token: int
    logprobs: Mapping[int, float] | None = None
    """See `GenerationResponse.logprobs`."""
    from_draft: bool = False


class Detokenizer(Protocol):
    """Turns the tokens of one reply into text as they come, never splitting a character."""

    def add(self, token: int) -> str:
        """The text that this token made readable; empty while a character is incomplete."""
        ...

    def finish(self) -> str:
        """The text still withheld. The detokenizer is used up."""
        ...


class Tokenizer(Protocol):
    """Text to ids and back, and the model's chat template."""

    @property
    def eos_token_ids(self) -> AbstractSet[int]:
        """The ids that end a reply."""
        ...

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        template_kwargs: Mapping[str, Any],
    ) -> str:
        """The conversation as the model's chat template writes it.

        Raises:
            TemplateError: The template refused the messages or broke on them.
        """
        ...

    def encode(self, text: str) -> Sequence[int]:
        """The ids of rendered text; none are added (the template writes its own BOS)."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text that ids spell: special tokens written out, white space left alone."""
        ...

    def detokenizer(self) -> Detokenizer:
        """A fresh one, for one reply."""
        ...


class Context(Protocol):
    """The KV state of one conversation; owned by one session.

    Its `offset` is counted from the tokens it was fed, and is right whenever no call is running:
    also while a generator is suspended, after one was closed, and after one raised.
    """

    @property
    def offset(self) -> int:
        """How many tokens the KV cache holds."""
        ...

    @property
    def peak_memory(self) -> int:
        """The most memory the engine has held so far, in bytes."""
        ...

    def generate(
        self,
        ids: Sequence[int],
        config: GenerationConfig,
        progress: PrefillProgress | None = None,
    ) -> Generator[Step, None, None]:
        """Prefill what the cache lacks of a prompt, then decode.

        Checks `config` at once and changes nothing before the first step is asked for. Then feeds
        ``ids[offset:]`` in chunks of `config.prefill_step_size` and yields `config.max_tokens`
        steps, eos or not: whoever consumes it decides when to close it. At every yield the cache
        holds the prompt and every token yielded, the last one included. With no tokens to
        generate, the whole prompt is fed all the same.

        A failure of the forward pass leaves the context empty; one of `progress`, and an
        interrupt, leave it holding what the last chunk or yield left.

        Args:
            ids: The whole prompt, at least one id longer than what the cache holds of it; the
                cache must hold exactly ``ids[:offset]``.
            config: Settings of this reply.
            progress: Called as prefill goes on.

        Raises:
            ConfigurationError: This model can't do what `config` asks.
            GenerationError: The model or its runtime failed.
        """
        ...

    def rewind(self, offset: int) -> int:
        """Go back to at most `offset` tokens.

        Drops the newest tokens; where a layer can't drop just those, more of them or all.

        Returns:
            The offset really reached, which may be smaller (0 when everything had to go).
        """
        ...


class Engine(Protocol):
    """A loaded model with its tokenizer; shared by any number of sessions."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own tokenizer, with its chat template."""
        ...

    def context(self, config: GenerationConfig) -> Context:
        """A new, empty context whose KV cache is of the kind `config.cache_settings` describes.

        Raises:
            ConfigurationError: This model can't have such a cache.
        """
        ...
