"""Sizes, durations and shares of a core as people write them, and back.

A number in a definition always carries its unit, because `memory = 64` has been misread too often. What is read is an
integer (bytes, milliseconds, thousandths of a core): exact, or refused. Fractions are decimal text and never pass
through a float.
"""

from __future__ import annotations

import re
from decimal import Decimal
from difflib import get_close_matches
from fractions import Fraction

from deployer.language.schema import Unit
from deployer.language.wording import quoted

SIZES: dict[str, int] = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
}
DURATIONS: dict[str, int] = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}

UNITS: dict[Unit, dict[str, int]] = {Unit.BYTES: SIZES, Unit.MILLISECONDS: DURATIONS}
SMALLEST: dict[Unit, str] = {Unit.BYTES: "a byte", Unit.MILLISECONDS: "a millisecond"}

MAX_TEXT_CHARS = 64
_NUMBER = re.compile(r"([+-]?)([0-9]+(?:\.[0-9]+)?)\s*([A-Za-zµ%]*)", re.ASCII)
_SIMILAR = {"k": "KiB", "m": "MiB", "g": "GiB", "t": "TiB", "sec": "s", "min": "m", "hour": "h", "d": "h"}


class UnitError(ValueError):
    """A number that cannot be read. The message says what is wrong with it; `hint` is what to write, or empty."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def parse(unit: Unit, value: object) -> int:
    """Read a value of a definition: text with a unit, for cores a whole number as well, for times only that. Raises
    UnitError."""
    if unit is Unit.MILLICORES:
        return parse_millicores(value)
    if unit is Unit.TIMES:
        return parse_times(value)
    return parse_quantity(unit, value)


def parse_quantity(unit: Unit, value: object) -> int:
    """Bytes or milliseconds from text such as `64MiB` or `1.5s`. Raises UnitError."""
    known = UNITS[unit]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UnitError(f"{_kind(value)} is not {_what(unit)}")
    if not isinstance(value, str):
        raise UnitError(f"{value} has no unit", hint=f"write it as text with one of {_list(known)}")
    number, suffix = _split(value, unit)
    if not suffix:
        raise UnitError(f"{quoted(value)} has no unit", hint=f"add one of {_list(known)}")
    if suffix not in known:
        raise UnitError(f"{quoted(value)} has the unknown unit {suffix!r}", hint=_unit_hint(suffix, known))
    exact = number * known[suffix]
    if exact.denominator != 1:
        raise UnitError(f"{quoted(value)} is more precise than {SMALLEST[unit]}", hint="round it")
    return int(exact)


def parse_millicores(value: object) -> int:
    """Thousandths of a core from `2`, `"2"` or `"0.5"`. Raises UnitError."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UnitError(f"{_kind(value)} is not a number of cores")
    if isinstance(value, float):
        raise UnitError(f"{value} is a floating-point number", hint=f'write a share of a core as text: "{value}"')
    if isinstance(value, int):
        if value < 0:
            raise UnitError(f"{value} is negative")
        return value * 1000
    number, suffix = _split(value, Unit.MILLICORES)
    if suffix:
        raise UnitError(f"{quoted(value)} has a unit, but cores have none", hint='write 2, or a share such as "0.5"')
    exact = number * 1000
    if exact.denominator != 1:
        raise UnitError(f"{quoted(value)} is more precise than a thousandth of a core", hint="use at most 3 decimals")
    return int(exact)


def parse_times(value: object) -> int:
    """How often, from `10` or `"10"`. Raises UnitError."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= MAX_TEXT_CHARS:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        shown = quoted(value) if isinstance(value, str) else str(value) if isinstance(value, float) else _kind(value)
        raise UnitError(f"{shown} is not a whole number", hint="write how often, without a unit")
    if value < 0:
        raise UnitError(f"{value} is negative")
    return value


def render(unit: Unit, number: int) -> str:
    """The shortest exact text that `parse` reads back: `64MiB`, `1500ms`, `0.5`."""
    if unit is Unit.TIMES:
        return str(number)
    if unit is Unit.MILLICORES:
        return format(Decimal(number).scaleb(-3).normalize(), "f")
    known = UNITS[unit]
    if number == 0:
        return "0B" if unit is Unit.BYTES else "0s"
    whole = [f"{number // factor}{suffix}" for suffix, factor in known.items() if number % factor == 0]
    # Of equally short texts the binary unit, as the schema's own examples have it.
    return min(whole, key=lambda text: (len(text.rstrip("iBkKMGTmsh")), "i" not in text))


def _split(text: str, unit: Unit) -> tuple[Fraction, str]:
    stripped = text.strip()
    if len(text) > MAX_TEXT_CHARS:
        raise UnitError(f"{text[:20]!r}… is too long to be {_what(unit)}")
    match = _NUMBER.fullmatch(stripped)
    if match is None:
        raise UnitError(f"{quoted(text)} is not {_what(unit)}")
    sign, digits, suffix = match.groups()
    if sign == "-":
        raise UnitError(f"{quoted(text)} is negative")
    return Fraction(digits), suffix


def _unit_hint(suffix: str, known: dict[str, int]) -> str:
    folded = {name.lower(): name for name in known}
    near = folded.get(suffix.lower()) or _SIMILAR.get(suffix.lower())
    if near not in known:
        near = next(iter(get_close_matches(suffix, known, 1)), None)
    return f"did you mean {near}? units are {_list(known)}" if near else f"units are {_list(known)}"


def _list(known: dict[str, int]) -> str:
    return " ".join(known)


def _what(unit: Unit) -> str:
    return {Unit.BYTES: "a size", Unit.MILLISECONDS: "a duration", Unit.MILLICORES: "a number of cores"}[unit]


def _kind(value: object) -> str:
    names = {bool: "true or false", list: "a list", dict: "a table"}
    return names.get(type(value), "a date or time")
