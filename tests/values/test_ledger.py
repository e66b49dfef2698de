"""The ledger and what it decides, as properties."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from segue.ledger import Seam, TokenLedger, common_prefix, tokens_to_keep

IDS = st.lists(st.integers(0, 3), max_size=12).map(tuple)
PARTS = st.lists(st.tuples(IDS, st.none() | st.text("ab", max_size=6)), max_size=6)


def build(parts) -> TokenLedger:
    ledger = TokenLedger()
    for ids, text in parts:
        ledger = ledger.extend(ids, text)
    return ledger


@given(IDS, IDS)
def test_common_prefix_is_the_longest(a, b):
    count = common_prefix(a, b)
    assert a[:count] == b[:count]
    assert count == min(len(a), len(b)) or a[count] != b[count]


@given(PARTS)
def test_seams_ascend_and_mark_the_text(parts):
    ledger = build(parts)
    assert ledger.ids == tuple(token for ids, _ in parts for token in ids)
    assert ledger.seams[0] == Seam(0, 0)
    assert ledger.seams[-1].chars == len(ledger.text)
    for before, after in zip(ledger.seams, ledger.seams[1:], strict=False):
        assert before.ids < after.ids <= len(ledger.ids)
        assert before.chars <= after.chars


@given(PARTS)
def test_text_behind_unspelled_ids_is_never_claimed(parts):
    ledger = TokenLedger()
    known = True
    for ids, text in parts:
        ledger = ledger.extend(ids, text)
        if ids and text is None:
            known = False
        if ids:
            assert (ledger.seams[-1].ids == len(ledger.ids)) == known


@given(PARTS, st.integers(0, 30))
def test_truncating_keeps_the_front(parts, length):
    ledger = build(parts)
    cut = ledger.truncate(length)
    assert cut.ids == ledger.ids[:length]
    assert ledger.text.startswith(cut.text)
    assert cut.seams == ledger.seams[: len(cut.seams)]
    assert cut.seams[-1].ids <= len(cut.ids)
    assert cut.truncate(length) == cut


@given(PARTS, st.text("ab", max_size=20))
def test_the_seam_within_a_text_is_the_last_that_agrees(parts, text):
    ledger = build(parts)
    seam = ledger.seam_within(text)
    assert seam in ledger.seams
    assert text[: seam.chars] == ledger.text[: seam.chars]
    for later in ledger.seams[ledger.seams.index(seam) + 1 :]:
        assert text[: later.chars] != ledger.text[: later.chars]


@given(IDS, IDS)
def test_a_turn_keeps_the_common_prefix_and_feeds_at_least_one(held, prompt):
    assume(prompt)
    keep = tokens_to_keep(TokenLedger(held), TokenLedger(prompt))
    assert held[:keep] == prompt[:keep]
    assert keep < len(prompt)
    assert keep == len(prompt) - 1 or keep == len(held) or held[keep] != prompt[keep]
