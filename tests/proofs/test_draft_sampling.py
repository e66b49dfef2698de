"""Sampling with a draft has the model's own distribution (and a wrong rule would be found out).

The models here are Markov chains: the next token depends on the last one alone, by a known table.
So the transitions of one long reply are independent draws from known distributions.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import KVCache

from kit.contexts import context_for, run
from kit.probe import accept_by, draft_with_the_seed_of_replies
from segue import CacheConfig, GenerationConfig, MlxEngine
from segue.testing import ToyTokenizer

STATES = 6
VOCABULARY = len(ToyTokenizer())
LENGTH = 3000
# The chance that the right rule fails; seeds are fixed, so it does or does not, for good. A wrong
# one is far beyond it.
SIGNIFICANCE = 1e-3


class MarkovModel:
    """Behaves as an mlx-lm model whose logits are a row of a table; its layers count tokens."""

    def __init__(self, table: np.ndarray) -> None:
        self.args = SimpleNamespace(vocab_size=VOCABULARY)
        self.layers = [object()]
        logits = np.full((VOCABULARY, VOCABULARY), -1e9, np.float32)
        logits[:, :STATES] = 0.0
        logits[:STATES, :STATES] = np.log(table)
        self._logits = mx.array(logits)

    def __call__(self, inputs, cache):
        keys = inputs.astype(mx.float32)[:, None, :, None]
        cache[0].update_and_fetch(keys, keys)
        return self._logits[inputs]

    def make_cache(self):
        return [KVCache()]


def random_table(seed: int, sharpness: float = 1.0) -> np.ndarray:
    weights = np.exp(sharpness * np.random.default_rng(seed).normal(size=(STATES, STATES)))
    return weights / weights.sum(axis=1, keepdims=True)


def engine_of(table: np.ndarray) -> MlxEngine:
    return MlxEngine(MarkovModel(table), ToyTokenizer(), name="chain")


TABLE = random_table(1)
MAIN = engine_of(TABLE)
DRAFTS = {
    "another chain": engine_of(random_table(2)),
    "a sharper one": engine_of(random_table(1, sharpness=2.5)),
    "the same chain": engine_of(TABLE),
    "lookup": "prompt-lookup",
}


pytestmark = pytest.mark.usefixtures("never_paused")


def transitions(draft, *, seed: int = 5, **settings) -> tuple[np.ndarray, float]:
    config = GenerationConfig(max_tokens=LENGTH, seed=seed, num_draft_tokens=4, **settings)
    context = context_for(MAIN, CacheConfig(), draft=draft)
    ids = [0, *(step.token for step in run(context, [0], config))]
    counts = np.zeros((STATES, STATES))
    np.add.at(counts, (ids[:-1], ids[1:]), 1)
    proposed, accepted = context.acceptance
    return counts, accepted / max(proposed, 1)


def p_value(counts: np.ndarray, table: np.ndarray) -> float:
    """Of Pearson's chi-square test; the tail by Wilson and Hilferty's normal approximation."""
    expected = counts.sum(axis=1, keepdims=True) * table
    possible = expected > 0
    assert not counts[~possible].any(), "a token was sampled that could not be"
    statistic = (((counts - expected) ** 2)[possible] / expected[possible]).sum()
    freedom = possible.sum() - (counts.sum(axis=1) > 0).sum()
    z = (statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))
    return 0.5 * math.erfc(z / math.sqrt(2 * 2 / (9 * freedom)))


def tempered(table: np.ndarray, temperature: float, top_k: int | None = None) -> np.ndarray:
    weights = table ** (1 / temperature)
    if top_k is not None:
        least = np.sort(weights, axis=1)[:, [-top_k]]
        weights = np.where(weights >= least, weights, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("name", DRAFTS)
@pytest.mark.parametrize("settings", [{"temperature": 1.0}, {"temperature": 0.7, "top_k": 3}])
def test_the_distribution_is_the_models_own(name, settings):
    counts, rate = transitions(DRAFTS[name], **settings)
    assert p_value(counts, tempered(TABLE, **settings)) > SIGNIFICANCE
    assert rate > 0.05
    if name == "the same chain":
        assert rate == 1.0


def accept_always(candidates, drafted, weights, key):
    return drafted


def redraw_from_the_whole(candidates, drafted, weights, key):
    accepting, redrawing = mx.random.split(key, 2)
    wanted, proposed = mx.softmax(candidates[0]), mx.softmax(weights)
    accept = mx.random.uniform(key=accepting) * proposed[drafted] < wanted[drafted]
    return mx.where(accept, drafted, mx.random.categorical(candidates, key=redrawing))


def accept_by_the_model_alone(candidates, drafted, weights, key):
    accepting, redrawing = mx.random.split(key, 2)
    wanted, proposed = mx.softmax(candidates[0]), mx.softmax(weights)
    accept = mx.random.uniform(key=accepting) < wanted[drafted]
    lacking = mx.log(mx.maximum(wanted - proposed, 1e-30))[None]
    return mx.where(accept, drafted, mx.random.categorical(lacking, key=redrawing))


@pytest.mark.parametrize("rule", [accept_always, redraw_from_the_whole, accept_by_the_model_alone])
def test_a_wrong_rule_is_found_out(rule, monkeypatch):
    accept_by(monkeypatch, rule)
    counts, _ = transitions(DRAFTS["another chain"], temperature=1.0)
    assert p_value(counts, TABLE) < SIGNIFICANCE / 1000


def first_transitions(replies: int) -> np.ndarray:
    """From the first token to the second, over replies with a seed each."""
    counts = np.zeros((STATES, STATES))
    for seed in range(replies):
        config = GenerationConfig(max_tokens=2, temperature=1.0, seed=seed, num_draft_tokens=1)
        context = context_for(MAIN, CacheConfig(), draft=DRAFTS["a sharper one"])
        first, second = (step.token for step in run(context, [0], config))
        counts[first, second] += 1
    return counts


def test_the_drafts_draws_are_not_the_models(monkeypatch):
    assert p_value(first_transitions(1000), TABLE) > SIGNIFICANCE
    # Were they the same, the first proposal would depend on the draw of the token before it.
    draft_with_the_seed_of_replies(monkeypatch)
    assert p_value(first_transitions(1000), TABLE) < SIGNIFICANCE / 1000
