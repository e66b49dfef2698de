"""The fewest tokens that a turn can feed: what the headline figure is measured against.

A perfect cache of a conversation holds everything that was ever read or said in it, what was taken
back included, and can go back to any place. A branch is a conversation of its own: it begins with
what was held where it branched off, and what its siblings read is not among that. Given the next
prompt, as the chat template renders it, the cache keeps the longest beginning that it holds, and
the model must be fed the ids behind that; at least one, since it must say what comes next.

Which ids the prompt consists of is settled so: where the text is what was read or said before, the
ids stand that were read or sampled; from the first place on where it differs, the text is encoded
as the tokenizer encodes it. "The first place" is looked for between pieces: a piece is what was
rendered between two replies, or a reply's text without white space at its end, that white space,
or the token that ended the reply. Within the piece that differs, ids that are the same still count
as held.

This is written without any of Segue's code, and knows no engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Piece(NamedTuple):
    """Some text, and the ids that stand for it."""

    text: str
    ids: tuple[int, ...]


class Best(NamedTuple):
    """A turn's prompt in the best case.

    Attributes:
        prompt_tokens: Its length.
        fed_tokens: How many of those must be fed.
    """

    prompt_tokens: int
    fed_tokens: int


class Optimum:
    """A perfect cache's account of one conversation.

    Args:
        encode: From a rendered text to ids; adds nothing in front.
        decode: From ids to text, special tokens included.
        ends: The ids that end a reply.
    """

    def __init__(
        self,
        encode: Callable[[str], Sequence[int]],
        decode: Callable[[Sequence[int]], str],
        ends: frozenset[int],
    ) -> None:
        self._encode = encode
        self._decode = decode
        self._ends = ends
        # Every sequence that was ever read: the pieces of a prompt and of the reply behind it.
        self._read: list[list[Piece]] = []
        self._prompt: list[Piece] = []
        self._marked: list[list[Piece]] = []

    def mark(self) -> None:
        """Branches begin here."""
        self._marked = list(self._read)

    def branch(self) -> None:
        """Begin a new branch where `mark` was called."""
        self._read = list(self._marked)

    def ask(self, text: str) -> Best:
        """The best case for the prompt that renders to this text."""
        best: tuple[int, int, list[Piece]] | None = None
        for pieces in self._read or [[]]:
            kept = _whole_pieces(pieces, text)
            at = sum(len(piece.text) for piece in kept)
            rest = tuple(self._encode(text[at:])) if at < len(text) else ()
            held = [token for piece in pieces[len(kept) :] for token in piece.ids]
            same = _common(rest, held)
            before = sum(len(piece.ids) for piece in kept)
            length = before + len(rest)
            fed = max(length - before - same, 1)
            if best is None or fed < best[1]:
                best = (length, fed, [*kept, Piece(text[at:], rest)] if rest else list(kept))
        assert best is not None
        self._prompt = best[2]
        return Best(best[0], best[1])

    def answer(self, text: str, ids: Sequence[int] | None, *, ended: bool = False) -> None:
        """What was said to the last prompt.

        Args:
            text: The reply, as the history has it.
            ids: The sampled ids, an end included; where a peer does not tell them, what the text
                encodes to, and an end if the model `ended` the reply.
            ended: See `ids`.
        """
        sampled = tuple(ids or ())
        if ids is None:
            sampled = (*self._encode(text), *(sorted(self._ends)[:1] if ended else ()))
        body = sampled[:-1] if sampled and sampled[-1] in self._ends else sampled
        length = len(body)
        while length and not self._decode(body[length - 1 : length]).strip():
            length -= 1
        spoken = self._decode(body[:length])
        parts = [
            Piece(spoken, body[:length]),
            Piece(self._decode(body[length:]), body[length:]),
            Piece(self._decode(sampled[len(body) :]), sampled[len(body) :]),
        ]
        self._read.append([*self._prompt, *(part for part in parts if part.ids)])


def _whole_pieces(pieces: list[Piece], text: str) -> list[Piece]:
    """The pieces that the text begins with."""
    at = 0
    for number, piece in enumerate(pieces):
        if not text.startswith(piece.text, at):
            return pieces[:number]
        at += len(piece.text)
    return pieces


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two sequences begin with alike."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
