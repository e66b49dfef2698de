"""Ids and the text they spell, where two parts of a conversation meet.

A decoder looks at neighbours: it drops a first space, or joins bytes into a character. So what ids
spell depends a little on what is before them, and each function here decodes a few of those, too.
Where the spelling can't be separated from that of the neighbours, the answer is ``None``, and the
ledger has no seam there.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..engine import Tokenizer
from ..ledger import TokenLedger

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
        ledger = ledger.extend(ids, spell(tokenizer, ledger.ids, ids))
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
