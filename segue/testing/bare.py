"""A fake engine that is the core alone: it owns its cache, and only reports what it reused.

This is how a server looks to a session: prompts go in whole, the server looks for the longest
prefix that it has computed before, in blocks, and reports afterwards how much of the prompt that
was. A context of such an engine has nothing to rewind, fork or store; it remembers what it sent.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence

from ..config import CacheConfig
from ..engine import Request, Step, Tokenizer
from ..errors import UnsupportedFeatureError
from ..interrupt import deliver_interrupt
from ..ledger import common_prefix
from .script import Answer, NextToken, ScriptedModel


class BareContext:
    """A conversation with a `BareEngine`; implements `segue.engine.Context`, and nothing else.

    Args:
        engine: The engine.
    """

    def __init__(self, engine: BareEngine) -> None:
        self._engine = engine
        self._sent: list[int] = []
        self.reused: int | None = None
        """The report of the latest request, once its first token is there."""

    @property
    def offset(self) -> int:
        """How many tokens the engine was sent, or sent back, and should still have."""
        return len(self._sent)

    def rewind(self, offset: int) -> int:
        """See `segue.engine.Context.rewind`: the next request begins with fewer of these tokens."""
        del self._sent[max(offset, 0) :]
        return self.offset

    def close(self) -> None:
        """See `segue.engine.Context.close`."""
        self._sent.clear()

    def run(self, request: Request) -> Generator[Step, None, None]:
        """See `segue.engine.Context.run`; replies end at the first of `Request.ends`."""
        if tuple(request.config.logits_processors):
            raise UnsupportedFeatureError(
                self._engine.name, "logits processors", remedy="Leave logits_processors out."
            )
        return self._run(request)

    def _run(self, request: Request) -> Generator[Step, None, None]:
        model, ids = self._engine.model, list(request.ids)
        self.reused = None
        assert self._sent == ids[: self.offset], "the ledger is wrong"
        assert len(ids) > self.offset, "the model must be fed at least one token"
        total = len(ids) - self.offset
        if request.progress is not None:
            request.progress(0, total)
        deliver_interrupt()
        reused = self._engine.cached(ids)
        layers: list[list[int]] = [[] for _ in range(model.layers)]
        self._compute(layers, ids, ids[reused:])
        self.reused = reused
        if request.progress is not None:
            request.progress(total, total)
        deliver_interrupt()
        say = model.begin_reply() if request.config.max_tokens else None
        for _ in range(request.config.max_tokens):
            assert say is not None
            token = say(self._sent)
            self._compute(layers, [*self._sent, token], [token])
            yield Step(token)
            if token in request.ends:
                return

    def _compute(self, layers: list[list[int]], ids: Sequence[int], new: Sequence[int]) -> None:
        try:
            self._engine.model.forward(layers, new)
        except BaseException:
            self._sent.clear()
            raise
        self._sent = list(ids)
        self._engine.compute(ids)


class BareEngine:
    """An engine that owns its cache; implements `segue.engine.Engine`, and nothing else.

    Examples:
        >>> import segue
        >>> session = segue.ChatSession(BareEngine(["Hello!"]))
        >>> session.respond("Hi")
        'Hello!'

    Args:
        script: See `ScriptedModel`; or one.
        answer: See `ScriptedModel`.
        tokenizer: By default a `ToyTokenizer`.
        block: The engine reuses whole blocks of so many tokens.
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
        block: int = 4,
        fail_at: Iterable[int] = (),
        failure: BaseException | None = None,
        context_length: int | None = None,
    ) -> None:
        self.model = ScriptedModel.of(
            script, answer=answer, tokenizer=tokenizer, fail_at=fail_at, failure=failure
        )
        """The model; its `fed` has what was computed of each prompt."""
        self.tokenizer = self.model.tokenizer
        """Its tokenizer."""
        self.context_length = context_length
        """See `segue.engine.Engine.context_length`."""
        self.name = self.source = self.fingerprint = "bare"
        """The same for all bare engines, unless they are set."""
        self._block = block
        self._computed: list[tuple[int, ...]] = []

    def __repr__(self) -> str:
        return f"<BareEngine: {self.model!r}>"

    def context(self, cache: CacheConfig) -> BareContext:
        """See `segue.engine.Engine.context`; a cache that it owns has no settings.

        Raises:
            UnsupportedFeatureError: if the settings are not the defaults.
        """
        if cache != CacheConfig():
            raise UnsupportedFeatureError(
                self.name, "settings of the KV cache", remedy="Leave cache at CacheConfig()."
            )
        return BareContext(self)

    def cached(self, ids: Sequence[int]) -> int:
        """Return how many leading ids of a prompt need not be computed again."""
        longest = max((common_prefix(tuple(ids), known) for known in self._computed), default=0)
        # Something must be computed, to say what comes next.
        return min(longest, len(ids) - 1) // self._block * self._block

    def compute(self, ids: Sequence[int]) -> None:
        """Remember ids, which were computed just now."""
        self._computed = [known for known in self._computed if known != tuple(ids[: len(known)])]
        self._computed.append(tuple(ids))

    def forget(self) -> None:
        """Drop everything that was computed, as a server may at any time."""
        self._computed.clear()
