"""Numbers with units are read exactly or refused with what to write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.language.schema import Unit
from deployer.language.units import UnitError, parse, render


@pytest.mark.parametrize(
    ("unit", "text", "number"),
    [
        (Unit.BYTES, "64MiB", 67108864),
        (Unit.BYTES, "1.5 GiB", 1610612736),
        (Unit.BYTES, "0B", 0),
        (Unit.BYTES, "1TB", 10**12),
        (Unit.BYTES, "1kB", 1000),
        (Unit.MILLISECONDS, "10s", 10_000),
        (Unit.MILLISECONDS, "1.5s", 1500),
        (Unit.MILLISECONDS, "2h", 7_200_000),
        (Unit.MILLISECONDS, "250ms", 250),
        (Unit.TIMES, 10, 10),
        (Unit.MILLICORES, 2, 2000),
        (Unit.MILLICORES, "2", 2000),
        (Unit.MILLICORES, "0.5", 500),
        (Unit.MILLICORES, "0.125", 125),
    ],
)
def test_a_number_means_what_its_unit_says(unit: Unit, text: object, number: int) -> None:
    assert parse(unit, text) == number


@pytest.mark.parametrize(
    ("unit", "text", "message", "hint"),
    [
        (Unit.BYTES, 64, "64 has no unit", "MiB"),
        (Unit.BYTES, "64", '"64" has no unit', "MiB"),
        (Unit.BYTES, "64Mib", "unknown unit 'Mib'", "did you mean MiB?"),
        (Unit.BYTES, "64M", "unknown unit 'M'", "did you mean MiB?"),
        (Unit.BYTES, "64KB", "unknown unit 'KB'", "did you mean kB?"),
        (Unit.BYTES, "-1MiB", "is negative", ""),
        (Unit.BYTES, "0.3B", "more precise than a byte", "round"),
        (Unit.BYTES, "1e3MB", "is not a size", ""),
        (Unit.BYTES, "lots", "is not a size", ""),
        (Unit.BYTES, "٣MiB", "is not a size", ""),
        (Unit.BYTES, "9" * 100 + "B", "too long", ""),
        (Unit.BYTES, True, "true or false", ""),
        (Unit.BYTES, ["1MiB"], "a list", ""),
        (Unit.MILLISECONDS, "10 sec", "unknown unit 'sec'", "did you mean s?"),
        (Unit.MILLISECONDS, "10S", "unknown unit 'S'", "did you mean s?"),
        (Unit.MILLISECONDS, "0.5ms", "more precise than a millisecond", "round"),
        (Unit.MILLISECONDS, "", "is not a duration", ""),
        (Unit.MILLICORES, 0.5, "floating-point", '"0.5"'),
        (Unit.MILLICORES, "0.0005", "more precise than a thousandth", "3 decimals"),
        (Unit.TIMES, "10x", "not a whole number", "without a unit"),
        (Unit.TIMES, 1.5, "not a whole number", ""),
        (Unit.TIMES, True, "not a whole number", ""),
        (Unit.TIMES, -1, "negative", ""),
        (Unit.MILLICORES, "2 cores", "has a unit", ""),
        (Unit.MILLICORES, -1, "negative", ""),
    ],
)
def test_what_cannot_be_read_says_why_and_what_to_write(unit: Unit, text: object, message: str, hint: str) -> None:
    with pytest.raises(UnitError) as caught:
        parse(unit, text)
    assert message in str(caught.value)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("unit", "number", "text"),
    [
        (Unit.BYTES, 67108864, "64MiB"),
        (Unit.BYTES, 1000, "1kB"),
        (Unit.BYTES, 1536, "1536B"),
        (Unit.BYTES, 10**12, "1TB"),
        (Unit.BYTES, 1 << 40, "1TiB"),
        (Unit.BYTES, 0, "0B"),
        (Unit.MILLISECONDS, 10_000, "10s"),
        (Unit.MILLISECONDS, 1500, "1500ms"),
        (Unit.MILLISECONDS, 90_000, "90s"),
        (Unit.MILLISECONDS, 3_600_000, "1h"),
        (Unit.MILLISECONDS, 0, "0s"),
        (Unit.MILLICORES, 1000, "1"),
        (Unit.MILLICORES, 20_000, "20"),
        (Unit.MILLICORES, 500, "0.5"),
    ],
)
def test_numbers_are_shown_as_people_write_them(unit: Unit, number: int, text: str) -> None:
    assert render(unit, number) == text


@given(st.sampled_from(list(Unit)), st.integers(0, 1 << 60))
def test_what_is_shown_reads_back_exactly(unit: Unit, number: int) -> None:
    assert parse(unit, render(unit, number)) == number
