"""Prompt lookup proposes what followed the same tokens before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from segue.drafting.lookup import CANDIDATES, NGRAM, PromptLookup

IDS = st.lists(st.integers(0, 2), max_size=40)


def plainly(ids: list[int], count: int) -> list[int]:
    """The same, as plainly as it can be written."""
    end, places = len(ids), []
    for place in range(end - 1, NGRAM - 1, -1):
        if ids[place - NGRAM : place] == ids[end - NGRAM :]:
            places.append(place)

    def alike(place):
        length = 0
        while length < min(place, 24) and ids[place - 1 - length] == ids[end - 1 - length]:
            length += 1
        return length

    if end < NGRAM or not places:
        return []
    best = max(places[:CANDIDATES], key=alike)
    endless = list(ids)
    for place in range(best, best + count):
        if place >= len(endless):
            endless.append(endless[place - (end - best)])
    return endless[best : best + count]


@given(IDS, st.integers(1, 8), st.lists(st.integers(0, 40), max_size=3))
def test_it_proposes_what_a_plain_search_finds(ids, count, cuts):
    lookup = PromptLookup()
    # However the conversation came about.
    for cut in sorted(min(cut, len(ids)) for cut in cuts):
        lookup.follow(ids[:cut])
    lookup.follow(ids)
    assert lookup.propose(count) == plainly(ids, count)


@given(IDS, IDS, st.integers(1, 8))
def test_after_a_divergence_nothing_of_the_old_is_left(old, new, count):
    lookup, fresh = PromptLookup(), PromptLookup()
    lookup.follow(old)
    lookup.follow(new)
    fresh.follow(new)
    assert lookup.propose(count) == fresh.propose(count)
    assert lookup.expects() == fresh.expects()


@given(IDS, st.integers(0, 2), st.integers(1, 8))
def test_what_it_does_not_expect_it_does_not_propose(ids, token, count):
    lookup = PromptLookup()
    lookup.follow(ids)
    expected = lookup.expects()
    lookup.extend([token])
    assert expected or not lookup.propose(count)


def test_a_text_that_repeats_is_taken_to_go_on():
    lookup = PromptLookup()
    lookup.follow([1, 2, 1, 2, 1, 2])
    assert lookup.propose(5) == [1, 2, 1, 2, 1]


@given(IDS, st.lists(st.tuples(st.integers(0, 40), IDS), max_size=4), st.integers(1, 8))
def test_what_was_cut_off_is_forgotten(ids, changes, count):
    lookup = PromptLookup()
    lookup.follow(ids)
    for length, more in changes:
        ids = ids[:length] + more
        lookup.cut(length)
        lookup.extend(more)
        fresh = PromptLookup()
        fresh.follow(ids)
        # The whole index: none of it is of ids that were cut off.
        assert vars(lookup) == vars(fresh)
        assert lookup.propose(count) == plainly(ids, count)
