"""Small models of many types: mlx-lm's architectures with random weights, and a scripted talk.

The settings of the models come from a file beside the project, in the folder that SEGUE_DATA names.
"""

from __future__ import annotations

import copy
import importlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
from ledgers import common_prefix, rendered
from mlx.utils import tree_map_with_path
from mlx_lm.generate import maybe_quantize_kv_cache
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    KVCache,
    RotatingKVCache,
    make_prompt_cache,
)

from segue import ChatSession, ConfigurationError, GenerationConfig, Message, MlxEngine, Reply
from segue.testing import ToyTokenizer

TOLERANCE = 1e-4
DATA = os.environ.get("SEGUE_DATA")
NO_DATA = "SEGUE_DATA does not name the folder that holds architectures.json"

# The most of each setting, by its name wherever it stands. Heads of 32 and of 64 numbers can be
# quantized.
CAPS: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "model_dim", "block_dim"), 256),
    **dict.fromkeys(
        (
            "intermediate_size",
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "ffn_hidden_size",
            "block_ff_dim",
        ),
        128,
    ),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 4),
    **dict.fromkeys(("head_dim", "kv_channels"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts"), 4),
    **dict.fromkeys(("mamba_d_state", "state_size"), 16),
    "mamba_d_head": 32,
    "n_shared_head": 2,
    "time_step_rank": 8,
    "mamba_expand": 2,
    "n_heads_in_group": 2,
    "index_n_heads": 4,
    "index_head_dim": 32,
    # So that a short talk is longer than these.
    "sliding_window": 16,
    "attention_window_size": 16,
    "loop_window_size": 16,
    "index_topk": 16,
}
# How many layers, where there are more of them than a pattern needs.
LAYERS = ("num_hidden_layers", "n_layer", "num_transformer_layers")
MOST_LAYERS = 4
# What caps by name would break.
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "afm7": {"num_layers": 4, "num_kv_reuse_layers": 2},
    "falcon_h1": {"mamba_n_heads": 4, "mamba_d_ssm": 128},
    "gemma3_text": {"num_hidden_layers": 6},
    "gemma4": {"num_hidden_layers": 10},
    "jamba": {"num_hidden_layers": 4},
    "openelm": {"num_query_heads": [4] * 4, "num_kv_heads": [2] * 4},
    # Heads of 64 numbers, 0.4 of them rotated, would rotate an odd number.
    "phi": {"partial_rotary_factor": 0.5},
    # It writes to the logits of some ids up to this, whether or not there are any.
    "phi3small": {"vocab_size": 100352},
    "olmo3": {"num_hidden_layers": 4},
}


def configurations() -> dict[str, dict[str, Any]]:
    """What the file says: by model type, the module and the settings."""
    if DATA is None:
        return {}
    found: dict[str, dict[str, Any]] = json.loads(
        (Path(DATA) / "architectures.json").read_text(encoding="utf-8")
    )
    return found


def shrink(name: str, settings: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
    """Settings of a model of the same kind that is small enough for a test."""
    layers = next((settings[key] for key in LAYERS if key in settings), None)
    fewer = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            value = shrink(name, value, vocabulary)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            value = [shrink(name, item, vocabulary) for item in value[:MOST_LAYERS]]
        elif key in EXCEPTIONS.get(name, {}):
            value = EXCEPTIONS[name][key]
        elif key in ("vocab_size", "vocab_size_per_layer_input"):
            value = vocabulary
        elif key in LAYERS:
            value = min(value, MOST_LAYERS)
        elif key in CAPS and isinstance(value, int):
            value = min(value, CAPS[key])
        elif isinstance(value, list) and layers is not None and len(value) == layers:
            value = value[: EXCEPTIONS.get(name, {}).get("num_hidden_layers", MOST_LAYERS)]
        fewer[key] = value
    return fewer


def make_model(name: str, vocabulary: int) -> Any:
    """A small model of this type, in float32, whose logits tell tokens apart."""
    settings = configurations()[name]
    module = importlib.import_module(settings["module"])
    args = module.ModelArgs.from_dict(shrink(name, settings["args"], vocabulary))
    mx.random.seed(0)
    model = module.Model(args)
    key = mx.random.key(0)

    def draw(path: str, weight: mx.array) -> mx.array:
        nonlocal key
        if not mx.issubdtype(weight.dtype, mx.floating):
            return weight
        key, drawn = mx.random.split(key)
        noise = mx.random.normal(weight.shape, key=drawn)
        if weight.ndim < 2 or path.endswith(("A_log", "dt_bias", "D", "norm.weight")):
            return weight.astype(mx.float32) + 0.1 * noise
        return noise * (weight.shape[-1] ** -0.5)

    model.update(tree_map_with_path(draw, model.parameters()))
    model.eval()
    mx.eval(model.parameters())
    return model


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


def make_engine(name: str) -> MlxEngine:
    return wrap(make_model(name, len(EditingTokenizer())), name)


def leaves(layers: Sequence[Any]) -> Iterator[Any]:
    """Caches, those in lists one by one."""
    for layer in layers:
        if isinstance(layer, CacheList):
            yield from leaves(layer.caches)
        else:
            yield layer


def kinds(layers: Sequence[Any]) -> dict[str, int]:
    """How many layers have which kind of cache."""

    def named(layer: Any) -> str:
        inner = ", ".join(map(named, getattr(layer, "caches", ())))
        return f"{type(layer).__name__}({inner})" if inner else type(layer).__name__

    return dict(Counter(map(named, layers)))


def relative_error(got: mx.array, expected: mx.array) -> float:
    """Infinite where one is not a number; tokens that are ruled out must be so in both."""
    ruled_out = expected == -mx.inf
    if not mx.array_equal(ruled_out, got == -mx.inf):
        return float("inf")
    got, expected = mx.where(ruled_out, 0, got), mx.where(ruled_out, 0, expected)
    error = (mx.abs(got - expected).max() / mx.abs(expected).max()).item()
    return error if error == error else float("inf")


def chunk_error(model: Any, *, tokens: int = 70) -> float:
    """What mlx-lm itself makes of feeding in parts rather than in one go; no Segue in it."""
    ids = [(7 * place + 3) % 250 for place in range(tokens)]
    whole = model(mx.array([ids]), cache=make_prompt_cache(model))[0, -1]
    worst = 0.0
    for parts in ((30, 69, 70), (5, 11, 40, 41, 42, 43, 70), (12, *range(13, 71))):
        cache = make_prompt_cache(model)
        for start, end in itertools.pairwise((0, *parts)):
            logits = model(mx.array([ids[start:end]]), cache=cache)[0, -1]
            mx.eval(logits, [layer.state for layer in cache])
        worst = max(worst, relative_error(logits, whole))
    return worst


def replay(model: Any, passes: Sequence[Sequence[int]], config: GenerationConfig) -> list[Any]:
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
    mark at or before the place. What is quantized does not come back to before it was.
    """

    def __init__(self, engine: MlxEngine, config: GenerationConfig) -> None:
        own = list(leaves(make_prompt_cache(engine.model)))
        self.recurrent = any(isinstance(layer, ArraysCache) for layer in own)
        self.windows = [layer.max_size for layer in own if isinstance(layer, RotatingKVCache)]
        self.chunks = [layer.chunk_size for layer in own if isinstance(layer, ChunkedKVCache)]
        plain = any(type(layer) is KVCache for layer in make_prompt_cache(engine.model))
        if config.max_kv_size is not None and plain:
            self.windows.append(config.max_kv_size)
        self.whole_before = config.quantized_kv_start if config.kv_bits is not None else 0
        self.most_marks = config.max_marks
        self.clear()

    def clear(self) -> None:
        self.held: list[int] = []
        self.marks: list[int] = []
        # The passes that it was fed in.
        self.passes: list[list[int]] = []

    @property
    def by_marks(self) -> bool:
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
            offset = max((mark for mark in self.marks if mark <= offset), default=0)
        if len(self.held) >= self.whole_before > offset:
            offset = 0
        self.held = self.held[:offset]
        self.marks = [mark for mark in self.marks if mark <= offset and offset]
        begins = zip(self.begins(), self.passes, strict=False)
        self.passes = [tokens[: offset - begin] for begin, tokens in begins if begin < offset]
        return offset

    def turn_to(self, prompt: Sequence[int]) -> int:
        """How many of a prompt's ids need not be fed: all it can, and never the last one."""
        return self.come_back(min(common_prefix(self.held, prompt), len(prompt) - 1))

    def feed(self, passes: Sequence[Sequence[int]], places: Sequence[int]) -> None:
        """More tokens are held, and places among them are marked."""
        start = len(self.held)
        for tokens in passes:
            self.passes.append(tokens)
            self.held += tokens
        if self.by_marks:
            for place in places:
                if start <= place <= len(self.held) and place and place not in self.marks:
                    self.marks.append(place)
                    if len(self.marks) > self.most_marks:
                        del self.marks[1 if len(self.marks) > 2 else 0]


def opening(session: ChatSession) -> int:
    """How many ids any conversation under these instructions begins with, up to a question.

    Line ends before the question don't count: they might join with what it begins with.
    """
    asked = rendered(session, [Message.user("QUESTION")], prompt=False)
    return len(session._engine.tokenizer.encode(asked[: asked.index("\nQUESTION")]))


class Talk:
    """A session whose every turn is held against what it should feed and think."""

    def __init__(self, engine: MlxEngine, config: GenerationConfig, *, logits: bool = True) -> None:
        self.engine, self.logits = engine, logits
        self.session = ChatSession(engine, instructions="Be brief.", generation=config)
        self.expected = Expected(engine, config)
        self.reread = 0
        self.worst = self.rounded = 0.0

    def turn(self, text: str, *, close_after: int | None = None, look: bool = True) -> None:
        self.take(lambda: self.session.stream(text), close_after=close_after, look=look)

    def take(
        self, begin: Callable[[], Reply], *, close_after: int | None = None, look: bool = True
    ) -> None:
        session, expected, recorder = self.session, self.expected, self.engine.model
        assert isinstance(recorder, Recorder)
        reply = begin()
        ids = list(session._cache.ledger.ids)
        assert self.engine.tokenizer.decode(ids) == rendered(session, session.history, prompt=True)
        before = len(expected.held)
        kept = expected.turn_to(ids)
        self.reread += before - kept
        assert reply.cached_tokens == kept, (reply.cached_tokens, kept)
        recorder.passes.clear()
        with reply:
            list(itertools.islice(reply, close_after))
        fed = list(itertools.chain.from_iterable(recorder.passes))
        # Each token that was told is in the cache, and nothing else was fed. A reply that is closed
        # before its first token was never begun.
        assert fed == ([] if close_after == 0 else [*ids[kept:], *reply.tokens])
        self.fed(len(ids))
        assert session._cache.ledger.ids == tuple(expected.held)
        if self.logits and look:
            self.check_logits()

    def went_back(self) -> None:
        """The session took something back: its cache went to a place that it can come back to."""
        context = self.session._cache.context
        reached = 0 if context is None else context.offset
        assert self.expected.come_back(reached) == reached
        assert self.session._cache.ledger.ids == tuple(self.expected.held)

    def fed(self, prompt: int) -> None:
        """What the model was fed is held now: a prompt as long as this, and a reply."""
        recorder: Any = self.engine.model
        self.prompt_length = prompt
        self.expected.feed(recorder.passes, sorted((opening(self.session), prompt)))

    def check_logits(self, probe: int = 65) -> None:
        """The next token's logits are those of a fresh context that was fed the same in one go."""
        context: Any = self.session._cache.context
        ids = self.expected.held
        model = self.engine.model.model
        copied = copy.deepcopy(context._state.layers)
        got = model(mx.array([[probe]]), cache=copied)[0, -1]
        config = self.session.generation
        if config.max_kv_size is None and config.kv_bits is None:
            fresh = make_prompt_cache(model)
            expected = model(mx.array([[*ids, probe]]), cache=fresh)[0, -1]
        else:
            again = self.engine.context(config)
            pinned = opening(self.session)
            list(again.generate(ids, GenerationConfig(max_tokens=0), pinned=pinned))
            expected = model(mx.array([[probe]]), cache=again._state.layers)[0, -1]
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


BASE = GenerationConfig(max_tokens=4)
START = {"quantized_kv_start": 0}
LATER = {"quantized_kv_start": 60}
# By what is asked for: settings, of which the first that the model can do are taken.
SETUPS: dict[str, list[dict[str, Any]]] = {
    "as they are": [{}],
    "`max_kv_size`": [{"max_kv_size": 40}],
    "`kv_bits`": [{"kv_bits": 8, "kv_group_size": size, **START} for size in (32, 64)],
    "`kv_bits`, later": [{"kv_bits": 8, "kv_group_size": size, **LATER} for size in (64, 32)],
}


@dataclass
class Result:
    """What became of one model type.

    Attributes:
        kinds: Its kinds of caches, and how many layers have each.
        by_marks: Whether there are layers that come back to marks alone.
        own_error: How far mlx-lm's logits are from its own, if it is fed in other parts; no Segue
            in it.
        outcomes: By setup: what held, or why it was refused.
        worst: The largest error.
        rounded: The largest error against one pass where quantized numbers were rounded otherwise.
    """

    kinds: dict[str, int]
    by_marks: bool
    own_error: float
    outcomes: dict[str, str] = field(default_factory=dict)
    worst: float = 0.0
    rounded: float = 0.0

    def row(self, name: str) -> str:
        """Its line in the table of the docs."""
        caches = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items())
        back = "marks" if self.by_marks else "any place"
        return f"| {' | '.join([name, caches, back, *self.outcomes.values()])} |"


class CannotRunError(Exception):
    """This machine can't run a model of this type, Segue or not."""


EXACT = "yes"
FED_ONLY = "tokens only"
# What the engine's refusals come from, by what they say; the last one by all that they may say.
REFUSALS = {
    "its layers bring bounded caches": "no plain layer",
    "no layer of that kind": "no plain layer",
    "RotatingKVCache Quantization NYI": "windows",
    "needs to be divisible": "head size",
    "": "model's own attention",
}


def refusal(message: str) -> str:
    """A refusal, in a table's cell."""
    return f"refused: {next(short for text, short in REFUSALS.items() if text in message)}"


def examine(name: str) -> Result:
    """Hold the scripted talk with a model of this type, in all setups.

    Raises:
        CannotRunError: mlx-lm alone can't run it.
        AssertionError: A turn fed other tokens than it should, or the logits were others.
    """
    engine = make_engine(name)
    try:
        own_error = chunk_error(engine.model.model)
    except RuntimeError as error:
        raise CannotRunError(str(error)) from error
    result = Result(
        kinds(make_prompt_cache(engine.model)),
        Expected(engine, BASE).by_marks,
        own_error,
    )
    for setup, choices in SETUPS.items():
        for settings in choices:
            config = replace(BASE, **settings)
            try:
                engine.context(config)
            except ConfigurationError as error:
                result.outcomes.setdefault(setup, refusal(str(error)))
                continue
            # Where mlx-lm's logits depend on the parts it is fed in, no cache can make up for it.
            talk = Talk(engine, config, logits=own_error < TOLERANCE)
            talk.run()
            result.outcomes[setup] = EXACT if talk.logits else FED_ONLY
            result.worst = max(result.worst, talk.worst)
            result.rounded = max(result.rounded, talk.rounded)
            break
    return result
