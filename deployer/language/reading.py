"""From parsed TOML to the schema's tables, with every mistake collected instead of the first.

A mistake is a `Finding`: the path of the offending key or value, what is wrong, and what to write instead. Tables
without a mistake are built even where others have some, so that the cross-checks can say what they see in one go.
"""

from __future__ import annotations

import posixpath
import re
import typing
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import msgspec

from deployer.language import units
from deployer.language.fields import Field, Shape, bare, fields_of, limits_of, metas_of, once_for_each, unit_of
from deployer.language.positions import Path
from deployer.language.schema import Definition, Table, Unit
from deployer.language.wording import dotted, kind_of, near_hint, quoted


class Finding(NamedTuple):
    """Something wrong (or, among warnings, odd) at one place of a definition."""

    path: Path
    message: str
    """A sentence without the path and without a full stop."""
    hint: str = ""
    of_key: bool = False
    """It is the key that is wrong, not its value."""


Values = dict[str, Any]

UNKNOWN_KEY = "unknown key"


def read_table(table: type[Table], raw: object, path: Path, findings: list[Finding]) -> Table | None:
    """A table of the schema. What cannot be read has findings; where a default can stand in for it, the table is made
    all the same, otherwise the result is None."""
    values, complete = read_values(table, raw, path, findings)
    return table(**values) if complete else None


def read_values(
    table: type[Table], raw: object, path: Path, findings: list[Finding], *, also: Iterable[str] = ()
) -> tuple[Values, bool]:
    """Those fields of a table that can be read, and whether all required ones could. `also`: further keys that could
    have been meant where one is unknown."""
    if not isinstance(raw, dict):
        findings.append(Finding(path, f"must be a table, not {kind_of(raw)}", _table_hint(path)))
        return {}, False
    fields = fields_of(table)
    findings.extend(
        Finding((*path, key), UNKNOWN_KEY, near_hint(key, [*fields, *also], "keys here"), of_key=True)
        for key in raw
        if key not in fields
    )
    values: Values = {}
    for field in fields.values():
        if field.name in raw:
            value = _read_field(field, raw[field.name], (*path, field.name), findings)
            if value is not _UNREADABLE:
                values[field.name] = value
        elif field.required:
            findings.append(Finding((*path, field.name), "is missing", _example_hint(field), of_key=True))
    return values, all(field.name in values for field in fields.values() if field.required)


def broken_tables(findings: list[Finding]) -> set[Path]:
    """The tables (`("process", "web")`) of which something could not be read. An unknown key does not count: what the
    other keys say is clear."""
    return {finding.path[:2] for finding in findings if finding.message != UNKNOWN_KEY}


def declared(table: str, definition: Definition, broken: Iterable[Path]) -> set[str]:
    """Names of a table of tables that are in the file, readable or not."""
    return set(getattr(definition, table)) | {str(path[1]) for path in broken if path[0] == table}


def read_value(annotation: Any, raw: object, path: Path, findings: list[Finding], *, example: str = "") -> Any:
    """One text, number or choice of the schema; `_UNREADABLE` where it is none."""
    if unit := unit_of(annotation):
        return _read_quantity(annotation, unit, raw, path, findings, example)
    if choices := _choices_of(annotation):
        return _read_choice(choices, raw, path, findings)
    if not isinstance(raw, str):
        findings.append(Finding(path, f"must be text, not {kind_of(raw)}", f"write it as {example}" if example else ""))
        return _UNREADABLE
    if complaint := text_complaint(annotation, raw):
        findings.append(Finding(path, *complaint))
        return _UNREADABLE
    return raw


def text_complaint(annotation: Any, text: str) -> tuple[str, str] | None:
    """What is wrong with a text by the limits of its type, and a hint."""
    if "\x00" in text:
        return "contains a NUL character", ""
    for meta, pattern in _text_rules(annotation):
        if meta.max_length is not None and len(text) > meta.max_length:
            return f"is {len(text)} characters long; at most {meta.max_length} are allowed", ""
        if meta.min_length is not None and len(text) < meta.min_length:
            return "is empty", ""
        if pattern is not None and not pattern.search(text):
            return f"{quoted(text)} is not allowed here", _pattern_hint(meta, text)
    return None


@once_for_each
def _choices_of(annotation: Any) -> tuple[str, ...]:
    inner = bare(annotation)
    return typing.get_args(inner) if typing.get_origin(inner) is Literal else ()


@once_for_each
def _text_rules(annotation: Any) -> list[tuple[msgspec.Meta, re.Pattern[str] | None]]:
    """What limits a text of this type."""
    metas = [meta for part in _with_optional(annotation) for meta in metas_of(part)]
    return [(meta, re.compile(meta.pattern) if meta.pattern is not None else None) for meta in metas]


class _Unreadable:
    """Stands for a value that could not be read; there is a finding for it."""


_UNREADABLE: Any = _Unreadable()


def _read_field(field: Field, raw: object, path: Path, findings: list[Finding]) -> Any:
    match field.shape:
        case Shape.VALUE:
            return read_value(field.annotation, raw, path, findings, example=field.example)
        case Shape.LIST:
            return _read_list(field, raw, path, findings)
        case Shape.TABLE:
            made = read_table(field.table, raw, path, findings)
            return _UNREADABLE if made is None else made
        case Shape.MAP | Shape.TABLES:
            return _read_names(field, raw, path, findings)


def _read_list(field: Field, raw: object, path: Path, findings: list[Finding]) -> Any:
    if not isinstance(raw, list):
        findings.append(Finding(path, f"must be a list, not {kind_of(raw)}", _example_hint(field)))
        return _UNREADABLE
    if not raw and any(meta.min_length for meta in metas_of(field.annotation)):
        findings.append(Finding(path, "is empty", _example_hint(field)))
        return _UNREADABLE
    items = [read_value(field.item, item, (*path, index), findings) for index, item in enumerate(raw)]
    return _UNREADABLE if any(item is _UNREADABLE for item in items) else tuple(items)


def _read_names(field: Field, raw: object, path: Path, findings: list[Finding]) -> Any:
    """Names to values, or to tables; of these, the ones that can be read."""
    if not isinstance(raw, dict):
        tables = field.shape is Shape.TABLES
        hint = f"write [{field.name}.NAME], one table for each" if tables else _example_hint(field)
        findings.append(Finding(path, f"must be a table of names, not {kind_of(raw)}", hint))
        return {} if tables else _UNREADABLE
    made: dict[str, Any] = {}
    for name, value in raw.items():
        if complaint := text_complaint(field.key, name):
            findings.append(Finding((*path, name), *complaint, of_key=True))
        elif field.shape is Shape.TABLES:
            table = read_table(field.table, value, (*path, name), findings)
            if table is not None:
                made[name] = table
        else:
            item = read_value(field.item, value, (*path, name), findings)
            if item is not _UNREADABLE:
                made[name] = item
    return made


def _read_quantity(annotation: Any, unit: Unit, raw: object, path: Path, findings: list[Finding], example: str) -> Any:
    try:
        number = units.parse(unit, raw)
    except units.UnitError as error:
        hints = [error.hint, f"for example {path[-1]} = {example}" if example else ""]
        findings.append(Finding(path, str(error), "; ".join(h for h in hints if h)))
        return _UNREADABLE
    least, greatest = limits_of(annotation)
    shown = raw if isinstance(raw, int) else quoted(str(raw))
    if least is not None and number < least:
        findings.append(Finding(path, f"{shown} is too little", f"the least is {units.render(unit, least)}"))
        return _UNREADABLE
    if greatest is not None and number > greatest:
        findings.append(Finding(path, f"{shown} is too much", f"the most is {units.render(unit, greatest)}"))
        return _UNREADABLE
    return number


def _read_choice(choices: tuple[str, ...], raw: object, path: Path, findings: list[Finding]) -> Any:
    if raw in choices:
        return raw
    shown = quoted(raw) if isinstance(raw, str) else kind_of(raw)
    hint = near_hint(raw, choices, "choices") if isinstance(raw, str) else ""
    findings.append(Finding(path, f"must be one of {', '.join(quoted(c) for c in choices)}, not {shown}", hint))
    return _UNREADABLE


def _with_optional(annotation: Any) -> list[Any]:
    """The type and, where it is `X | None`, the X with its own declarations."""
    inner = bare(annotation)
    return [annotation, inner] if inner is not annotation else [annotation]


def _pattern_hint(meta: msgspec.Meta, text: str) -> str:
    hint = meta.description or ""
    for candidate in (re.sub(r"[^a-z0-9-]+", "-", text.lower()).strip("-"), posixpath.normpath("/" + text.lstrip("/"))):
        if meta.pattern and re.search(meta.pattern, candidate):
            return f"{hint}; for example {candidate}" if hint else f"for example {candidate}"
    return hint


def _example_hint(field: Field) -> str:
    return f"for example {field.name} = {field.example}" if field.example else ""


def _table_hint(path: Path) -> str:
    return f"write [{dotted(path)}] and its keys below it" if path else ""
