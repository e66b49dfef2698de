"""Tokens to text, and text to what kind of text it is: the reading of one reply.

A reply's tokens go through three stages, each of which may withhold text until it is decided::

    token -> detokenizer -> splitter -> stop strings -> pieces of text
             (half a        (may become (may become
              character)     a tag)      a stop string)

The splitter depends on the form of the reply: `ReasoningSplitter` knows tags, `HarmonySplitter`
messages in channels. Stop strings are looked for in the answer, or in the reasoning as well; in
each part of the reply by itself, so that what is withheld for one is passed on when the part ends.

`ReplyReader` holds the three together, and decides when and why a reply is over. It has no device,
clock or signal: whoever drives a reply (`Reply`, a scheduler) pushes tokens and passes the pieces
on. When a reply is cut short, `close` adds what is withheld to the reply's text; nobody sees it as
a piece, but it was said.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from ..engine import Detokenizer
from ..messages import Message
from ..response import FinishReason, TextKind
from ..tool_call import ToolCall
from .form import ReplyForm
from .harmony import HarmonySplitter
from .stops import StopStrings
from .tags import ReasoningSplitter, Said, TextPiece

# Between two parts of a reply that are text of the same kind.
SEPARATOR = "\n\n"


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
        stop_in_reasoning: Whether they do so in the reasoning, too.
        form: What is written around the reply's text.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        *,
        ends: AbstractSet[int],
        max_tokens: int,
        stop: Iterable[str] = (),
        stop_in_reasoning: bool = False,
        form: ReplyForm | None = None,
    ) -> None:
        form = form or ReplyForm()
        self._detokenizer = detokenizer
        self._ends = ends
        self._max_tokens = max_tokens
        self._stops = StopStrings(stop)
        self._stop_in_reasoning = stop_in_reasoning
        self._splitter = HarmonySplitter(form) if form.harmony else ReasoningSplitter(form)
        # The part of the reply that is being read: its number and kind, and whether it has text.
        self._message, self._kind, self._has_text = 0, TextKind.ANSWER, False
        self._texts: dict[TextKind, list[str]] = {kind: [] for kind in TextKind}
        self._added: dict[TextKind, list[str]] = {kind: [] for kind in TextKind}
        # Of a reply that is continued: text that was shown, and may still become a tag.
        self._shown: dict[TextKind, str] = {}
        self._resuming = False
        self._calls: list[ToolCall] = []
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

    @property
    def added_text(self) -> str:
        """The answer so far, without what was said before it was continued."""
        return "".join(self._added[TextKind.ANSWER])

    @property
    def added_reasoning(self) -> str:
        """The reasoning so far, without what was said before the reply was continued."""
        return "".join(self._added[TextKind.REASONING])

    @property
    def in_reasoning(self) -> bool:
        """True if the newest text is reasoning, or the prompt has opened it."""
        return self._splitter.kind is TextKind.REASONING

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The calls of tools so far that are complete; their text is no part of the answer."""
        return tuple(self._calls)

    def resume(self, tokens: Iterable[int], shown: Message | None = None) -> None:
        """Read the beginning of a reply that is continued: its text counts, its tokens don't.

        Called before the first `push`. No stop string is looked for in it.

        Args:
            tokens: The tokens that were said before.
            shown: The reply as it was recorded. What of it is undecided again, such as half a tag,
                is not passed on a second time.
        """
        self._resuming = True
        for token in tokens:
            said = self._splitter.add(self._detokenizer.add(token))
            self._watch(part._replace(watched=False) for part in said)
        self._resuming = False
        if shown is not None:
            self._shown = {
                TextKind.ANSWER: shown.text[len(self.text) :],
                TextKind.REASONING: (shown.reasoning or "")[len(self.reasoning) :],
            }

    def push(self, token: int) -> list[TextPiece]:
        """Read a token.

        Returns:
            The pieces of text that it makes certain; one without text if there are none. If they
            are the last ones, `finish_reason` is set.
        """
        self.tokens.append(token)
        ended = token in self._ends
        pieces = [] if ended else self._watch(self._splitter.add(self._detokenizer.add(token)))
        if self._stops.found:
            self.finish_reason, self._closed = FinishReason.STOP, True
        elif ended or len(self.tokens) == self._max_tokens:
            pieces += self._finish(ended=ended)
            stopped = ended or self._stops.found
            self.finish_reason = FinishReason.STOP if stopped else FinishReason.LENGTH
        return _joined(pieces) or [TextPiece(self._splitter.kind, "")]

    def run_out(self) -> None:
        """End the reply because there are no more tokens; what is withheld joins its text."""
        self.finish_reason = FinishReason.LENGTH
        self.close()

    def close(self) -> None:
        """Add what is withheld to the reply's text, unless the reply is over already."""
        if not self._closed:
            self._finish(ended=False)

    def _finish(self, *, ended: bool) -> list[TextPiece]:
        """Return the pieces that were withheld by all three stages."""
        self._closed = True
        said = self._splitter.add(self._detokenizer.finish()) + self._splitter.finish(ended=ended)
        pieces = self._watch(said)
        self._pass(pieces, self._stops.finish())
        return pieces

    def _watch(self, said: Iterable[Said]) -> list[TextPiece]:
        """Return the pieces that are certain to come before a stop string."""
        pieces: list[TextPiece] = []
        for kind, text, message, watched, call in said:
            if self._stops.found:
                break
            if call is not None:
                self._calls.append(call)
            if message != self._message:
                self._pass(pieces, self._stops.finish())
                self._message, self._has_text = message, False
            self._kind = kind
            if kind is TextKind.REASONING:
                watched = watched and self._stop_in_reasoning
            self._pass(pieces, self._stops.add(text) if watched else text)
        return pieces

    def _pass(self, pieces: list[TextPiece], text: str) -> None:
        if text:
            if not self._has_text and self._texts[self._kind]:
                text = SEPARATOR + text
            self._has_text = True
            self._texts[self._kind].append(text)
            if not self._resuming and (text := self._without_shown(text)):
                self._added[self._kind].append(text)
                pieces.append(TextPiece(self._kind, text))

    def _without_shown(self, text: str) -> str:
        """Return text without what the reply had shown before it was continued."""
        shown = self._shown.pop(self._kind, "")
        if shown.startswith(text):
            self._shown[self._kind] = shown[len(text) :]
            return ""
        return text.removeprefix(shown)


def _joined(pieces: Iterable[TextPiece]) -> list[TextPiece]:
    """Return pieces without neighbours of the same kind."""
    joined: list[TextPiece] = []
    for piece in pieces:
        if joined and joined[-1].kind is piece.kind:
            joined[-1] = TextPiece(piece.kind, joined[-1].text + piece.text)
        else:
            joined.append(piece)
    return joined
