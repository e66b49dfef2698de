"""The seam that engines plug into: what a session needs of a model.

An engine implements `Engine` and `Context`, which are small: a tokenizer, a fingerprint, and a
context that runs a request, rewinds as far as it can, and reports how many tokens it holds. What
else there may be is a protocol of its own, a *capability*, asked for with ``isinstance``:

=====================  ============================================================
`Checkpoints`          a context that rewinds to checkpoints where it can't be trimmed
`Forks`                a context that can be copied
`Drafts`               a context that decodes faster with a draft
`Stores`               a context whose state goes into files and comes back
`StoresPrompts`        an engine that reads the files of such contexts
`ReportsMemory`        a context that reports how much memory its engine has used
`ProcessesLogits`      a context that calls `GenerationConfig.logits_processors`
`WritesDate`           a tokenizer whose chat template may write the date
`ControlTokens`        a tokenizer that can tell control tokens from text
`Grammars`             an engine that holds replies to a grammar
`Recommends`           an engine that knows what its model's publisher recommends
=====================  ============================================================

A session works with the core alone; what an engine lacks is refused with UnsupportedFeatureError.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from .config import CacheConfig, GenerationConfig
from .recommended import Recommends
from .tokenizer import ControlTokens, Detokenizer, Tokenizer, WritesDate

PrefillProgress = Callable[[int, int], None]
"""``(tokens fed so far, tokens to feed)``, called before, between and after prefill's chunks."""

__all__ = [
    "Acceptance",
    "CheckpointReport",
    "Checkpoints",
    "Context",
    "ControlTokens",
    "Detokenizer",
    "Diagnosis",
    "Drafts",
    "Engine",
    "Forks",
    "Grammars",
    "PrefillProgress",
    "ProcessesLogits",
    "Recommends",
    "ReportsMemory",
    "Request",
    "Step",
    "StoredCache",
    "StoredState",
    "StoredTensor",
    "Stores",
    "StoresPrompts",
    "Tokenizer",
    "WritesDate",
]


class Step(NamedTuple):
    """One generated token, as a context yields it."""

    token: int
    logprobs: Mapping[int, float] | None = None
    """See `GenerationResponse.logprobs`."""
    from_draft: bool = False
    """True if a draft proposed the token."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to read, and how to reply to it."""

    ids: Sequence[int]
    """The whole prompt after an opaque prefix. The context must hold exactly the first of these
    ids, and at least one must be new."""
    config: GenerationConfig
    """Settings of the reply. With `max_tokens` 0, the whole prompt is fed and nothing is said."""
    progress: PrefillProgress | None = None
    """Called as prefill advances."""
    ends: AbstractSet[int] = frozenset()
    """Ids that end a reply. A context may stop after one of them, and need not: whoever reads the
    steps stops there anyway."""
    checkpoints: Sequence[int] = ()
    """How many leading ids to be able to rewind to, as far as the cache's settings bound
    checkpoints. A context that rewinds to any offset needs none."""
    pinned: int = 0
    """How many leading ids a cache of bounded size must never drop. They can't be chosen anew once
    it has dropped any."""
    grammar: str | None = None
    """The grammar that the reply must match. For engines that are `Grammars`."""


class Acceptance(NamedTuple):
    """The tokens that a draft proposed, and those that the model accepted."""

    proposed: int = 0
    accepted: int = 0


class CheckpointReport(NamedTuple):
    """The checkpoints that a context has."""

    offsets: tuple[int, ...] = ()
    """How many tokens were cached at each, ascending."""
    nbytes: int = 0
    """Memory that all of them use, in bytes."""


@dataclass(frozen=True, slots=True)
class StoredCache:
    """A KV cache out of a file, whole and checked, for one engine's contexts."""

    layers: Any
    """The engine's own form; never changed, any number of contexts may start from it."""
    offset: int | None
    """How many tokens it holds; ``None`` where the layers don't count (recurrent models)."""
    metadata: Mapping[str, str]
    """The metadata that `Stores.save` was given, and what else the file carries."""
    kv_bits: int | None = None
    """The bits it is quantized to; ``None`` if it isn't."""
    kv_group_size: int | None = None
    """The group size of the quantization."""
    max_kv_size: int | None = None
    """The most tokens it keeps; ``None`` if all."""


class StoredTensor(NamedTuple):
    """An array as files hold it."""

    dtype: str
    """Its type as safetensors spells it, such as ``"BF16"``."""
    shape: tuple[int, ...]
    data: bytes | bytearray | memoryview
    """Its values, rows first, little-endian; as long as type and shape make it."""


@dataclass(frozen=True, slots=True)
class StoredState:
    """One section of a context's state, as a session file keeps it; the engine's own form."""

    values: Mapping[str, Any]
    """Everything but arrays: strings, numbers, lists and dicts, as in JSON."""
    tensors: Mapping[str, StoredTensor]
    """The arrays, by names of the engine's choice."""


class Diagnosis(NamedTuple):
    """An engine's findings on this machine: names and values, and advice in sentences."""

    facts: list[tuple[str, str]]
    advice: list[str]


class Context(Protocol):
    """The KV state of one conversation, owned by one session: the core of every engine.

    `offset` is right whenever no call is running: also while a generator is suspended, after one
    was closed, and after one raised. Between calls it may shrink, where an engine shares its memory
    among contexts, but never within one.
    """

    @property
    def offset(self) -> int:
        """How many tokens are cached, an opaque prefix included.

        Where the engine owns its cache (a server), this is what it was sent and should still have.
        """
        ...

    @property
    def reused(self) -> int | None:
        """How many tokens of the latest request's prompt the engine did not compute again.

        ``None`` if the engine did not report it, or not yet: then `offset` before the request is
        the best guess.
        """
        ...

    def run(self, request: Request) -> Generator[Step, None, None]:
        """Prefill what the cache lacks of a prompt, then decode.

        Checks the request at once, and changes nothing before the first step is asked for. Then
        feeds the rest of the prompt and yields at most `max_tokens` steps. At every yield the cache
        holds the prompt and every token yielded, but perhaps the newest; `offset` counts them.

        A failure of the forward pass leaves the context empty but for an opaque prefix; a failure
        of `Request.progress` or of a draft, and an interrupt, leave it holding what the last chunk
        or yield left.

        Raises:
            ConfigurationError: if the engine can't do what the request asks.
            GenerationError: if the model, its draft or its runtime failed.
        """
        ...

    def rewind(self, offset: int) -> int:
        """Go back to at most `offset` tokens, and never into an opaque prefix.

        Drops the newest tokens. Where a layer can't drop just those, the context goes back to the
        newest checkpoint at or before `offset`, or to the prefix.

        Returns:
            The offset reached, which may be smaller (the prefix if everything had to go).
        """
        ...

    def close(self) -> None:
        """Free what the context holds. Nothing runs on it again; a suspended run may be closed."""
        ...


@runtime_checkable
class Checkpoints(Protocol):
    """A context that may only be able to rewind to checkpoints."""

    @property
    def checkpoints(self) -> CheckpointReport:
        """The checkpoints to rewind to, besides any offset where the context can be trimmed."""
        ...

    @property
    def wants_checkpoints(self) -> bool:
        """True if the context can rewind to checkpoints alone, now or once it is long enough."""
        ...


@runtime_checkable
class Forks(Protocol):
    """A context that can be copied."""

    def fork(self) -> Context:
        """Return another context that holds the same, checkpoints and draft included.

        Nothing is copied before one of the two changes.
        """
        ...


@runtime_checkable
class Drafts(Protocol):
    """A context that can decode with a draft."""

    @property
    def acceptance(self) -> Acceptance:
        """The draft's proposals so far, and those accepted; all zero without a draft."""
        ...

    def draft_with(self, draft: Engine | Literal["prompt-lookup"]) -> None:
        """Use a draft in all requests; called once, before the first.

        Raises:
            ConfigurationError: if this draft can't draft for this engine.
        """
        ...


@runtime_checkable
class Stores(Protocol):
    """A context whose state goes into files, and that can start from one."""

    @property
    def prefix(self) -> int:
        """How many leading tokens are an opaque prefix: their ids are unknown, and they stay."""
        ...

    def start_from(self, stored: StoredCache, *, opaque: bool) -> None:
        """Hold what a prompt cache holds; called on a new context of the cache's own kind.

        Args:
            stored: The cache, from `StoresPrompts.load_cache` or `StoresPrompts.read_prefix`.
            opaque: True if it is a prefix that always stays.
        """
        ...

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the KV cache to a file that `StoresPrompts.load_cache` reads; atomic.

        Raises:
            PromptCacheError: if the cache is empty, or the file can't be written.
        """
        ...

    def stored(self) -> Mapping[str, StoredState]:
        """Return what the context holds, in sections that a file keeps each by itself.

        ``"cache"`` is all that was fed. With it, where there are any: ``"checkpoints"``,
        ``"draft"`` (what a draft has read), and ``"prefix"``, an opaque prefix alone. Empty until
        something was fed. Changes nothing.

        Raises:
            PromptCacheError: if files have no form for this kind of cache.
        """
        ...

    def restore(self, stored: Mapping[str, StoredState]) -> Mapping[str, str]:
        """Hold what another context of the same kind returned from `stored`.

        The context must be new, with the same prefix if that one had one. A section that is missing
        or can't be used is left out; only the cache must be there.

        Returns:
            The sections that could not be used, and why: the draft of another model, say.

        Raises:
            PromptCacheFormatError: if the cache isn't in a form that it can have; nothing changed.
            PromptCacheMismatchError: if it is of another model or of other settings; nothing
                changed.
        """
        ...


@runtime_checkable
class ReportsMemory(Protocol):
    """A context that reports memory."""

    @property
    def peak_memory(self) -> int:
        """The most memory the engine has used so far, in bytes."""
        ...


@runtime_checkable
class ProcessesLogits(Protocol):
    """A context that calls `GenerationConfig.logits_processors`."""

    @property
    def logits_type(self) -> type[Any]:
        """The type of the arrays that logits processors get and return."""
        ...


class Engine(Protocol):
    """A loaded model with its tokenizer; shared by any number of sessions."""

    @property
    def name(self) -> str:
        """The model's name in messages."""
        ...

    @property
    def source(self) -> str:
        """The name, path or repository that it was loaded from."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own tokenizer, with its chat template."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identifies weights, settings and vocabulary: a KV cache serves no other engine."""
        ...

    @property
    def context_length(self) -> int | None:
        """The most tokens that the model can look back on; ``None`` if unknown."""
        ...

    def context(self, cache: CacheConfig) -> Context:
        """Return a new, empty context with a cache of this kind.

        Raises:
            ConfigurationError: if this model can't have such a cache.
        """
        ...


@runtime_checkable
class StoresPrompts(Protocol):
    """An engine that reads what its contexts saved; they are `Stores`."""

    def load_cache(self, path: Path) -> StoredCache:
        """Read and check a file that `Stores.save`, or another program, wrote.

        Raises:
            PromptCacheError: if the file can't be read.
            PromptCacheFormatError: if it is damaged, or of a kind this engine does not know.
            PromptCacheMismatchError: if it belongs to another model.
        """
        ...

    def read_prefix(self, stored: StoredState, cache: CacheConfig) -> StoredCache:
        """Return an opaque prefix out of a context's ``"prefix"`` section.

        Args:
            stored: The section.
            cache: Settings of the cache that it was part of.

        Raises:
            PromptCacheFormatError: if it isn't in a form that it can have.
            PromptCacheMismatchError: if it is of another model, or of other settings.
        """
        ...


@runtime_checkable
class Grammars(Protocol):
    """An engine whose contexts can hold a reply to a grammar.

    A grammar is text in llguidance's dialect of Lark, whose rule ``start`` the whole reply must
    match. A context excludes whatever the grammar does not allow before it samples, and may feed
    what the grammar demands several tokens at a time.
    """

    def compile_grammar(self, grammar: str) -> None:
        """Prepare a grammar; nothing is generated.

        Raises:
            ConfigurationError: if it isn't one, or the engine can't follow it.
        """
        ...


for _name in ("ControlTokens", "Detokenizer", "Recommends", "Tokenizer", "WritesDate"):
    globals()[_name].__module__ = __name__
