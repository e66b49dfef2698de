"""What a session needs of a model: the seam that engines plug into.

An engine implements these protocols and imports nothing of the session; the session imports no
engine.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from .config import GenerationConfig, SpeculativeDecodingConfig
from .errors import ConfigurationError

PrefillProgress = Callable[[int, int], None]
"""``(tokens fed so far, tokens to feed)``, called before, between and after prefill's chunks."""


def check_progress(callback: PrefillProgress | None) -> None:
    """Refuse what can't be called.

    Raises:
        ConfigurationError: It can't.
    """
    if callback is not None and not callable(callback):
        raise ConfigurationError(
            f"{callback!r} can't be told about progress: it is not callable.",
            remedy="Pass a function of (tokens fed, tokens to feed).",
        )


class Step(NamedTuple):
    """One generated token, as a context yields it."""

    token: int
    logprobs: Mapping[int, float] | None = None
    """See `GenerationResponse.logprobs`."""
    from_draft: bool = False


class Acceptance(NamedTuple):
    """What became of the tokens that a draft proposed."""

    proposed: int = 0
    accepted: int = 0


class Marks(NamedTuple):
    """The places that a context can come back to although its layers can't be trimmed."""

    offsets: tuple[int, ...] = ()
    """How many tokens each stands behind, ascending."""
    nbytes: int = 0
    """What they hold in memory, together."""


@dataclass(frozen=True, slots=True)
class StoredCache:
    """A KV cache out of a file, whole and checked, for one engine's contexts.

    Args:
        layers: The engine's own; never changed, any number of contexts may start from it.
        offset: How many tokens it holds; ``None`` where the layers don't count (recurrent models).
        metadata: What `Context.save` was given, and what else the file says.
        kv_bits: The bits it is quantized to; ``None`` if it is not.
        kv_group_size: The group size of that.
        max_kv_size: The most tokens it keeps; ``None`` if all.
    """

    layers: Any
    offset: int | None
    metadata: Mapping[str, str]
    kv_bits: int | None = None
    kv_group_size: int | None = None
    max_kv_size: int | None = None


class StoredTensor(NamedTuple):
    """An array as files hold it."""

    dtype: str
    """Its type as safetensors spells it, such as ``"BF16"``."""
    shape: tuple[int, ...]
    data: bytes | bytearray | memoryview
    """Its values, rows first, little-endian; as long as type and shape make it."""


@dataclass(frozen=True, slots=True)
class StoredPart:
    """A part of what a context holds, as a session file keeps it; the engine's own form.

    Args:
        values: What is no array: strings, numbers, lists and dicts, as JSON has them.
        tensors: The arrays, by names of the engine's choice.
    """

    values: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]


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

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Every token, as the tokenizer writes it, and its id."""
        ...

    @property
    def reasoning_tags(self) -> tuple[str, str] | None:
        """What the model writes before and behind its reasoning; ``None`` if it marks none."""
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
        """How many tokens the KV cache holds, the prefix included."""
        ...

    @property
    def prefix(self) -> int:
        """How many of these are an opaque prefix: nobody told their ids, and they always stay."""
        ...

    @property
    def acceptance(self) -> Acceptance:
        """What became of the draft's proposals so far."""
        ...

    @property
    def marks(self) -> Marks:
        """The places that it can come back to, besides any offset where it can be trimmed."""
        ...

    @property
    def wants_marks(self) -> bool:
        """Whether it can come back to marks alone, now or once it has grown."""
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
        *,
        marks: Sequence[int] = (),
        pinned: int = 0,
    ) -> Generator[Step, None, None]:
        """Prefill what the cache lacks of a prompt, then decode.

        Checks `config` at once and changes nothing before the first step is asked for. Then feeds
        ``ids[offset - prefix:]`` in chunks of `config.prefill_step_size` and yields
        `config.max_tokens` steps, eos or not: whoever consumes it decides when to close it. At
        every yield the cache holds the prompt and every token yielded, the last one included. With
        no tokens to generate, the whole prompt is fed all the same.

        A failure of the forward pass leaves the context empty but for its prefix; one of
        `progress` or of a draft, and an interrupt, leave it holding what the last chunk or yield
        left.

        Args:
            ids: The whole prompt behind the prefix, at least one id longer than what the cache
                holds of it; the cache must hold exactly ``ids[:offset - prefix]`` there.
            config: Settings of this reply.
            progress: Called as prefill goes on.
            marks: How many leading ids to be able to come back to, as far as `config` bounds marks
                and the prompt is fed here; where any offset will do, they are not needed.
            pinned: How many leading ids a cache of bounded size is never to drop; they can't be
                chosen anew once it has dropped any.

        Raises:
            ConfigurationError: This model can't do what `config` asks.
            GenerationError: The model, its draft or its runtime failed.
        """
        ...

    def rewind(self, offset: int) -> int:
        """Go back to at most `offset` tokens, and never beyond the prefix.

        Drops the newest tokens; where a layer can't drop just those, it goes back to the newest
        mark at or before `offset`, or to the prefix.

        Returns:
            The offset really reached, which may be smaller (the prefix when all had to go).
        """
        ...

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the KV cache to a file that `Engine.load_cache` reads; atomic.

        Raises:
            PromptCacheError: The cache holds nothing, or the file can't be written.
        """
        ...

    def fork(self) -> Context:
        """Another context that holds the same, marks and draft included.

        Nothing is copied before one of the two changes.
        """
        ...

    def parts(self) -> Mapping[str, StoredPart]:
        """What it holds, in parts that a file keeps each by itself; changes nothing.

        ``"cache"`` is all that was fed. Beside it, where there are such: ``"marks"``, ``"draft"``
        (what a draft has read), and ``"prefix"``, an opaque prefix alone. Empty as long as nothing
        was fed.

        Raises:
            PromptCacheError: Files have no form for this kind of cache.
        """
        ...

    def restore(self, parts: Mapping[str, StoredPart]) -> Mapping[str, str]:
        """Hold what another context of the same kind told as its `parts`.

        This one must be new, with the same prefix if it had one. A part that is missing or can't be
        used leaves its own without it; only the cache must be there.

        Returns:
            The parts that could not be used, and why: the draft of another model, say.

        Raises:
            PromptCacheFormatError: The cache is not of a form that it can have; nothing changed.
            PromptCacheMismatchError: It is of another model or of other settings; nothing changed.
        """
        ...


class Engine(Protocol):
    """A loaded model with its tokenizer; shared by any number of sessions."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own tokenizer, with its chat template."""
        ...

    @property
    def source(self) -> str:
        """What it was loaded as: a name, a path, a repository."""
        ...

    @property
    def context_length(self) -> int | None:
        """The most tokens that the model can look back on; ``None`` if nobody tells."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identifies weights, settings and vocabulary: a KV cache serves no other engine."""
        ...

    def context(
        self,
        config: GenerationConfig,
        *,
        speculative: SpeculativeDecodingConfig | None = None,
        cache: StoredCache | None = None,
        opaque: bool = False,
    ) -> Context:
        """A new context whose KV cache is of the kind `config.cache_settings` describes.

        Args:
            config: Settings that shape the cache.
            speculative: A draft for this context.
            cache: What it holds from the start, of that same kind; else nothing.
            opaque: Whether that is a prefix which always stays.

        Raises:
            ConfigurationError: This model can't have such a cache, or such a draft.
        """
        ...

    def load_cache(self, path: Path) -> StoredCache:
        """Read and check a file that `Context.save`, or another program, wrote.

        Raises:
            PromptCacheError: The file can't be read.
            PromptCacheFormatError: It is damaged, or of a kind this engine does not know.
            PromptCacheMismatchError: It belongs to another model.
        """
        ...

    def read_prefix(self, part: StoredPart, config: GenerationConfig) -> StoredCache:
        """An opaque prefix out of a context's ``"prefix"`` part, for `context`.

        Args:
            part: The part.
            config: Settings that shaped the cache.

        Raises:
            PromptCacheFormatError: It is not of a form that it can have.
            PromptCacheMismatchError: It is of another model, or of other settings.
        """
        ...
