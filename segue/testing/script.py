"""A model that follows a script, for fakes of every kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ..engine import Tokenizer
from ..errors import GenerationError
from .tokenizer import ToyTokenizer

NextToken = Callable[[Sequence[int]], int]
"""``ids in the cache -> the likeliest next id``."""


class ScriptedModel:
    """A model of several layers whose every forward pass can be scripted.

    Args:
        script: What it says: text (or ids) for each reply in turn, an end-of-reply token after
            each; or a rule from the ids in the cache to the next id. A script that is used up
            ends every reply at once.
        tokenizer: Encodes the script's text; by default a `ToyTokenizer`.
        layers: How many layers its cache has.
        fail_at: Fail in these forward passes (the first is 1) ...
        failure: ... with this exception; by default a `GenerationError`.
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
        """Forward passes so far."""
        self.fed: list[tuple[int, ...]] = []
        """The ids that each of them was fed."""
        self._rule = script if callable(script) else None
        self._replies = [] if callable(script) else [self._ids(reply) for reply in script]

    def begin_reply(self) -> NextToken:
        """Return the rule for the next reply: the caller's own, or the next part of the script."""
        if self._rule is not None:
            return self._rule
        ids = iter(self._replies.pop(0) if self._replies else ())
        end = min(self.tokenizer.eos_token_ids)
        return lambda _: next(ids, end)

    def forward(self, cache: list[list[int]], ids: Sequence[int]) -> None:
        """Feed ids to every layer of a cache; a scripted failure stops half way, as real ones do.

        Raises:
            GenerationError: if this pass is one of `fail_at`; or `failure` itself.
        """
        self.calls += 1
        self.fed.append(tuple(ids))
        failing = self.calls in self.fail_at
        for layer in cache[: self.layers // 2] if failing else cache:
            layer.extend(ids)
        if failing:
            raise self.failure or GenerationError(
                f"The fake model failed in forward pass {self.calls}, as its script asks.",
                remedy="Try again: it fails in that pass alone.",
            )

    def _ids(self, reply: str | Sequence[int]) -> list[int]:
        return list(self.tokenizer.encode(reply) if isinstance(reply, str) else reply)
