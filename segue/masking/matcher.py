"""Grammars at work: which tokens may come next, for engines that mask logits.

How it works: llguidance reads the grammar and follows a reply token by token. Before each token it
returns a mask, with one bit per token of the vocabulary; where the grammar leaves no choice, it
returns the tokens that must come, in the tokenizer's own spelling. Any engine can use both: an
engine with logits excludes what the mask does, a fake chooses among what it allows.

Reading the vocabulary takes a second or more, so an engine has one `GrammarCompiler`, which reads
it when the first grammar comes. Compiling a grammar takes milliseconds; the latest ones are kept,
and each reply works on a copy.

*Tokens in rules.* llguidance tells special tokens from text, and so do its grammars: free text
holds none of them. Whether a tag is a token is for the vocabulary to say, so two forms in rules
stand for either, and are written out here:

- ``%token "</think>"``: that text, the tokens in it included;
- ``name: %until "</think>"``: a rule for any text up to and with the first of these.

What does not work:

- Relying on exceptions: llguidance never raises, it becomes a matcher that allows nothing. So
  each step asks for errors.
- A tokenizer that llguidance can't read: see `_read`.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ..engine import Tokenizer
from ..errors import ConfigurationError, GrammarError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# How many compiled grammars an engine keeps.
MOST_COMPILED = 32
# The most tokens that one pass may be forced to read.
MOST_FORCED = 64

_STRING = r'("(?:[^"\\]|\\.)*")'
_TOKEN = re.compile(rf"%token {_STRING}")
_UNTIL = re.compile(rf"(?m)^(\w+): %until {_STRING}$")


@runtime_checkable
class HasTokenizerJson(Protocol):
    """A tokenizer that Hugging Face's library can write out."""

    @property
    def tokenizer_json(self) -> str | None:
        """The tokenizer as ``tokenizer.json`` has it; ``None`` if it isn't of that kind."""
        ...


@runtime_checkable
class SpellsBytes(Protocol):
    """A tokenizer that knows the bytes of each token."""

    def piece(self, token: int) -> bytes:
        """Return the bytes of a token."""
        ...


class Matcher:
    """A grammar that follows one reply.

    Args:
        matcher: llguidance's.
        ends: The ids that end a reply.
        ended: True if one of them was consumed.
    """

    def __init__(self, matcher: LLMatcher, ends: AbstractSet[int], *, ended: bool = False) -> None:
        self._matcher = matcher
        self._ends = ends
        self.ended = ended
        """True once a token that ends replies was consumed: nothing is constrained after it."""

    def consume(self, token: int) -> None:
        """Add the token that came next.

        Raises:
            GrammarError: if the grammar does not allow it.
        """
        if self.ended:
            return
        if token in self._ends:
            self.ended = True
        else:
            self._matcher.consume_token(token)
            self._check()

    def mask(self) -> bytes | None:
        """Return which tokens may come next: a bit for each id, the lowest bit of a byte first.

        Returns:
            The mask, as long as the vocabulary; ``None`` once the reply has ended.

        Raises:
            GrammarError: if the grammar became too large to follow.
        """
        if self.ended:
            return None
        mask = bytes(self._matcher.compute_bitmask())
        self._check()
        return mask

    def forced(self, most: int = MOST_FORCED) -> list[int]:
        """Return the tokens that must come next, at most so many; none where there is a choice."""
        if most <= 0 or self.ended:
            return []
        return list(self._matcher.compute_ff_tokens()[: min(most, MOST_FORCED)])

    def allowed(self, tokens: Sequence[int]) -> int:
        """Return how many of these tokens may come next, in this order."""
        return 0 if self.ended else int(self._matcher.validate_tokens(list(tokens)))

    def fork(self) -> Matcher:
        """Return another matcher of the same reply so far."""
        return Matcher(self._matcher.deep_copy(), self._ends, ended=self.ended)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(
                f"The grammar can't be followed any further ({_first_line(self._matcher)}).",
                remedy="Use a simpler grammar or schema.",
            )


class GrammarCompiler:
    """Compiles grammars for one model.

    Args:
        tokenizer: The model's tokenizer.
        width: Returns how many logits the model has.
    """

    def __init__(self, tokenizer: Tokenizer, width: Callable[[], int]) -> None:
        self._tokenizer = tokenizer
        self._width = width
        self._vocabulary: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def matcher(self, grammar: str) -> Matcher:
        """Return a matcher for a new reply.

        Args:
            grammar: Rules in llguidance's dialect of Lark; the reply must match ``start``.

        Raises:
            ConfigurationError: if the grammar is wrong, or the tokenizer can't be constrained.
        """
        compiled = self._compiled.get(grammar)
        if compiled is None:
            compiled = self._compile(grammar)
            self._compiled[grammar] = compiled
            if len(self._compiled) > MOST_COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return Matcher(compiled.deep_copy(), self._tokenizer.eos_token_ids)

    def _compile(self, grammar: str) -> LLMatcher:
        from llguidance import LLMatcher

        if self._vocabulary is None:
            self._vocabulary = _read(self._tokenizer, self._width())
        rules = _UNTIL.sub(self._until, grammar)
        rules = _TOKEN.sub(lambda found: self._token(json.loads(found[1])), rules)
        matcher = LLMatcher(self._vocabulary, LLMatcher.grammar_from_lark(rules), log_level=0)
        if matcher.is_error():
            raise ConfigurationError(
                f"The grammar must be one that llguidance reads, and it isn't: "
                f"{_first_line(matcher)}.",
                remedy="Correct the grammar, or leave out what is not supported.",
            )
        return matcher

    def _until(self, found: re.Match[str]) -> str:
        name, text = found[1], json.loads(found[2])
        if (special := self._special(text)) is not None:
            return f"{name}: /(.|\\n)*/ {special}"
        return f"{name}[lazy]: /(.|\\n)*{_escaped(text)}/"

    def _token(self, text: str) -> str:
        """Return text as rules have it, tokens in it by their names."""
        assert self._vocabulary is not None
        pieces, plain = [], []
        for token in self._vocabulary.tokenize_str(text, parse_special=True):
            if not self._vocabulary.is_special_token(token):
                plain.append(token)
                continue
            pieces += [self._literal(plain), f"<[{token}]>"]
            plain = []
        return " ".join(filter(None, [*pieces, self._literal(plain)]))

    def _literal(self, ids: list[int]) -> str:
        assert self._vocabulary is not None
        return json.dumps(self._vocabulary.decode_str(ids), ensure_ascii=False) if ids else ""

    def _special(self, text: str) -> str | None:
        """Return a special token as rules name it; ``None`` if the text isn't one."""
        assert self._vocabulary is not None
        ids = self._vocabulary.tokenize_str(text, parse_special=True)
        if len(ids) == 1 and self._vocabulary.is_special_token(ids[0]):
            return f"<[{ids[0]}]>"
        return None


def _escaped(text: str) -> str:
    """Return text as a regular expression has it, between slashes."""
    return re.sub(r"([.^$*+?()\[\]{}|/\\])", r"\\\1", text).replace("\n", r"\n")


def _read(tokenizer: Tokenizer, width: int) -> LLTokenizer:
    """Return a vocabulary as llguidance has it.

    Raises:
        ConfigurationError: if it can't be read.
    """
    from llguidance import LLTokenizer, TokenizerWrapper

    ends = sorted(tokenizer.eos_token_ids)
    text = tokenizer.tokenizer_json if isinstance(tokenizer, HasTokenizerJson) else None
    try:
        if text is not None:
            return LLTokenizer(text, n_vocab=width, eos_token=ends)
        if isinstance(tokenizer, SpellsBytes):
            return LLTokenizer(
                TokenizerWrapper(_Pieces(tokenizer, tokenizer, width)), eos_token=ends
            )
    # llguidance raises plain ValueErrors, and panics become others.
    except Exception as error:
        raise ConfigurationError(
            f"The vocabulary of this tokenizer can't be read for grammars ({error}).",
            remedy="Leave grammars, schemas and tools out with this model.",
        ) from error
    raise ConfigurationError(
        "This tokenizer does not show its tokens, so replies can't be held to a grammar.",
        remedy="Give it a property `tokenizer_json`, or a method `piece(token) -> bytes`.",
    )


class _Pieces:
    """A tokenizer in the form that llguidance asks for."""

    def __init__(self, tokenizer: Tokenizer, spelling: SpellsBytes, width: int) -> None:
        self.eos_token_id = min(tokenizer.eos_token_ids)
        self.bos_token_id = None
        known = set(tokenizer.vocabulary.values())
        self.tokens = [spelling.piece(token) if token in known else b"" for token in range(width)]
        self.special_token_ids = sorted(tokenizer.eos_token_ids)
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text))


def _first_line(matcher: Any) -> str:
    lines = str(matcher.get_error()).splitlines()
    return lines[0] if lines else "unknown"
