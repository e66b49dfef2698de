"""Ids and the text they spell, where two parts of a conversation meet.

A decoder looks at neighbours: it drops a first space, or joins bytes into a character. So what ids
spell depends a little on what is before them, and each function here decodes a few of those, too.
Where the spelling can't be separated from that of the neighbours, the answer is ``None``, and the
ledger has no seam there. The text of ledgers is settled (`contents.py`); that of `spell` is not.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...engine import Tokenizer
from ...ledger import MARK, TokenLedger
from .contents import Controls

# How many ids before a seam are decoded along with it. Decoders never look far.
SEAM_CONTEXT = 8
# Text to encode before the text that is wanted, for tokenizers that put a space or BOS first.
ANCHORS = ("", "\n", "a")


def append_reply(tokenizer: Tokenizer, prompt: TokenLedger, tokens: Sequence[int]) -> TokenLedger:
    """Return the ledger of a prompt and the reply sampled after it.

    There is a seam on either side of a final eos, as not every template writes the one that was
    sampled, and before white space at the end, which many templates trim.
    """
    ended = bool(tokens) and tokens[-1] in tokenizer.eos_token_ids
    body = tokens[:-1] if ended else tokens
    length = without_white_space(tokenizer, body)
    if spell(tokenizer, prompt.ids, body[:length]) is None:  # but perhaps the whole is certain
        length = len(body)
    ledger = prompt
    for ids in (body[:length], body[length:], tokens[len(body) :]):
        ledger = ledger.extend(ids, spell_settled(tokenizer, ledger.ids, ids))
    return ledger


def without_white_space(tokenizer: Tokenizer, ids: Sequence[int]) -> int:
    """Return how many ids are left without those at the end that spell white space alone."""
    length = len(ids)
    while length and not tokenizer.decode(ids[length - 1 : length]).strip():
        length -= 1
    return length


def spell(tokenizer: Tokenizer, before: Sequence[int], ids: Sequence[int]) -> str | None:
    """Return what `ids` spell after `before`; ``None`` where the two can't be separated."""
    context = list(before[-SEAM_CONTEXT:])
    alone = tokenizer.decode(context)
    together = tokenizer.decode([*context, *ids])
    return together[len(alone) :] if together.startswith(alone) else None


def spell_settled(tokenizer: Tokenizer, before: Sequence[int], ids: Sequence[int]) -> str | None:
    """Return what `ids` spell after `before` as settled text; ``None`` as for `spell`."""
    text, controls = spell(tokenizer, before, ids), Controls.of(tokenizer)
    if text is None or controls is None:
        return text
    context = [*before[-SEAM_CONTEXT:], *ids]
    length = len(context) - len(ids)

    def spell_slice(start: int, end: int) -> str | None:
        start, end = start + length, end + length
        return spell(tokenizer, context[max(0, start - SEAM_CONTEXT) : start], context[start:end])

    return controls.settle_ids(text, ids, spell_slice)


def is_spelled(tokenizer: Tokenizer, ledger: TokenLedger) -> bool:
    """Return True if a ledger out of a file has the text that its ids spell, white space aside.

    (Some tokenizers swallow white space beside their special tokens.)
    """
    text = tokenizer.decode(ledger.ids[: ledger.seams[-1].ids])
    return "".join(text.split()) == "".join(ledger.text.split())


def settle_saved(tokenizer: Tokenizer, ledger: TokenLedger) -> TokenLedger:
    """Return a ledger out of a file with settled text."""
    controls = Controls.of(tokenizer)
    if controls is None:
        return ledger

    def spell_slice(start: int, end: int) -> str | None:
        ids = ledger.ids
        return spell(tokenizer, ids[max(0, start - SEAM_CONTEXT) : start], ids[start:end])

    return controls.settle_ledger(ledger, spell_slice)


def encode_settled(tokenizer: Tokenizer, before: Sequence[int], text: str) -> list[int] | None:
    """Return ids that spell settled text after others; ``None`` where the tokenizer makes none.

    Text that spells a control token is cut inside, so that it does not become one.
    """
    ids: list[int] = []
    for piece in filter(None, text.split(MARK)):
        context = [*before[-SEAM_CONTEXT:], *ids[-SEAM_CONTEXT:]]
        more = encode_after(tokenizer, context, piece)
        if more is None:
            return None
        ids += _without_false(tokenizer, context, piece, more)
    return ids


def encode_whole(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return ids for settled text from its start, as the tokenizer makes them if none spell it."""
    ids: list[int] = []
    for piece in filter(None, text.split(MARK)):
        context = ids[-SEAM_CONTEXT:]
        more = encode_after(tokenizer, context, piece) if context else None
        if more is None:
            more = list(tokenizer.encode(piece))
        ids += _without_false(tokenizer, context, piece, more)
    return ids


def _without_false(
    tokenizer: Tokenizer, before: Sequence[int], text: str, ids: list[int]
) -> list[int]:
    """Return ids without control tokens that a tokenizer made of other text.

    Some look for control tokens in text that they normalized: they find them in capitals, say. Such
    text is encoded character by character.
    """
    controls = Controls.of(tokenizer)
    if controls is None:
        return ids
    wanted = controls.tokens_in(text)
    if sum(index in controls.ids for index in ids) <= len(wanted):
        return ids
    mended: list[int] = []
    for token in wanted:
        run, text = text.split(token, 1)
        mended += _by_characters(tokenizer, [*before, *mended], run)
        mended.append(controls.tokens[token])
    return mended + _by_characters(tokenizer, [*before, *mended], text)


def _by_characters(tokenizer: Tokenizer, before: Sequence[int], text: str) -> list[int]:
    ids: list[int] = []
    for character in text:
        more = encode_after(tokenizer, [*before[-SEAM_CONTEXT:], *ids[-SEAM_CONTEXT:]], character)
        ids += tokenizer.encode(character) if more is None else more
    return ids


def encode_after(tokenizer: Tokenizer, before: Sequence[int], text: str) -> list[int] | None:
    """Return ids that spell a text after others; ``None`` where the tokenizer makes none.

    Some tokenizers put a space or BOS before whatever they encode, which the template did not
    write: then other text goes first, takes it, and is cut off again.
    """
    for anchor in ANCHORS:
        first = list(tokenizer.encode(anchor)) if anchor else []
        ids = list(tokenizer.encode(anchor + text))
        if ids[: len(first)] == first:
            ids = ids[len(first) :]
            if spell(tokenizer, before, ids) == text:
                return ids
    return None
