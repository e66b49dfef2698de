"""Numbers, sizes and ages in words."""

from __future__ import annotations

from datetime import UTC, datetime

# Seconds in a unit, the longest first.
UNITS = (
    (365 * 86400, "year"),
    (30 * 86400, "month"),
    (7 * 86400, "week"),
    (86400, "day"),
    (3600, "hour"),
    (60, "minute"),
)


def count(number: int, noun: str) -> str:
    """A number of things: ``"1 turn"``, ``"2 turns"``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def age(moment: datetime, now: datetime | None = None) -> str:
    """The time since a moment, in its largest unit: ``"3 days"``.

    Args:
        moment: A time with its time zone.
        now: The present, if not the clock's.
    """
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    for length, unit in UNITS:
        if seconds >= length:
            return count(int(seconds // length), unit)
    return "moments"


def size_text(size: int) -> str:
    """A file's size as people say it: ``"1.5 MiB"``."""
    amount, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
