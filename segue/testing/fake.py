"""A fake engine that has every capability, and fills its cache as a real one does."""

from __future__ import annotations

import json
from array import array
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from ..checkpoints import thin_checkpoints
from ..config import CacheConfig
from ..engine import (
    Acceptance,
    CheckpointReport,
    Engine,
    Request,
    Step,
    StoredCache,
    StoredState,
    StoredTensor,
    Tokenizer,
)
from ..errors import PromptCacheError, PromptCacheFormatError
from ..files.atomic import writing
from ..interrupt import deliver_interrupt
from ..masking.matcher import Matcher
from .script import Answer, NextToken, ScriptedModel


class FakeContext:
    """The cache of a `ScriptedModel`: each layer holds the very ids it was fed.

    Implements `segue.engine.Context`, and every capability of one.

    Args:
        model: The model.
        config: The kind of cache; it bounds the checkpoints, and changes nothing else.
        trimmable: Whether the cache can drop its newest tokens; else it rewinds to checkpoints.
    """

    logits_type = list
    """Logits processors are not called: a script has no logits."""

    def __init__(
        self, model: ScriptedModel, config: CacheConfig, *, trimmable: bool = True
    ) -> None:
        self._model = model
        self._config = config
        self._prefix: list[int] = []
        self._offsets: list[int] = []
        self.cache: list[list[int]] = [[] for _ in range(model.layers)]
        """The layers."""
        self.wants_checkpoints = not trimmable
        """See `segue.engine.Checkpoints`."""
        self.acceptance = Acceptance()
        """All zero: a draft changes nothing that is said, and is not imitated."""
        self.reused: int | None = None
        """See `segue.engine.Context.reused`."""

    @property
    def offset(self) -> int:
        """How many tokens the cache holds.

        Raises:
            AssertionError: if its layers are out of step, which must never be seen.
        """
        first, *others = self.cache
        assert all(layer == first for layer in others), "the layers are out of step"
        return len(first)

    @property
    def prefix(self) -> int:
        """How many leading ids always stay."""
        return len(self._prefix)

    @property
    def peak_memory(self) -> int:
        """A stand-in: one byte for each id that the layers hold."""
        return sum(len(layer) for layer in self.cache)

    @property
    def checkpoints(self) -> CheckpointReport:
        """See `segue.engine.Checkpoints.checkpoints`; each counts a byte."""
        return CheckpointReport(tuple(self._offsets), len(self._offsets))

    def run(self, request: Request) -> Generator[Step, None, None]:
        """See `segue.engine.Context.run`."""
        grammar = request.grammar
        matcher = None if grammar is None else self._model.grammars.matcher(grammar)
        return self._run(request, matcher)

    def _run(self, request: Request, matcher: Matcher | None) -> Generator[Step, None, None]:
        config, ids = request.config, (*self._prefix, *request.ids)
        self.reused = self.offset
        total = len(ids) - self.offset
        assert total > 0, "the model must be fed at least one token"
        assert tuple(self.cache[0]) == ids[: self.offset], "the ledger is wrong"
        # Reading alone uses up nothing of a script.
        say = self._model.begin_reply() if config.max_tokens else None
        stops = {length + self.prefix for length in request.checkpoints}
        fed = 0
        while True:
            if self.offset in stops:
                self._add_checkpoint()
            if request.progress is not None:
                request.progress(fed, total)
            deliver_interrupt()
            if fed == total:
                break
            end = self.offset + min(config.prefill_step_size, total - fed)
            end = min([end, *(stop for stop in stops if stop > self.offset)])
            fed += end - self.offset
            self._feed(ids[self.offset : end])
        for _ in range(config.max_tokens):
            # Fed before it is yielded, as a pipelined decode loop does.
            assert say is not None
            token = say(self.cache[0])
            if matcher is not None:
                token = self._model.allowed(token, matcher)
                matcher.consume(token)
            self._feed([token])
            yield Step(token)

    def _feed(self, ids: Sequence[int]) -> None:
        try:
            self._model.forward(self.cache, ids)
        except BaseException:
            self.cache = [list(self._prefix) for _ in self.cache]
            self._offsets.clear()
            raise

    def _add_checkpoint(self) -> None:
        if self.wants_checkpoints and self.offset not in (self.prefix, *self._offsets):
            self._offsets.append(self.offset)
            most = self._config.max_checkpoints
            thin_checkpoints(self._offsets, lambda offsets: len(offsets) <= most)

    def rewind(self, offset: int) -> int:
        """See `segue.engine.Context.rewind`."""
        offset = max(offset, self.prefix)
        if offset < self.offset:
            if self.wants_checkpoints:
                reachable = (length for length in self._offsets if length <= offset)
                offset = max(reachable, default=self.prefix)
            for layer in self.cache:
                del layer[offset:]
            self._offsets = [length for length in self._offsets if length <= offset]
        return self.offset

    def close(self) -> None:
        """See `segue.engine.Context.close`; a fake has nothing to free."""

    def fork(self) -> FakeContext:
        """See `segue.engine.Forks.fork`."""
        twin = FakeContext(self._model, self._config, trimmable=not self.wants_checkpoints)
        twin._prefix, twin._offsets = self._prefix, list(self._offsets)
        twin.cache = [list(layer) for layer in self.cache]
        return twin

    def draft_with(self, draft: Engine | Literal["prompt-lookup"]) -> None:
        """See `segue.engine.Drafts.draft_with`; nothing is drafted."""

    def start_from(self, stored: StoredCache, *, opaque: bool) -> None:
        """See `segue.engine.Stores.start_from`."""
        self.cache = [list(stored.layers) for _ in self.cache]
        self._prefix = list(stored.layers) if opaque else []

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """See `segue.engine.Stores.save`; a fake cache is a line of JSON."""
        try:
            with writing(path) as temporary:
                temporary.write_text(json.dumps({"ids": self.cache[0], "metadata": dict(metadata)}))
        except (OSError, ValueError) as error:
            raise PromptCacheError(
                f"{path} can't be written: {error}.", remedy="Check its folder."
            ) from error

    def stored(self) -> Mapping[str, StoredState]:
        """See `segue.engine.Stores.stored`."""
        stored = {"cache": _stored(self.cache[0])} if self.offset else {}
        if self._offsets:
            stored["checkpoints"] = StoredState({"offsets": list(self._offsets)}, {})
        if self._prefix:
            stored["prefix"] = _stored(self._prefix)
        return stored

    def restore(self, stored: Mapping[str, StoredState]) -> Mapping[str, str]:
        """See `segue.engine.Stores.restore`."""
        ids = _restored(stored["cache"])
        self.cache = [list(ids) for _ in self.cache]
        if "checkpoints" not in stored:
            return {}
        offsets = stored["checkpoints"].values.get("offsets")
        if not isinstance(offsets, list) or not all(
            type(offset) is int and 0 <= offset <= self.offset for offset in offsets
        ):
            return {"checkpoints": "they are not in the cache"}
        self._offsets = sorted(offsets)
        return {}


def _stored(ids: Sequence[int]) -> StoredState:
    return StoredState({}, {"ids": StoredTensor("U32", (len(ids),), array("I", ids).tobytes())})


def _restored(stored: StoredState) -> list[int]:
    tensor = stored.tensors.get("ids")
    if tensor is None or tensor.dtype != "U32" or len(tensor.shape) != 1:
        raise PromptCacheFormatError(
            "This is not a cache of the fake engine.", remedy="Save the session anew."
        )
    return array("I", bytes(tensor.data)).tolist()


class FakeEngine:
    """An engine whose model follows a script; implements `segue.engine.Engine`.

    Its contexts have every capability, so that a program under test can save, fork and draft.

    Examples:
        >>> import segue
        >>> session = segue.ChatSession(FakeEngine(["Hello!", "Fine."]))
        >>> session.respond("Hi"), session.respond("How are you?")
        ('Hello!', 'Fine.')

    Args:
        script: See `ScriptedModel`; or one.
        answer: See `ScriptedModel`.
        tokenizer: By default a `ToyTokenizer`.
        trimmable: Whether its contexts can drop their newest tokens.
        fail_at: See `ScriptedModel`.
        failure: See `ScriptedModel`.
        context_length: The most tokens that a prompt and its reply may have.
    """

    def __init__(
        self,
        script: Iterable[str | Sequence[int]] | NextToken | ScriptedModel = (),
        *,
        answer: Answer | None = None,
        tokenizer: Tokenizer | None = None,
        trimmable: bool = True,
        fail_at: Iterable[int] = (),
        failure: BaseException | None = None,
        context_length: int | None = None,
    ) -> None:
        self.model = ScriptedModel.of(
            script, answer=answer, tokenizer=tokenizer, fail_at=fail_at, failure=failure
        )
        """The model."""
        self.tokenizer = self.model.tokenizer
        """Its tokenizer."""
        self.context_length = context_length
        """See `segue.engine.Engine.context_length`."""
        self.trimmable = trimmable
        """True if contexts can drop their newest tokens."""
        self.name = self.source = self.fingerprint = "fake"
        """The same for all fakes, unless they are set."""
        self.contexts: list[FakeContext] = []
        """Every context made so far, newest last."""

    def __repr__(self) -> str:
        return f"<FakeEngine: {self.model!r}>"

    def context(self, cache: CacheConfig) -> FakeContext:
        """See `segue.engine.Engine.context`."""
        context = FakeContext(self.model, cache, trimmable=self.trimmable)
        self.contexts.append(context)
        return context

    def compile_grammar(self, grammar: str) -> None:
        """See `segue.engine.Grammars.compile_grammar`."""
        self.model.grammars.matcher(grammar)

    def load_cache(self, path: Path) -> StoredCache:
        """See `segue.engine.StoresPrompts.load_cache`."""
        try:
            entry = json.loads(path.read_text())
            ids, metadata = tuple(entry["ids"]), entry["metadata"]
        except OSError as error:
            raise PromptCacheError(
                f"{path} can't be opened: {error.strerror}.", remedy="Check its path."
            ) from error
        except (ValueError, LookupError, TypeError) as error:
            raise PromptCacheFormatError(
                f"{path} is not a cache of the fake engine.", remedy="Save one with save_cache."
            ) from error
        return StoredCache(ids, len(ids), metadata)

    def read_prefix(self, stored: StoredState, cache: CacheConfig) -> StoredCache:
        """See `segue.engine.StoresPrompts.read_prefix`."""
        ids = tuple(_restored(stored))
        return StoredCache(ids, len(ids), {})
