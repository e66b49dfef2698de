"""The tests of sessions run over both fakes: the one with every capability, and the bare core.

A test that is about a capability (checkpoints, files, memory, progress between chunks, what the
fake's contexts hold) has the mark `capable`, and runs over the first alone.
"""

from __future__ import annotations

import pytest

from kit import sessions
from segue.testing import BareEngine


class Bare(BareEngine):
    """A bare engine that reuses to the token, whose cache nobody else empties."""

    def __init__(self, *args, trimmable=True, **kwargs):
        if not trimmable:
            pytest.skip("checkpoints are a capability")
        super().__init__(*args, block=1, **kwargs)


def pytest_generate_tests(metafunc):
    both = hasattr(metafunc.module, "FakeEngine") or hasattr(metafunc.module, "talk")
    if both and not metafunc.definition.get_closest_marker("capable"):
        metafunc.fixturenames.append("engine_kind")
        metafunc.parametrize("engine_kind", ["fake", "bare"], indirect=True)


@pytest.fixture
def engine_kind(request, monkeypatch):
    """Has a test's `FakeEngine` be a bare engine the second time."""
    if request.param == "bare":
        monkeypatch.setattr(request.module, "FakeEngine", Bare, raising=False)
        monkeypatch.setattr(sessions, "FakeEngine", Bare)
