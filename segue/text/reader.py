"""Tokens to text, and text to what kind of text it is: the reading of one reply.

A reply's tokens go through three stages, each of which may withhold text until it is decided::

    token -> detokenizer -> stop strings -> tags -> pieces of text
             (half a        (may become     (may become
              character)     a stop string)  a tag)

`ReplyReader` holds the three together, and decides when and why a reply is over. It has no device,
clock or signal: whoever drives a reply (`Reply`, a scheduler) pushes tokens and passes the pieces
on. When a reply is cut short, `close` adds what is withheld to the reply's text; nobody sees it as
a piece, but it was said.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from ..engine import Detokenizer
from ..response import FinishReason, TextKind
from .stops import StopStrings
from .tags import ReasoningSplitter, TextPiece


class ReplyReader:
    """Reads one reply.

    Examples:
        >>> from segue.testing import ToyTokenizer
        >>> toy = ToyTokenizer()
        >>> reader = ReplyReader(toy.detokenizer(), ends=toy.eos_token_ids, max_tokens=9)
        >>> [piece.text for token in toy.encode("hello!") for piece in reader.push(token)]
        ['hello', '!']
        >>> reader.push(toy.end_id)[0].text, reader.text, str(reader.finish_reason)
        ('', 'hello!', 'stop')

    Args:
        detokenizer: A fresh one.
        ends: The ids that end a reply; they have no text.
        max_tokens: The token after which the reply is over.
        stop: Strings that end the reply.
        tags: The tags around reasoning; ``None`` if the model writes none.
        prompt: The end of the prompt, which may have opened the reasoning.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        *,
        ends: AbstractSet[int],
        max_tokens: int,
        stop: Iterable[str] = (),
        tags: tuple[str, str] | None = None,
        prompt: str = "",
    ) -> None:
        self._detokenizer = detokenizer
        self._ends = ends
        self._max_tokens = max_tokens
        self._stops = StopStrings(stop)
        self._splitter = ReasoningSplitter(tags, prompt)
        self._texts: dict[TextKind, list[str]] = {kind: [] for kind in TextKind}
        self._closed = False
        self.tokens: list[int] = []
        """The tokens pushed so far, a final end included."""
        self.finish_reason: FinishReason | None = None
        """Why the reply is over; ``None`` while it isn't, and if it was cut short."""

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(self._texts[TextKind.ANSWER])

    @property
    def reasoning(self) -> str:
        """The reasoning so far."""
        return "".join(self._texts[TextKind.REASONING])

    def push(self, token: int) -> list[TextPiece]:
        """Read a token.

        Returns:
            The pieces of text that it makes certain; one without text if there are none. If they
            are the last ones, `finish_reason` is set.
        """
        self.tokens.append(token)
        text = self._read(token)
        return self._split(text, last=self.finish_reason is not None)

    def run_out(self) -> None:
        """End the reply because there are no more tokens; what is withheld joins its text."""
        self.finish_reason = FinishReason.LENGTH
        self.close()

    def close(self) -> None:
        """Add what is withheld to the reply's text, unless the reply is over already."""
        if not self._closed:
            self._split(self._tail(), last=True)

    def _read(self, token: int) -> str:
        """Return the text that a token makes certain; set the finish reason if it is the last."""
        if token in self._ends:
            self.finish_reason = FinishReason.STOP
            return self._tail()
        text = self._stops.add(self._detokenizer.add(token))
        if len(self.tokens) == self._max_tokens and not self._stops.found:
            text += self._tail()
            self.finish_reason = FinishReason.LENGTH
        if self._stops.found:
            self.finish_reason = FinishReason.STOP
        return text

    def _tail(self) -> str:
        """Return what the detokenizer and the stop strings still withhold."""
        return self._stops.add(self._detokenizer.finish()) + self._stops.finish()

    def _split(self, text: str, *, last: bool) -> list[TextPiece]:
        pieces = self._splitter.add(text)
        if last:
            self._closed = True
            pieces += self._splitter.finish()
        for piece in pieces:
            self._texts[piece.kind].append(piece.text)
        return pieces or [TextPiece(self._splitter.kind, "")]
