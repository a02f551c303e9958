"""The schema as data: what the declarations of `deployer.language.schema` say about each field of a table.

Reading a file, comparing two definitions, printing a value and writing the reference all walk these descriptions, so
that none of them names a field.
"""

from __future__ import annotations

import enum
import functools
import types
import typing
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import Meta

from deployer.language.schema import Change, Definition, Table, Unit


class Shape(enum.Enum):
    """How a field's value is built."""

    VALUE = "value"
    """One text, number or choice."""
    LIST = "list"
    """A list of such values."""
    MAP = "map"
    """Names to such values."""
    TABLE = "table"
    """A table of the schema, perhaps absent."""
    TABLES = "tables"
    """Names to tables of the schema."""


class Field(NamedTuple):
    """One field of a table."""

    name: str
    shape: Shape
    annotation: Any
    """The whole annotated type, as `msgspec.convert` takes it."""
    item: Any
    """The annotated type of one value (VALUE: the field itself), or the table (TABLE, TABLES)."""
    key: Any
    """The annotated type of the names of a MAP or of TABLES."""
    description: str
    change: Change
    example: str
    required: bool
    default: Any
    """None where it is required."""
    later: bool
    """The canonical form leaves it out where it has its default."""
    smaller: Change | None
    """What a smaller number means, where that is not `change`."""

    def change_from(self, before: Any, after: Any) -> Change:
        """What it means that the value changes so; None stands for one that is not there."""
        less = isinstance(before, int) and isinstance(after, int) and after < before
        return self.smaller if less and self.smaller else self.change

    def change_back(self, change: Change) -> Change:
        """What it means to take a change of this class back."""
        if self.smaller is None or change not in (self.change, self.smaller):
            return change
        return self.change if change is self.smaller else self.smaller

    @property
    def unit(self) -> Unit | None:
        return unit_of(self.item)

    @property
    def table(self) -> type[Table]:
        if not is_table(self.item):
            raise TypeError(f"{self.name} is not a table")
        return typing.cast("type[Table]", self.item)


Result = TypeVar("Result")


def once_for_each(ask: Callable[[Any], Result]) -> Callable[[Any], Result]:
    """A question about a type of the schema, asked once: definitions have a million values, but few types. Such types
    have no hash; what was asked about is kept, so that its identity stays its own."""
    known: dict[int, tuple[Any, Result]] = {}

    @functools.wraps(ask)
    def answer(annotation: Any) -> Result:
        found = known.get(id(annotation))
        if found is None:
            found = known[id(annotation)] = annotation, ask(annotation)
        return found[1]

    return answer


def is_table(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Table)


@once_for_each
def metas_of(annotation: Any) -> tuple[Meta, ...]:
    """The declarations attached to a type, the innermost first."""
    return tuple(m for m in getattr(annotation, "__metadata__", ()) if isinstance(m, Meta))


@once_for_each
def bare(annotation: Any) -> Any:
    """The type without its declarations, and without `| None`."""
    inner = annotation.__origin__ if hasattr(annotation, "__metadata__") else annotation
    if isinstance(inner, types.UnionType) or typing.get_origin(inner) is typing.Union:
        present = [a for a in typing.get_args(inner) if a is not type(None)]
        return present[0] if len(present) == 1 else inner
    return inner


@once_for_each
def unit_of(annotation: Any) -> Unit | None:
    for meta in metas_of(annotation):
        if unit := (meta.extra or {}).get("unit"):
            return Unit(unit)
    return None


@once_for_each
def limits_of(annotation: Any) -> tuple[int | None, int | None]:
    """The least and the greatest number that a field takes."""
    least = greatest = None
    for meta in metas_of(annotation):
        least = meta.ge if meta.ge is not None else least
        greatest = meta.le if meta.le is not None else greatest
    return typing.cast("tuple[int | None, int | None]", (least, greatest))


@functools.cache
def fields_of(table: type[Table]) -> dict[str, Field]:
    """A table's fields by name, in the order of their declaration."""
    hints = typing.get_type_hints(table, include_extras=True)
    return {info.name: _describe(info.name, hints[info.name], info) for info in msgspec.structs.fields(table)}


def _describe(name: str, annotation: Any, info: msgspec.structs.FieldInfo) -> Field:
    declared = next(m for m in metas_of(annotation) if "change" in (m.extra or {}))
    extra = declared.extra or {}
    inner = bare(annotation)
    shape, item, key = _shape(annotation, inner)
    default = info.default if info.default is not msgspec.NODEFAULT else None
    if info.default_factory is not msgspec.NODEFAULT:
        default = info.default_factory()
    return Field(
        name=name,
        shape=shape,
        annotation=annotation,
        item=item,
        key=key,
        description=declared.description or "",
        change=extra["change"],
        example=extra["example"],
        required=info.required,
        default=default,
        later=extra["later"],
        smaller=extra["smaller"],
    )


def _shape(annotation: Any, inner: Any) -> tuple[Shape, Any, Any]:
    if is_table(inner):
        return Shape.TABLE, inner, None
    origin, arguments = typing.get_origin(inner), typing.get_args(inner)
    if origin is dict:
        key, item = arguments
        return (Shape.TABLES if is_table(item) else Shape.MAP), item, key
    if origin is tuple:
        return Shape.LIST, arguments[0], None
    return Shape.VALUE, annotation, None


def field_at(path: tuple[str | int, ...], table: type[Table] = Definition) -> Field | None:
    """The field that a path of a definition lies in: for `("process", "web", "env", "LOG")` the field `env` of a
    process. None for a path that the schema does not have."""
    field = fields_of(table).get(str(path[0])) if path else None
    if field is None:
        return None
    below = path[2:] if field.shape is Shape.TABLES else path[1:]
    if below and field.shape in (Shape.TABLE, Shape.TABLES):
        return field_at(below, field.table)
    return field
