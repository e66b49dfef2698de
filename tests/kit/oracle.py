"""A scripted talk with a model: every turn is held against what it should feed and think."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.generate import maybe_quantize_kv_cache
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    KVCache,
    RotatingKVCache,
    make_prompt_cache,
)

from kit.contexts import read
from kit.probe import context_of, engine_of, ids_of, next_logits
from kit.sessions import common_prefix, rendered
from segue import CacheConfig, ChatSession, GenerationConfig, Message, MlxEngine, Reply
from segue.testing import ToyTokenizer

TOLERANCE = 1e-4
BASE = GenerationConfig(max_tokens=4)


class Recorder:
    """A model that writes down what it is fed, pass by pass."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.passes: list[list[int]] = []

    def __call__(self, tokens: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        logits: mx.array = self.model(tokens, *args, **kwargs)
        self.passes.append(tokens[0].tolist())
        return logits

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


class EditingTokenizer(ToyTokenizer):
    """Its template writes other words for some, as if the history had been edited."""

    def __init__(self) -> None:
        super().__init__()
        self.edits: dict[str, str] = {}

    def render(self, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> str:
        edited = [{**m, "content": self.edits.get(m["content"], m["content"])} for m in messages]
        return super().render(edited, **kwargs)


def wrap(model: Any, name: str = "tiny") -> MlxEngine:
    """An engine that writes down what its model is fed."""
    return MlxEngine(Recorder(model), EditingTokenizer(), name=name)


def leaves(layers: Sequence[Any]) -> Iterator[Any]:
    """Caches, those in lists one by one."""
    for layer in layers:
        if isinstance(layer, CacheList):
            yield from leaves(layer.caches)
        else:
            yield layer


def relative_error(got: mx.array, expected: mx.array) -> float:
    """Infinite where one is not a number; tokens that are ruled out must be so in both."""
    ruled_out = expected == -mx.inf
    if not mx.array_equal(ruled_out, got == -mx.inf):
        return float("inf")
    got, expected = mx.where(ruled_out, 0, got), mx.where(ruled_out, 0, expected)
    error = (mx.abs(got - expected).max() / mx.abs(expected).max()).item()
    return error if error == error else float("inf")


def replay(model: Any, passes: Sequence[Sequence[int]], config: CacheConfig) -> list[Any]:
    """What mlx-lm's own caches hold after these passes; no Segue in it."""
    assert config.kv_bits is not None
    cache: list[Any] = make_prompt_cache(model)
    held = 0
    for tokens in passes:
        if held >= config.quantized_kv_start:
            maybe_quantize_kv_cache(cache, 0, config.kv_group_size, config.kv_bits)
        mx.eval(model(mx.array([tokens]), cache=cache))
        held += len(tokens)
    if held >= config.quantized_kv_start:
        maybe_quantize_kv_cache(cache, 0, config.kv_group_size, config.kv_bits)
    return cache


class Expected:
    """What the caches of one conversation hold and can give back, by the policy alone.

    Trimmable layers come back to any place; a window does until it is full, a chunk until its
    front was dropped, a state never. Where one of them can't, the context comes back to the newest
    checkpoint at or before the place. What is quantized does not come back to before it was.
    """

    def __init__(self, engine: MlxEngine, config: CacheConfig) -> None:
        own = list(leaves(make_prompt_cache(engine.model)))
        self.recurrent = any(isinstance(layer, ArraysCache) for layer in own)
        self.windows = [layer.max_size for layer in own if isinstance(layer, RotatingKVCache)]
        self.chunks = [layer.chunk_size for layer in own if isinstance(layer, ChunkedKVCache)]
        plain = any(type(layer) is KVCache for layer in make_prompt_cache(engine.model))
        if config.max_kv_size is not None and plain:
            self.windows.append(config.max_kv_size)
        self.whole_before = config.quantized_kv_start if config.kv_bits is not None else 0
        self.most_checkpoints = config.max_checkpoints
        self.clear()

    def clear(self) -> None:
        self.held: list[int] = []
        self.checkpoints: list[int] = []
        # The passes that it was fed in.
        self.passes: list[list[int]] = []

    @property
    def by_checkpoints(self) -> bool:
        """Whether there are layers that can't be trimmed for ever."""
        return bool(self.recurrent or self.windows or self.chunks)

    def can_trim(self) -> bool:
        return not (
            self.recurrent
            or any(len(self.held) >= window for window in self.windows)
            or any(begin > chunk for chunk in self.chunks for begin in self.begins())
        )

    def begins(self) -> list[int]:
        """How many tokens were held where each pass began."""
        return list(itertools.accumulate(map(len, self.passes[:-1]), initial=0))

    def come_back(self, offset: int) -> int:
        """Where a rewind to `offset` gets."""
        if offset >= len(self.held):
            return len(self.held)
        if not self.can_trim():
            offset = max((length for length in self.checkpoints if length <= offset), default=0)
        if len(self.held) >= self.whole_before > offset:
            offset = 0
        self.held = self.held[:offset]
        self.checkpoints = [length for length in self.checkpoints if length <= offset and offset]
        begins = zip(self.begins(), self.passes, strict=False)
        self.passes = [tokens[: offset - begin] for begin, tokens in begins if begin < offset]
        return offset

    def turn_to(self, prompt: Sequence[int]) -> int:
        """How many of a prompt's ids need not be fed: all it can, and never the last one."""
        return self.come_back(min(common_prefix(self.held, prompt), len(prompt) - 1))

    def feed(self, passes: Sequence[Sequence[int]], places: Sequence[int]) -> None:
        """More tokens are held, and some of their offsets become checkpoints."""
        start = len(self.held)
        for tokens in passes:
            self.passes.append(tokens)
            self.held += tokens
        if self.by_checkpoints:
            for place in places:
                if start <= place <= len(self.held) and place and place not in self.checkpoints:
                    self.checkpoints.append(place)
                    while len(self.checkpoints) > self.most_checkpoints:
                        del self.checkpoints[1 if len(self.checkpoints) > 2 else 0]


def opening(session: ChatSession) -> int:
    """How many ids any conversation under these instructions begins with, up to a question.

    Line ends before the question don't count: they might join with what it begins with.
    """
    asked = rendered(session, [Message.user("QUESTION")], prompt=False)
    return len(engine_of(session).tokenizer.encode(asked[: asked.index("\nQUESTION")]))


class Talk:
    """A session whose every turn is held against what it should feed and think."""

    def __init__(self, engine: MlxEngine, cache: CacheConfig, *, logits: bool = True) -> None:
        self.engine, self.logits = engine, logits
        self.session = ChatSession(engine, instructions="Be brief.", generation=BASE, cache=cache)
        self.expected = Expected(engine, cache)
        self.worst = self.rounded = 0.0

    def turn(self, text: str, *, close_after: int | None = None, look: bool = True) -> None:
        self.take(lambda: self.session.stream(text), close_after=close_after, look=look)

    def take(
        self, begin: Callable[[], Reply], *, close_after: int | None = None, look: bool = True
    ) -> None:
        session, expected, recorder = self.session, self.expected, self.engine.model
        assert isinstance(recorder, Recorder)
        reply = begin()
        ids = list(ids_of(session))
        assert self.engine.tokenizer.decode(ids) == rendered(session, session.history, prompt=True)
        kept = expected.turn_to(ids)
        assert reply.cached_tokens == kept, (reply.cached_tokens, kept)
        recorder.passes.clear()
        with reply:
            list(itertools.islice(reply, close_after))
        fed = list(itertools.chain.from_iterable(recorder.passes))
        # Each token that was told is in the cache, and nothing else was fed. A reply that is closed
        # before its first token was never begun.
        assert fed == ([] if close_after == 0 else [*ids[kept:], *reply.tokens])
        self.fed(len(ids))
        assert ids_of(session) == tuple(expected.held)
        if self.logits and look:
            self.check_logits()

    def went_back(self) -> None:
        """The session took something back: its cache went to a place that it can come back to."""
        reached = context_of(self.session).offset
        assert self.expected.come_back(reached) == reached
        assert ids_of(self.session) == tuple(self.expected.held)

    def fed(self, prompt: int) -> None:
        """What the model was fed is held now: a prompt as long as this, and a reply."""
        recorder: Any = self.engine.model
        self.prompt_length = prompt
        self.expected.feed(recorder.passes, sorted((opening(self.session), prompt)))

    def check_logits(self, probe: int = 65) -> None:
        """The next token's logits are those of a fresh context that was fed the same in one go."""
        context: Any = context_of(self.session)
        ids = self.expected.held
        model = self.engine.model.model
        got = next_logits(context, probe, model=model)
        config = self.session.cache
        if config.max_kv_size is None and config.kv_bits is None:
            fresh = make_prompt_cache(model)
            expected = model(mx.array([[*ids, probe]]), cache=fresh)[0, -1]
        else:
            again = self.engine.context(config)
            pinned = opening(self.session)
            read(again, ids, pinned=pinned)
            expected = next_logits(again, probe, model=model)
        error = relative_error(got, expected)
        if error >= TOLERANCE and config.kv_bits is not None:
            # A number next to the middle between two steps is rounded to either, depending on what
            # else was in its pass. What mlx-lm makes of the same passes is the same.
            replayed = replay(model, self.expected.passes, config)
            expected = model(mx.array([[probe]]), cache=replayed)[0, -1]
            self.rounded = max(self.rounded, error)
            error = relative_error(got, expected)
        self.worst = max(self.worst, error)
        assert error < TOLERANCE, f"relative error {error:.1e} after {len(ids)} tokens"
        assert mx.argmax(got).item() == mx.argmax(expected).item()

    def run(self) -> None:
        """Five turns, with all that can come between them, and one more from the beginning."""
        tokenizer = self.engine.tokenizer
        assert isinstance(tokenizer, EditingTokenizer)
        tokenizer.edits.clear()
        self.turn("hello the world")
        self.turn("tell me more", close_after=2)
        tokenizer.edits["tell me more"] = "tell us all"
        self.turn("why?")
        self.session.instructions = "Be very long."
        self.turn("go on")
        self.turn("and then?", close_after=0)
        self.turn("hm")
        self.session.clear()
        self.expected.clear()
        self.turn("hello")
