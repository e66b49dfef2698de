"""The stopwatch: drafts that don't pay are left out; the reader's time never counts."""

from __future__ import annotations

import pytest

from segue.drafting.pace import ENOUGH, FIRST_PAUSE, REMEASURE, Pace


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Decoding:
    """A reply under a clock of its own."""

    def __init__(self):
        self.clock = Clock()
        self.pace = Pace(self.clock)
        self.pace.start()

    def plain(self, seconds=1.0, times=1):
        for _ in range(times):
            self.clock.now += seconds
            self.pace.lap(1, drafted=False)

    def drafted(self, tokens, seconds=1.5, times=1):
        for _ in range(times):
            self.clock.now += seconds
            self.pace.lap(tokens, drafted=True)


@pytest.fixture
def decoding():
    decoding = Decoding()
    # The first lap only starts the watch.
    decoding.plain(times=ENOUGH + 1)
    return decoding


def test_plain_speed_is_measured_before_anything_is_drafted():
    decoding = Decoding()
    for _ in range(ENOUGH + 1):
        assert not decoding.pace.drafting
        decoding.plain()
    assert decoding.pace.drafting
    assert not decoding.pace.paused


def test_a_draft_that_pays_is_kept(decoding):
    decoding.drafted(tokens=2, times=100)
    assert not decoding.pace.paused


def test_a_draft_that_does_not_pay_is_paused_ever_longer(decoding):
    pauses = []
    for _ in range(4):
        decoding.drafted(tokens=1, times=ENOUGH)
        assert decoding.pace.paused
        assert not decoding.pace.drafting
        pauses.append(0)
        while decoding.pace.paused:
            decoding.plain()
            pauses[-1] += 1
    assert pauses == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE, 8 * FIRST_PAUSE]


def test_single_disturbed_passes_decide_nothing(decoding):
    for _ in range(10):
        decoding.drafted(tokens=3, seconds=50.0)
        decoding.drafted(tokens=3, times=3)
    assert not decoding.pace.paused


def test_the_readers_time_does_not_count(decoding):
    for _ in range(ENOUGH):
        decoding.pace.suspend()
        decoding.clock.now += 100.0
        decoding.pace.resume()
        decoding.drafted(tokens=2)
    assert not decoding.pace.paused


def test_the_time_between_replies_belongs_to_no_pass(decoding):
    decoding.drafted(tokens=2, times=ENOUGH)
    decoding.clock.now += 1000.0
    decoding.pace.start()
    for _ in range(ENOUGH):
        decoding.pace.lap(1, drafted=True)
    assert not decoding.pace.paused


def test_plain_speed_is_measured_again_after_a_while(decoding):
    decoding.drafted(tokens=4, times=REMEASURE // 4)
    assert not decoding.pace.drafting
    decoding.plain(seconds=3.0, times=ENOUGH)
    assert decoding.pace.drafting
    # One token in two seconds is now faster than plain decoding.
    decoding.drafted(tokens=1, seconds=2.0, times=20)
    assert not decoding.pace.paused
