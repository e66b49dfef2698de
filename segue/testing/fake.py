"""A fake model that fills its cache as a real one does, and fails when told."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path

from ..config import GenerationConfig, SpeculativeDecodingConfig
from ..engine import (
    Acceptance,
    Marks,
    PrefillProgress,
    Step,
    StoredCache,
    StoredPart,
    StoredTensor,
    Tokenizer,
)
from ..errors import GenerationError, PromptCacheError, PromptCacheFormatError
from ..files.atomic import replacing
from ..interrupt import deliver_interrupt
from .tokenizer import ToyTokenizer

NextToken = Callable[[Sequence[int]], int]
"""``ids in the cache -> the likeliest next id``."""


class ScriptedModel:
    """A model of several layers whose every forward pass can be scripted.

    Args:
        script: What it says: text (or ids) for each reply in turn, an end-of-reply token after
            each; or a rule from the ids in the cache to the next id. A script that is used up
            ends every reply at once.
        tokenizer: Encodes the script's text.
        layers: How many layers its cache has.
        fail_at: Fail in these forward passes (the first is 1) ...
        failure: ... with this exception; by default a `GenerationError`.

    Attributes:
        calls: Forward passes so far.
        fed: The ids that each of them was fed.
    """

    def __init__(
        self,
        script: Iterable[str | Sequence[int]] | NextToken = (),
        *,
        tokenizer: Tokenizer | None = None,
        layers: int = 3,
        fail_at: Iterable[int] = (),
        failure: BaseException | None = None,
    ) -> None:
        self.tokenizer = tokenizer or ToyTokenizer()
        self.layers = layers
        self.fail_at = set(fail_at)
        self.failure = failure
        self.calls = 0
        self.fed: list[tuple[int, ...]] = []
        self._rule = script if callable(script) else None
        self._replies = [] if callable(script) else [self._ids(reply) for reply in script]

    def begin_reply(self) -> NextToken:
        """The rule for the next reply: the caller's own, or the next part of the script."""
        if self._rule is not None:
            return self._rule
        ids = iter(self._replies.pop(0) if self._replies else ())
        end = min(self.tokenizer.eos_token_ids)
        return lambda _: next(ids, end)

    def forward(self, cache: list[list[int]], ids: Sequence[int]) -> None:
        """Feed ids to every layer of a cache; one told to fail stops half way, as real ones do."""
        self.calls += 1
        self.fed.append(tuple(ids))
        failing = self.calls in self.fail_at
        for layer in cache[: self.layers // 2] if failing else cache:
            layer.extend(ids)
        if failing:
            raise self.failure or GenerationError(
                f"The fake model failed in forward pass {self.calls}, as it was told to.",
                remedy="Try again: it fails in that pass alone.",
            )

    def _ids(self, reply: str | Sequence[int]) -> list[int]:
        return list(self.tokenizer.encode(reply) if isinstance(reply, str) else reply)


class FakeContext:
    """The cache of a `ScriptedModel`: each layer holds the very ids it was fed.

    Implements `segue.engine.Context`.

    Args:
        model: The model.
        trimmable: Whether it can drop its newest tokens; else any rewind goes back to the start.
        start: The ids that it holds from the start.
        opaque: Whether those are a prefix that always stays.

    Attributes:
        cache: The layers.
        prefix: How many leading ids always stay.
        acceptance: All zero: a draft changes nothing that is said, and is not imitated.
        wants_marks: Whether it can come back to marks alone.
    """

    def __init__(
        self,
        model: ScriptedModel,
        *,
        trimmable: bool = True,
        start: Sequence[int] = (),
        opaque: bool = False,
    ) -> None:
        self._model = model
        self.wants_marks = not trimmable
        self._marks: list[int] = []
        self._prefix = list(start) if opaque else []
        self.prefix = len(self._prefix)
        self.acceptance = Acceptance()
        self.cache: list[list[int]] = [list(start) for _ in range(model.layers)]

    @property
    def offset(self) -> int:
        """How many tokens the cache holds.

        Raises:
            AssertionError: Its layers are out of step, which must never be seen.
        """
        first, *others = self.cache
        assert all(layer == first for layer in others), "the layers are out of step"
        return len(first)

    @property
    def peak_memory(self) -> int:
        """A stand-in: one byte for each id that the layers hold."""
        return sum(len(layer) for layer in self.cache)

    def rewind(self, offset: int) -> int:
        """See `segue.engine.Context.rewind`."""
        offset = max(offset, self.prefix)
        if offset < self.offset:
            if self.wants_marks:
                reachable = (mark for mark in self._marks if mark <= offset)
                offset = max(reachable, default=self.prefix)
            for layer in self.cache:
                del layer[offset:]
            self._marks = [mark for mark in self._marks if mark <= offset]
        return self.offset

    @property
    def marks(self) -> Marks:
        """See `segue.engine.Context.marks`; each counts a byte."""
        return Marks(tuple(self._marks), len(self._marks))

    def _keep_mark(self, config: GenerationConfig) -> None:
        if self.wants_marks and self.offset not in (self.prefix, *self._marks):
            self._marks.append(self.offset)
            while len(self._marks) > config.max_marks:
                del self._marks[1 if len(self._marks) > 2 else 0]

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """See `segue.engine.Context.save`; a fake cache is a line of JSON."""
        try:
            with replacing(path) as temporary:
                temporary.write_text(json.dumps({"ids": self.cache[0], "metadata": dict(metadata)}))
        except (OSError, ValueError) as error:
            raise PromptCacheError(
                f"{path} can't be written: {error}.", remedy="Check its folder."
            ) from error

    def fork(self) -> FakeContext:
        """See `segue.engine.Context.fork`."""
        twin = FakeContext(
            self._model, trimmable=not self.wants_marks, start=self._prefix, opaque=True
        )
        twin.cache = [list(layer) for layer in self.cache]
        twin._marks = list(self._marks)
        return twin

    def parts(self) -> Mapping[str, StoredPart]:
        """See `segue.engine.Context.parts`."""
        parts = {"cache": _stored(self.cache[0])} if self.offset else {}
        if self._marks:
            parts["marks"] = StoredPart({"offsets": list(self._marks)}, {})
        if self._prefix:
            parts["prefix"] = _stored(self._prefix)
        return parts

    def restore(self, parts: Mapping[str, StoredPart]) -> Mapping[str, str]:
        """See `segue.engine.Context.restore`."""
        ids = _restored(parts["cache"])
        self.cache = [list(ids) for _ in self.cache]
        if "marks" not in parts:
            return {}
        marks = parts["marks"].values.get("offsets")
        if not isinstance(marks, list) or not all(
            type(mark) is int and 0 <= mark <= self.offset for mark in marks
        ):
            return {"marks": "they stand nowhere in the cache"}
        self._marks = sorted(marks)
        return {}

    def generate(
        self,
        ids: Sequence[int],
        config: GenerationConfig,
        progress: PrefillProgress | None = None,
        *,
        marks: Sequence[int] = (),
        pinned: int = 0,
    ) -> Generator[Step, None, None]:
        """See `segue.engine.Context.generate`."""
        ids = (*self._prefix, *ids)
        total = len(ids) - self.offset
        assert total > 0, "the model must be fed at least one token"
        assert tuple(self.cache[0]) == ids[: self.offset], "the ledger is wrong"
        # Reading alone uses up nothing of a script.
        say = self._model.begin_reply() if config.max_tokens else None
        stops = {mark + self.prefix for mark in marks}
        fed = 0
        while True:
            if self.offset in stops:
                self._keep_mark(config)
            if progress is not None:
                progress(fed, total)
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
            self._feed([token])
            yield Step(token)

    def _feed(self, ids: Sequence[int]) -> None:
        try:
            self._model.forward(self.cache, ids)
        except BaseException:
            self.cache = [list(self._prefix) for _ in self.cache]
            self._marks.clear()
            raise


def _stored(ids: Sequence[int]) -> StoredPart:
    return StoredPart({}, {"ids": StoredTensor("U32", (len(ids),), array("I", ids).tobytes())})


def _restored(part: StoredPart) -> list[int]:
    tensor = part.tensors.get("ids")
    if tensor is None or tensor.dtype != "U32" or len(tensor.shape) != 1:
        raise PromptCacheFormatError(
            "This is no cache of the fake engine.", remedy="Save the session anew."
        )
    return array("I", bytes(tensor.data)).tolist()


class FakeEngine:
    """An engine whose model follows a script; implements `segue.engine.Engine`.

    Args:
        script: See `ScriptedModel`.
        tokenizer: By default a `ToyTokenizer`.
        trimmable: Whether its contexts can drop their newest tokens.
        fail_at: See `ScriptedModel`.
        failure: See `ScriptedModel`.
        context_length: The most tokens that a prompt and its reply may have.

    Attributes:
        model: The model.
        source: What saved sessions call the model.
        fingerprint: The same for all fakes, unless it is set.
        contexts: Every context made so far, newest last.
    """

    def __init__(
        self,
        script: Iterable[str | Sequence[int]] | NextToken = (),
        *,
        tokenizer: Tokenizer | None = None,
        trimmable: bool = True,
        fail_at: Iterable[int] = (),
        failure: BaseException | None = None,
        context_length: int | None = None,
    ) -> None:
        self.context_length = context_length
        self.model = ScriptedModel(script, tokenizer=tokenizer, fail_at=fail_at, failure=failure)
        self.tokenizer = self.model.tokenizer
        self.trimmable = trimmable
        self.source = self.fingerprint = "fake"
        self.contexts: list[FakeContext] = []

    def context(
        self,
        config: GenerationConfig,
        *,
        speculative: SpeculativeDecodingConfig | None = None,
        cache: StoredCache | None = None,
        opaque: bool = False,
    ) -> FakeContext:
        """See `segue.engine.Engine.context`; a draft changes nothing that is said."""
        context = FakeContext(
            self.model,
            trimmable=self.trimmable,
            start=() if cache is None else cache.layers,
            opaque=opaque,
        )
        self.contexts.append(context)
        return context

    def load_cache(self, path: Path) -> StoredCache:
        """See `segue.engine.Engine.load_cache`."""
        try:
            entry = json.loads(path.read_text())
            ids, metadata = tuple(entry["ids"]), entry["metadata"]
        except OSError as error:
            raise PromptCacheError(
                f"{path} can't be opened: {error.strerror}.", remedy="Check its path."
            ) from error
        except (ValueError, LookupError, TypeError) as error:
            raise PromptCacheFormatError(
                f"{path} is no cache of the fake engine.", remedy="Save one with save_cache."
            ) from error
        return StoredCache(ids, len(ids), metadata)

    def read_prefix(self, part: StoredPart, config: GenerationConfig) -> StoredCache:
        """See `segue.engine.Engine.read_prefix`."""
        ids = tuple(_restored(part))
        return StoredCache(ids, len(ids), {})
