"""What differs between two definitions, field by field, and what each change means for what runs.

Derived from the schema: nothing here names a field, so none can be forgotten. A table that is there in only one of the
two (a process, a host, a volume) is one change with the class that the schema gives its table; inside tables that are
in both, every field, and every key of a map, is a change of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from deployer.language import units
from deployer.language.fields import Field, Shape, field_at, fields_of
from deployer.language.schema import Change, Definition, Table
from deployer.language.wording import dotted, quoted

FieldPath = tuple[str, ...]


class FieldChange(msgspec.Struct, frozen=True):
    """One difference: `("process", "web", "env", "LOG")`."""

    path: FieldPath
    change: Change
    before: Any
    """None where it was not there."""
    after: Any
    """None where it is no longer there."""

    def __str__(self) -> str:
        """One line for people: `process.web.memory: 64MiB -> 128MiB`."""
        field = field_at(self.path)
        before, after = (None if v is None else format_value(field, v) for v in (self.before, self.after))
        name = dotted(self.path)
        if before is None:
            return f"{name}: added" if after == "" else f"{name}: added {after}"
        if after is None:
            return f"{name}: removed" if before == "" else f"{name}: removed {before}"
        return f"{name}: {before} -> {after}"


def differences(old: Definition | None, new: Definition) -> list[FieldChange]:
    """Every change from `old` to `new`, in the order of the schema and then of the names. Without `old`, everything
    is new."""
    return list(_tables((), Definition, old, new))


def format_value(field: Field | None, value: Any) -> str:
    """A value as a definition would write it: 67108864 of a size is `64MiB`, text is quoted, a table is left out."""
    if isinstance(value, msgspec.Struct):
        return ""
    if value is None:
        return "none"
    unit = field.unit if field else None
    if unit is not None and isinstance(value, int):
        return units.render(unit, value)
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{dotted((k,))} = {format_value(field, v)}" for k, v in sorted(value.items())) + " }"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(format_value(field, item) for item in value) + "]"
    return str(value)


def _tables(path: FieldPath, table: type[Table], old: Table | None, new: Table | None) -> Iterator[FieldChange]:
    for name, field in fields_of(table).items():
        before, after = getattr(old, name, None), getattr(new, name, None)
        yield from _field((*path, name), field, before, after)


def _field(path: FieldPath, field: Field, before: Any, after: Any) -> Iterator[FieldChange]:
    if before == after:
        return
    if field.shape in (Shape.MAP, Shape.TABLES):
        olds, news = before or {}, after or {}
        for key in sorted(olds.keys() | news.keys()):
            yield from _item((*path, key), field, olds.get(key), news.get(key))
    elif field.shape is Shape.TABLE and before is not None and after is not None:
        yield from _tables(path, field.table, before, after)
    else:
        yield FieldChange(path, field.change_from(before, after), before, after)


def _item(path: FieldPath, field: Field, before: Any, after: Any) -> Iterator[FieldChange]:
    if before == after:
        return
    if field.shape is Shape.TABLES and before is not None and after is not None:
        yield from _tables(path, field.table, before, after)
    else:
        yield FieldChange(path, field.change_from(before, after), before, after)
