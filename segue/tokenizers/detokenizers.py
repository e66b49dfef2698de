"""From ids to text, all at once or as they come: for vocabularies of bytes, and for any other.

How it works: what ids spell is decided in one place, so that the text of a reply as it was streamed
is the text that the same ids have in the ledger.

- A *byte-level* vocabulary writes each byte as a character. So each token is bytes, and text is
  those bytes as UTF-8 (`ByteSpelling`). Tokens that were added to the vocabulary are text as they
  stand.
- Any other vocabulary is spelled by the tokenizer's own ``decode``. `WindowDetokenizer` calls it
  with a window on the newest ids, and returns what the text has grown by.

What does not work:

- Choosing by the decoder alone. Files pair byte-level vocabularies with SentencePiece's decoders,
  which leave each byte the character that stands for it.
- Tokenizers' own ByteLevel decoder, and mlx-lm's: an added token with an accent is taken for bytes.
- A table of all tokens, made in advance. Vocabularies have gaps, and models more ids than tokens.
- Taking text back. SentencePiece's decoders spell a run of bytes by replacement characters alone
  if any of it is broken; characters that were complete by then have been returned.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Protocol

# Stands for bytes that aren't a character, or not yet one.
REPLACEMENT = "\ufffd"
# A window is cut when it has more ids than this, to this many or a few more.
LONGEST_WINDOW, SHORTEST_WINDOW = 24, 8
# The most ids to withhold. A character has at most four bytes, so these are none.
MOST_WITHHELD = 8


@lru_cache(maxsize=1)
def byte_alphabet() -> Mapping[str, int]:
    """Return the characters that byte-level vocabularies write bytes as."""
    # Those that can be seen stand for themselves, the others for the next ones after Latin-1.
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(0x100) if value not in seen]
    table = {chr(value): value for value in seen}
    return table | {chr(0x100 + index): value for index, value in enumerate(others)}


class ByteSpelling:
    """The bytes of each token of a byte-level vocabulary.

    Args:
        token: Returns a token by its id; ``None`` if there is none.
        added: The tokens that are text as they stand, by id.
    """

    def __init__(self, token: Callable[[int], str | None], added: Mapping[int, str]) -> None:
        self._token = token
        self._known = {index: text.encode("utf-8", "replace") for index, text in added.items()}

    def bytes_of(self, index: int) -> bytes:
        """Return the bytes that an id spells; none if it has no token."""
        known = self._known.get(index)
        if known is None:
            known = self._known[index] = self._spell(self._token(index) or "")
        return known

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text that ids spell."""
        return b"".join(map(self.bytes_of, ids)).decode("utf-8", "replace")

    def _spell(self, token: str) -> bytes:
        table = byte_alphabet()
        if all(character in table for character in token):
            return bytes(table[character] for character in token)
        return token.encode("utf-8", "replace")


class Streaming(Protocol):
    """What both detokenizers can do."""

    def add(self, token: int) -> str:
        """Return the text that this id made readable."""
        ...

    def finish(self) -> str:
        """Return the text still withheld."""
        ...


class ByteDetokenizer:
    """Reads the ids of a byte-level vocabulary; withholds the bytes of an incomplete character.

    Args:
        spelling: The vocabulary.
    """

    def __init__(self, spelling: ByteSpelling) -> None:
        self._spelling = spelling
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """See `Streaming.add`."""
        return self._decoder.decode(self._spelling.bytes_of(token))

    def finish(self) -> str:
        """See `Streaming.finish`."""
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """Reads the ids of any vocabulary, by decoding the newest of them again with each new one.

    Args:
        decode: Returns the text that ids spell.
        anchor: Ids to put before the first one, so that it is not at the start of a text, where
            decoders drop a space.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], anchor: Sequence[int]) -> None:
        self._decode = decode
        self._anchor = list(anchor)
        self._begin([])
        # How many ids of the window there were, each time that text was returned.
        self._settled = [len(self._ids)]

    def add(self, token: int) -> str:
        """See `Streaming.add`."""
        self._ids.append(token)
        new = self._new_text()
        withheld = len(self._ids) - self._settled[-1]
        if (not new or new.endswith(REPLACEMENT)) and withheld < MOST_WITHHELD:
            return ""
        return self._settle(new)

    def finish(self) -> str:
        """See `Streaming.finish`."""
        return self._settle(self._new_text()) if len(self._ids) > self._settled[-1] else ""

    def _begin(self, ids: list[int]) -> None:
        self._ids, self._text = [*self._anchor, *ids], self._decode(self._anchor)

    def _new_text(self) -> str:
        """Return what the window spells beyond what was returned of it."""
        whole = self._decode(self._ids)
        if not whole.startswith(self._text):
            # The newest ids changed how earlier ones are spelled: they go on by themselves.
            self._begin(self._ids[self._settled[-1] :])
            self._settled = [len(self._anchor)]
            whole = self._decode(self._ids)
            if not whole.startswith(self._text):
                return self._decode(self._ids[len(self._anchor) :])
        return whole[len(self._text) :]

    def _settle(self, new: str) -> str:
        self._text += new
        self._settled.append(len(self._ids))
        if len(self._ids) > LONGEST_WINDOW:
            # Cut where text was returned, which is never inside a character.
            cut = next(
                (at for at in reversed(self._settled) if len(self._ids) - at >= SHORTEST_WINDOW),
                self._settled[0],
            )
            self._ids = self._ids[cut:]
            self._settled = [at - cut for at in self._settled if at > cut]
            self._text = self._decode(self._ids)
        return new


class ReplyDetokenizer:
    """Reads a reply; implements `segue.engine.Detokenizer`.

    Args:
        streaming: What turns ids into text, not yet used.
        drop_space: True if a space at the very start is left out.
    """

    def __init__(self, streaming: Streaming, *, drop_space: bool) -> None:
        self._streaming = streaming
        self._drop_space = drop_space

    def add(self, token: int) -> str:
        """See `segue.engine.Detokenizer.add`."""
        return self._at_start(self._streaming.add(token))

    def finish(self) -> str:
        """See `segue.engine.Detokenizer.finish`."""
        return self._at_start(self._streaming.finish())

    def _at_start(self, text: str) -> str:
        if text and self._drop_space:
            self._drop_space = False
            return text.removeprefix(" ")
        return text
