"""Instants as people write them."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.errors import UsageError
from tools.when import parse_instant

NOW_NS = 1_800_000_000_123_456_789


def test_now_and_durations_ago() -> None:
    assert parse_instant("now", NOW_NS) == NOW_NS
    assert parse_instant("-5m", NOW_NS) == NOW_NS - 300 * 10**9
    assert parse_instant("now-1.5h", NOW_NS) == NOW_NS - 5400 * 10**9


@settings(max_examples=50)
@given(
    st.datetimes(
        min_value=datetime.datetime(1980, 1, 1),
        max_value=datetime.datetime(2100, 1, 1),
        timezones=st.just(datetime.UTC),
    )
)
def test_an_iso_time_is_exact_to_the_microsecond(instant: datetime.datetime) -> None:
    expected = round(instant.replace(microsecond=0).timestamp()) * 10**9 + instant.microsecond * 1000
    assert parse_instant(instant.isoformat(), NOW_NS) == expected
    assert parse_instant(instant.isoformat().replace("+00:00", "Z"), NOW_NS) == expected


@settings(max_examples=50)
@given(st.integers(0, 23), st.integers(0, 59))
def test_a_time_of_day_is_the_most_recent_one(hour: int, minute: int) -> None:
    found = parse_instant(f"{hour}:{minute:02d}", NOW_NS)
    local = datetime.datetime.fromtimestamp(found / 1e9)
    assert (local.hour, local.minute, local.second) == (hour, minute, 0)
    assert NOW_NS - 90_000 * 10**9 < found <= NOW_NS


@pytest.mark.parametrize("text", ["", "24:00", "12:60", "-5", "-5y", "tomorrow", "2026-02-30", "9" * 40])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_instant(text, NOW_NS)
