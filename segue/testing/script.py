"""A model that follows a script, for fakes of every kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

from ..engine import Tokenizer
from ..errors import ConfigurationError, GenerationError
from ..masking.matcher import GrammarCompiler, Matcher
from .tokenizer import ToyTokenizer

NextToken = Callable[[Sequence[int]], int]
"""``ids in the cache -> the likeliest next id``."""
Answer = Callable[[str], str]
"""``the whole prompt, as the chat template wrote it -> the reply``."""

# What ends a string, a list, an object: chosen where a script says what a grammar does not allow.
ENDS = ('"', "]", "}", "0")


class ScriptedModel:
    """A model of several layers whose every forward pass can be scripted.

    Examples:
        >>> import segue
        >>> from segue.testing import FakeEngine
        >>> model = ScriptedModel(answer=lambda prompt: "Yes." if "ready" in prompt else "No.")
        >>> segue.ChatSession(FakeEngine(model)).respond("Are you ready?")
        'Yes.'

    Args:
        script: What it says: text (or ids) for each reply in turn, an end-of-reply token after
            each; or a rule from the ids in the cache to the next id. When all replies were said,
            the next one is a GenerationError.
        answer: A function from the whole prompt, as the template wrote it, to the reply; instead
            of a script.
        tokenizer: Encodes the script's text; by default a `ToyTokenizer`.
        layers: How many layers its cache has.
        fail_at: Fail in these forward passes (the first is 1) ...
        failure: ... with this exception; by default a `GenerationError`.

    Raises:
        ConfigurationError: if the script is a single string, or there is an answer as well.
    """

    def __init__(
        self,
        script: Iterable[str | Sequence[int]] | NextToken = (),
        *,
        answer: Answer | None = None,
        tokenizer: Tokenizer | None = None,
        layers: int = 3,
        fail_at: Iterable[int] = (),
        failure: BaseException | None = None,
    ) -> None:
        if isinstance(script, str):
            raise ConfigurationError(
                f"script must be a list of replies, not {script!r}.", remedy=f"Pass [{script!r}]."
            )
        if answer is not None and script != ():
            raise ConfigurationError(
                "script and answer must not be given together.", remedy="Leave one of them out."
            )
        self.tokenizer = tokenizer or ToyTokenizer()
        self.layers = layers
        self.fail_at = set(fail_at)
        self.failure = failure
        self.calls = 0
        """Forward passes so far."""
        self.fed: list[tuple[int, ...]] = []
        """The ids that each of them was fed."""
        self._rule = script if callable(script) else None
        self._answer = answer
        self._replies = [] if callable(script) else [self._ids(reply) for reply in script]
        self._said = 0

    def __repr__(self) -> str:
        if self._rule is not None:
            says = "says what a rule says"
        elif self._answer is not None:
            says = "answers"
        else:
            says = f"{self._said} replies said, {len(self._replies)} left"
        return f"<ScriptedModel: {says}>"

    def begin_reply(self) -> NextToken:
        """Return the rule for the next reply: the caller's own, or the next part of the script.

        Raises:
            GenerationError: if the whole script was said.
        """
        if self._rule is not None:
            return self._rule
        if self._answer is not None:
            return self._answered(self._answer)
        if not self._replies:
            raise GenerationError(
                f"The fake model's script had {self._said or 'no'} "
                f"{'reply' if self._said == 1 else 'replies'}, and is asked for one more.",
                remedy="Pass one for each reply, FakeEngine(['Hello!', 'Fine.']), or "
                "FakeEngine(answer=...).",
            )
        self._said += 1
        return self._saying(self._replies.pop(0))

    def _answered(self, answer: Answer) -> NextToken:
        say: NextToken | None = None

        def next_token(ids: Sequence[int]) -> int:
            nonlocal say
            if say is None:
                say = self._saying(self._ids(answer(self.tokenizer.decode(ids))))
            return say(ids)

        return next_token

    def _saying(self, reply: Sequence[int]) -> NextToken:
        ids, end = iter(reply), min(self.tokenizer.eos_token_ids)
        return lambda _: next(ids, end)

    @classmethod
    def of(
        cls,
        script: Iterable[str | Sequence[int]] | NextToken | ScriptedModel,
        *,
        answer: Answer | None,
        tokenizer: Tokenizer | None,
        fail_at: Iterable[int],
        failure: BaseException | None,
    ) -> ScriptedModel:
        """Return an engine's model: one that was given, or a new one.

        Raises:
            ConfigurationError: if a model was given, and what else it should be.
        """
        if not isinstance(script, ScriptedModel):
            return cls(script, answer=answer, tokenizer=tokenizer, fail_at=fail_at, failure=failure)
        if (answer, tokenizer, tuple(fail_at), failure) != (None, None, (), None):
            raise ConfigurationError(
                "A ScriptedModel must bring its own answer, tokenizer, fail_at and failure.",
                remedy="Pass them to ScriptedModel(...).",
            )
        return script

    @cached_property
    def grammars(self) -> GrammarCompiler:
        """The grammars that replies may be held to; needs llguidance."""
        known = self.tokenizer.vocabulary.values()
        return GrammarCompiler(self.tokenizer, lambda: max(known) + 1)

    def allowed(self, token: int, matcher: Matcher) -> int:
        """Return a token that a grammar allows: the script's own, or one that ends the reply."""
        mask = matcher.mask()
        if mask is None:
            return token
        ends = [self.tokenizer.encode(text)[0] for text in ENDS]
        for attempt in (token, *sorted(self.tokenizer.eos_token_ids), *ends):
            if mask[attempt // 8] >> attempt % 8 & 1:
                return attempt
        byte = next(index for index, bits in enumerate(mask) if bits)
        return 8 * byte + (mask[byte] & -mask[byte]).bit_length() - 1

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
