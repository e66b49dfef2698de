"""Stop strings, as properties."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from segue.text.stops import StopStrings

STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)
PIECES = st.lists(st.text("abc", max_size=4), max_size=8)


@given(STOPS, PIECES)
def test_however_text_arrives_it_ends_before_the_first_stop_string(strings, pieces):
    watch = StopStrings(strings)
    whole = "".join(pieces)
    shown = ""
    for piece in pieces:
        shown += watch.add(piece)
        if watch.found:
            break
    if not watch.found:
        shown += watch.finish()
    # The first to be complete ends the reply; of two completed by one piece, the one that begins
    # first.
    places = [whole.find(string) for string in strings if string in whole]
    assert watch.found == bool(places)
    assert whole.startswith(shown)
    if places:
        assert not any(string in shown for string in strings)
        assert any(whole.startswith(string, len(shown)) for string in strings)
    else:
        assert shown == whole


@given(STOPS, PIECES)
def test_text_is_held_back_only_while_a_stop_string_may_begin_in_it(strings, pieces):
    watch = StopStrings(strings)
    taken = shown = ""
    for piece in pieces:
        taken += piece
        shown += watch.add(piece)
        if watch.found:
            return
        held = taken[len(shown) :]
        assert taken.startswith(shown)
        assert not held or any(string.startswith(held) for string in strings)


def test_of_two_in_one_piece_the_first_in_the_text_counts():
    watch = StopStrings(["bb", "a"])
    assert watch.add("xxabbx") == "xx"
    assert watch.found
    assert watch.add("more") == ""
    assert watch.finish() == ""
