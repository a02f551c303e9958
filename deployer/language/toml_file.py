"""TOML text to values, with every complaint at its line and column, and without the costs that hostile text can cause.

`tomllib` decides what is TOML; `deployer.language.positions` finds the places that it does not tell, such as both of a
name that is defined twice.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path as FilePath
from typing import Any

from deployer.language.positions import MAX_KEY_PARTS, Path, Place, scan
from deployer.language.problems import DefinitionInvalid, Problem
from deployer.language.wording import dotted


def text_of(data: bytes, path: FilePath) -> str:
    """A file's text. Raises DefinitionInvalid where it is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line = before.count(b"\n") + 1
        column = len(before[before.rfind(b"\n") + 1 :].decode(errors="replace")) + 1
        message = f"this is not UTF-8: byte 0x{data[error.start]:02x}"
        raise DefinitionInvalid([Problem(str(path), line, column, message, "save the file as UTF-8")]) from None


def document_of(text: str, path: FilePath) -> dict[str, Any]:
    """The file's values by tomllib, after a look at what would cost it too much. Raises DefinitionInvalid."""
    if any(line.count(".") >= MAX_KEY_PARTS for line in text.split("\n")):
        # A dotted key costs tomllib the square of its length; dots in a string are nobody's business.
        stopped = scan(text).stopped
        if stopped is not None:
            raise DefinitionInvalid([Problem(str(path), *stopped.place, str(stopped))])
    try:
        document = tomllib.loads(text)
    except RecursionError:
        stopped = scan(text).stopped
        place = stopped.place if stopped else Place(1, 1)
        message = str(stopped) if stopped else "nested too deeply"
        raise DefinitionInvalid([Problem(str(path), *place, message)]) from None
    except ValueError as error:
        raise DefinitionInvalid(_syntax_problems(error, text, path)) from None
    if _LONG_NUMBER.search(text):
        _refuse_huge_numbers(document, text, path)
    return document


MAX_NUMBER_BITS = 64
"""What every reader of TOML can hold. A number of many thousand digits cannot even be shown in a message."""
_LONG_NUMBER = re.compile(r"0[xob][0-9A-Fa-f_]{100}|[0-9][0-9_]{1000}")


def _refuse_huge_numbers(document: dict[str, Any], text: str, path: FilePath) -> None:
    """Raises DefinitionInvalid with every number that has more than `MAX_NUMBER_BITS`."""
    positions = scan(text)
    problems: list[Problem] = []
    remaining: list[tuple[Path, Any]] = [((), document)]
    while remaining:
        where, value = remaining.pop()
        if isinstance(value, dict):
            remaining += [((*where, key), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            remaining += [((*where, index), inner) for index, inner in enumerate(value)]
        elif isinstance(value, int) and value.bit_length() > MAX_NUMBER_BITS:
            problems.append(Problem(str(path), *positions.find(where, of_key=False), f"{dotted(where)}: {_TOO_LONG}"))
    if problems:
        raise DefinitionInvalid(sorted(problems))


_TOO_LONG = "the number is too large"
_TOML_PLACE = re.compile(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", re.DOTALL)
_ABOUT_DUPLICATES = ("Cannot ", "Duplicate ")
"""How tomllib's messages about names that are defined twice begin."""


def _syntax_problems(error: ValueError, text: str, path: FilePath) -> list[Problem]:
    """Names that are defined twice, each with both places; otherwise what tomllib says."""
    positions = scan(text)
    duplicates = [
        Problem(
            str(path),
            *one.second,
            f"{dotted(one.path)} is defined twice; the first time in line {one.first.line}, column {one.first.column}",
            "remove one of them, or rename it",
        )
        for one in positions.duplicates
    ]
    match = _TOML_PLACE.fullmatch(str(error))
    message = match.group(1) if match else str(error)
    if not match and (number := _LONG_NUMBER.search(text)):  # Python itself refuses to read so many decimal digits
        line = text.count("\n", 0, number.start()) + 1
        place = Place(line, number.start() - text.rfind("\n", 0, number.start()))
        return [*duplicates, Problem(str(path), *place, f"this is not TOML: {_TOO_LONG}")]
    if not duplicates or not message.startswith(_ABOUT_DUPLICATES):
        place = Place(text.count("\n") + 1, len(text) - text.rfind("\n"))
        if match and match.group(2):
            place = Place(int(match.group(2)), int(match.group(3)))
        elif not match and positions.stopped is not None:
            place = positions.stopped.place
        message = f"this is not TOML: {message[:1].lower()}{message[1:]}"
        return [*duplicates, Problem(str(path), *place, message)]
    if positions.stopped is not None:
        stopped = positions.stopped
        duplicates.append(Problem(str(path), *stopped.place, f"this is not TOML: {stopped}"))
    return duplicates
