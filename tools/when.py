"""Instants as people write them: `2026-03-01T12:00:00Z`, `2026-03-01 12:00`, `14:05`, `now`, `-5m`.

Without a time zone the local one is meant. A bare time of day is the most recent one.
"""

from __future__ import annotations

import datetime
import re
from typing import Final

from tools.errors import UsageError

UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_AGO = re.compile(r"(?:now)?-(\d{1,9}(?:\.\d{1,9})?)([smhdw])")
_TIME_OF_DAY = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?")
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def parse_instant(text: str, now_unix_ns: int) -> int:
    """Nanoseconds since 1970. Raises UsageError."""
    if text == "now":
        return now_unix_ns
    if ago := _AGO.fullmatch(text):
        return now_unix_ns - round(float(ago[1]) * UNITS_S[ago[2]] * 1_000_000_000)
    now = datetime.datetime.fromtimestamp(now_unix_ns // 1_000_000_000)
    try:
        if clock := _TIME_OF_DAY.fullmatch(text):
            return _most_recent(datetime.time(int(clock[1]), int(clock[2]), int(clock[3] or 0)), now)
        return _unix_ns(datetime.datetime.fromisoformat(text))
    except (ValueError, OverflowError, OSError):
        raise UsageError(
            f"{text!r} is no time", hint="write now, -5m, 14:05, 2026-03-01 or 2026-03-01T12:00:00Z"
        ) from None


def _most_recent(clock: datetime.time, now: datetime.datetime) -> int:
    today = datetime.datetime.combine(now.date(), clock)
    return _unix_ns(today if today <= now else today - datetime.timedelta(days=1))


def _unix_ns(instant: datetime.datetime) -> int:
    """Exact also for microseconds, which a float of seconds would not be."""
    return (instant.astimezone(datetime.UTC) - _EPOCH) // datetime.timedelta(microseconds=1) * 1000
