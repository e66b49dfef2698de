"""Where things are in the project."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parent.parent
"""The folder of the tests: on the path of a process that imports the kit."""
ROOT = TESTS.parent
RECORDED = TESTS / "data"
"""Files that were made once, and what made them."""
OLD_SESSIONS = RECORDED / "sessions"
