"""Contents as text: what people and tools say never becomes a control token by itself.

A chat template sees strings alone, and so does a tokenizer: ``<|im_end|>`` in a message is the end
of the message, whoever typed it. So contents are *marked* before they are rendered: a noncharacter
(`MARK`) is put inside whatever in them may be, or become, a part of a control token. Templates pass
it on like any other character. What they render is then *settled*: each control token's text that
has a mark inside is plain text, and gets one mark after its first character; all other marks go.
Settled text is cut at its marks to be encoded, so that no tokenizer sees a control token there.

The ledger's text is settled, too (`Controls.settle_ids`), so that text which spells a control token
never passes for the token, nor the token for text.

Where marks go, in what people and tools say:

- after each character that begins a control token: also where no token is spelled, because
  templates cut words out of contents, and join the rest (Nemotron's ``/think``);
- inside each control token's text after the second character, if it has more: before that, what
  templates look for in contents (``</think>``) would lose its first character alone;
- inside the beginning of a content that is the end of a control token, or a piece of one:
  templates write ``<`` and ``>`` around names.

In replies that the model gave, its own control tokens are left alone (reasoning tags, those around
calls). All others are marked, wherever two characters begin one: a reply that ended can't hold
them, but it may spell them.

What does not work:

- Encoding each content by itself. Tokens may join contents to what the template writes.
- Marking ends and beginnings alone. Templates trim, cut and join.
- Tokens of one character: there is nothing inside them. They are left as they are.
- Marks in strings that templates compare: the words of JSON schemas, roles and types are exempt,
  unless they spell a whole token.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

from ...ledger import MARK, TokenLedger
from ...tokenizer import ControlTokens, Tokenizer

# Stands for a noncharacter that a content holds itself.
REPLACEMENT = "\ufffd"
# The mark as templates write it that escape what can't be seen.
ESCAPED = "\\ufdd0"
# How many contents to remember, so that a history is not looked through again in each turn.
REMEMBERED = 1024
# Fields of messages that templates compare, and nobody writes freely.
COMPARED = ("role", "type")
# The words of JSON schemas, which templates compare: never marked as pieces of a token.
_WORDS = """
    additionalProperties allOf any anyOf array boolean code_interpreter const content default
    description enum examples float format function id int integer items list name null number
    object oneOf parameters properties required return returns schema strict string title tool tools
    type
"""
SCHEMA_WORDS = frozenset(_WORDS.split())
# Arguments of templates that are written by others: each text in them is a content.
WRITTEN_BY_OTHERS = ("tools", "documents")


class Controls:
    """A tokenizer's control tokens, and text that may spell them.

    Args:
        tokens: The control tokens and their ids; those of one character are left out.
        in_replies: Those that a reply may hold.
        tags: Other texts that a reply may hold.
    """

    def __init__(
        self,
        tokens: Mapping[str, int],
        in_replies: AbstractSet[str] = frozenset(),
        tags: Sequence[str] = (),
    ) -> None:
        self.tokens = {text: index for text, index in tokens.items() if len(text) > 1}
        self.ids = frozenset(self.tokens.values())
        """The ids of the control tokens."""
        self._said = _Finder(self.tokens)
        self._replied = _Finder([text for text in self.tokens if text not in in_replies])
        harmless = (tag for tag in tags if self._replied.search(tag, 0) is None)
        self._allowed = _Finder(text for text in {*in_replies, *harmless} if len(text) > 1)
        self._mark_said: Callable[..., str] = lru_cache(REMEMBERED)(self._marked_said)
        self.mark_reply: Callable[[str], str] = lru_cache(REMEMBERED)(self._marked_reply)
        """Returns the marked text of a reply."""

    @staticmethod
    def of(tokenizer: Tokenizer) -> Controls | None:
        """Return a tokenizer's control tokens; ``None`` if it can't tell them from text."""
        try:
            if tokenizer not in _known:
                _known[tokenizer] = _made(tokenizer)
            return _known[tokenizer]
        except TypeError:  # it has no hash, or no weak references
            return _made(tokenizer)

    # Before a template is rendered

    def mark_message(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Return a message, as `Message.to_template` made it, with its contents marked."""
        replied = entry.get("role") == "assistant"
        return {
            name: value
            if name in COMPARED
            else self._mark(
                value,
                self.mark_reply
                if replied and name not in ("tool_calls", "name", "tool_call_id")
                else self._mark_said,
            )
            for name, value in entry.items()
        }

    def mark_arguments(self, template_kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return a template's arguments with the texts marked that others may have written.

        Texts at the top are left alone: they are what a program says to the template.
        """

        def mark(text: str) -> str:
            return self._mark_said(text, exempt=text in SCHEMA_WORDS)

        def mark_whole(text: str) -> str:
            return self._mark_said(text, exempt=True)

        return {
            name: value
            if isinstance(value, str)
            else self._mark(value, mark if name in WRITTEN_BY_OTHERS else mark_whole, keys=True)
            for name, value in template_kwargs.items()
        }

    def _mark(self, value: Any, mark: Callable[[str], str], *, keys: bool = False) -> Any:
        """Mark every text in a value; the keys of mappings, too, if they are free."""
        if isinstance(value, str):
            return mark(value)
        if isinstance(value, Mapping):
            return {
                mark(key) if keys and isinstance(key, str) else key: item
                if key in COMPARED and not keys
                else self._mark(item, mark, keys=keys or key == "arguments")
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            items = [self._mark(item, mark, keys=keys) for item in value]
            return items if isinstance(value, list) else tuple(items)
        return value

    def _marked_said(self, text: str, *, exempt: bool = False) -> str:
        text = text.replace(MARK, REPLACEMENT)
        places = {match.end() for match in self._said.first.finditer(text)}
        start = 0
        while (found := self._said.search(text, start)) is not None:
            start = found[0] + 1
            places.discard(start)
            places.add(found[0] + _inside(found[1]))
        if not exempt:
            places |= self._said.edges(text)
        return _with_marks(text, places)

    def _marked_reply(self, text: str) -> str:
        text = text.replace(MARK, REPLACEMENT)
        places = set()
        for start in self._replied.openings(text):
            if not self._allowed.at(text, start):
                places.add(start + _inside(self._replied.at(text, start)))
        return _with_marks(text, places | self._replied.edges(text))

    # After it was rendered

    def settle(self, text: str) -> str:
        """Return rendered text with one mark in each control token's text that is plain."""
        # Contents that spell the escape themselves have a mark inside it.
        text = text.replace(ESCAPED, MARK)
        if MARK not in text:
            return text
        pieces = text.split(MARK)
        marks, length = [], 0
        for piece in pieces[:-1]:
            length += len(piece)
            marks.append(length)

        def marked(start: int, end: int) -> bool:
            after = bisect_right(marks, start)
            return after < len(marks) and marks[after] < end

        return self._settled("".join(pieces), marked)

    def settle_ids(
        self, text: str, ids: Sequence[int], spell: Callable[[int, int], str | None]
    ) -> str | None:
        """Return text that ids spell as settled text; ``None`` if it can't be separated.

        Args:
            text: What the ids spell.
            ids: The ids.
            spell: Returns what a slice of the ids spells, by its start and end.
        """
        if MARK in text:  # sampled, which no prompt will repeat
            return None
        found = [self.tokens[token] for token in self.tokens_in(text)]
        if found == [index for index in ids if index in self.ids]:
            return text
        # Some of them are spelled by other ids.
        spans, length, start = [], 0, 0
        for position, index in enumerate([*ids, None]):
            if index is not None and index not in self.ids:
                continue
            if start < position:
                run = spell(start, position)
                if run is None:
                    return None
                length += len(run)
            if index is not None:
                token = spell(position, position + 1) or ""
                spans.append((length, length + len(token)))
                length += len(token)
            start = position + 1
        if length != len(text):
            return None
        return self._settled(
            text, lambda start, end: not any(a <= start and end <= b for a, b in spans)
        )

    def settle_ledger(
        self, ledger: TokenLedger, spell: Callable[[int, int], str | None]
    ) -> TokenLedger:
        """Return a ledger that was saved, whose text is without marks, with settled text.

        Where the text isn't what the ids spell, the ledger has no text from there on.

        Args:
            ledger: The ledger.
            spell: Returns what a slice of its ids spells, by its start and end.
        """
        settled = TokenLedger()
        for before, seam in pairwise(ledger.seams):
            text = ledger.text[before.chars : seam.chars]
            at = before.ids
            own: str | None = self.settle_ids(
                text,
                ledger.ids[at : seam.ids],
                lambda start, end, at=at: spell(at + start, at + end),  # type: ignore[misc]
            )
            settled = settled.extend(ledger.ids[at : seam.ids], own)
        return settled.extend(ledger.ids[len(settled.ids) :], None)

    def _settled(self, text: str, marked: Callable[[int, int], bool]) -> str:
        pieces, written, start = [], 0, 0
        while (found := self._said.search(text, start)) is not None:
            start, tokens = found
            real = next((t for t in tokens if not marked(start, start + len(t))), None)
            if real is not None:
                start += len(real)
                continue
            start += 1
            pieces.append(text[written:start])
            written = start
        return MARK.join([*pieces, text[written:]])

    def tokens_in(self, text: str) -> list[str]:
        """Return the control tokens in text that is settled, in their order."""
        tokens, start = [], 0
        while (found := self._said.search(text, start)) is not None:
            start = found[0] + len(found[1][0])
            tokens.append(found[1][0])
        return tokens

    def start_across(self, text: str, offset: int) -> int | None:
        """Return where a control token begins that goes on beyond an offset; ``None`` if none does.

        Args:
            text: Settled text.
            offset: The offset.
        """
        for start in range(max(0, offset - self._said.longest + 1), offset):
            if any(start + len(token) > offset for token in self._said.at(text, start)):
                return start
        return None


class _Finder:
    """Finds some texts, and pieces of them, in others."""

    def __init__(self, texts: Iterable[str]) -> None:
        longest_first = sorted(texts, key=len, reverse=True)
        self.longest = len(longest_first[0]) if longest_first else 0
        # Vocabularies may have thousands: they are looked up by their lengths, never one by one.
        self._texts = frozenset(longest_first)
        self._lengths: dict[str, list[int]] = {}
        for text in longest_first:
            lengths = self._lengths.setdefault(text[:2], [])
            if not lengths or lengths[-1] != len(text):
                lengths.append(len(text))
        # Letters and white space begin too much else.
        first = {text[0] for text in longest_first if not (text[0].isalnum() or text[0].isspace())}
        # Some renderers read the arguments of a call out of their JSON.
        escaped = "|".join(f"\\\\u(?i:{ord(character):04x})" for character in sorted(first))
        self.first = re.compile("|".join(filter(None, [_any_of(first).pattern, escaped])))
        self._opening = _any_of(self._lengths)
        self._ends = {text[cut:] for text in longest_first for cut in range(1, len(text))}
        self._starts = {text[:cut] for text in longest_first for cut in range(1, len(text))}
        self._inside = "\0".join(text[1:-1] for text in longest_first)

    def at(self, text: str, start: int) -> list[str]:
        """Return those of the texts that begin at an offset, longest first."""
        lengths, texts = self._lengths.get(text[start : start + 2], ()), self._texts
        return [piece for length in lengths if (piece := text[start : start + length]) in texts]

    def search(self, text: str, start: int) -> tuple[int, list[str]] | None:
        """Return the first offset where any of the texts begin, and these, longest first."""
        while (match := self._opening.search(text, start)) is not None:
            start = match.start()
            if here := self.at(text, start):
                return start, here
            start += 1
        return None

    def openings(self, text: str) -> Iterator[int]:
        """Yield each offset where two characters may begin one of the texts."""
        match = self._opening.search(text)
        while match is not None:
            yield match.start()
            match = self._opening.search(text, match.start() + 1)

    def edges(self, text: str) -> set[int]:
        """Return places for marks where other text may complete one of the texts."""
        places = set()
        end = len(text.rstrip())
        begin = len(text) - len(text.lstrip())
        for start in {0, begin}:
            for length in range(1, min(self.longest, len(text) - start + 1)):
                if text[start : start + length] in self._ends:
                    places.add(start + length - 1)
        for stop in {len(text), end}:
            for length in range(1, min(self.longest, stop + 1)):
                if text[stop - length : stop] in self._starts:
                    places.add(stop - length + 1)
        if begin < end <= begin + self.longest and text[begin:end] in self._inside:
            places.add(end - 1)
        return places


def _inside(tokens: Sequence[str]) -> int:
    """Return where a mark goes in any of some tokens that begin at one offset."""
    return 2 if tokens and len(tokens[-1]) > 2 else 1


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, texts)) or r"(?!)")


def _with_marks(text: str, places: set[int]) -> str:
    if ESCAPED in text:
        places = places | {match.end() - 1 for match in re.finditer(re.escape(ESCAPED), text)}
    if not places:
        return text
    cuts = [0, *sorted(places), len(text)]
    return MARK.join(text[a:b] for a, b in pairwise(cuts))


# What each tokenizer's control tokens are; many sessions share one.
_known: WeakKeyDictionary[Tokenizer, Controls | None] = WeakKeyDictionary()


def _made(tokenizer: Tokenizer) -> Controls | None:
    if not isinstance(tokenizer, ControlTokens):
        return None
    controls = Controls(
        tokenizer.control_tokens, tokenizer.reply_tokens, tokenizer.reasoning_tags or ()
    )
    return controls if controls.tokens else None
