"""A definition as a whole, and where each of its values comes from: what `lowcloud show` prints.

Pure but for the files that were read already. What is shown is TOML that means the same again: fields in the order of
the schema, with their units, one value on a line, below the header of their table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from deployer.language import units
from deployer.language.fields import Field, Shape, fields_of
from deployer.language.schema import Definition, Table, Unit
from deployer.language.sources import Sources
from deployer.language.wording import toml_key, toml_text
from deployer.resolving.difference import FieldPath
from deployer.resolving.resolve import Resolved

DEFAULT = "default"
LOCK = "lock"


class Shown(NamedTuple):
    """One value of a definition."""

    path: FieldPath
    header: FieldPath
    """The table that it stands in."""
    text: str
    """As TOML writes it; "" for a table of which nothing is said but its name."""
    value: Any
    file: str
    """Where it was written; "" where nobody wrote it."""
    line: int
    column: int
    origin: str
    """For people: `shop.toml:12`, `default`, or what else it comes from."""

    @property
    def is_default(self) -> bool:
        return self.origin == DEFAULT


def values_of(definition: Definition, read: Sources, resolved: Resolved | None = None) -> Iterator[Shown]:
    """Every value of a definition, defaults too. With `resolved` in place of what was written: what names became."""
    names = _names_behind(definition, resolved) if resolved else {}
    whole = resolved.definition if resolved else definition
    yield from _Walk(read, names).table((), (), Definition, whole)


def as_toml(values: Iterator[Shown], *, why: bool) -> Iterator[str]:
    """The lines of a definition. `why`: each with its origin in a comment."""
    header: FieldPath = ()
    bare = False
    for one in values:
        if one.header != header:
            if not (bare and one.text == "" and one.header[:-1] == header[:-1]):
                yield ""
            header = one.header
            yield _line(f"[{'.'.join(map(toml_key, header))}]", one.origin if not one.text else "", why)
        bare = one.text == ""
        if one.text:
            key = ".".join(map(toml_key, one.path[len(header) :]))
            yield _line(f"{key} = {one.text}", one.origin, why)


def _line(text: str, origin: str, why: bool) -> str:
    return f"{text}  # {origin}" if why and origin else text


class _Walk:
    """Goes through a definition by its schema."""

    def __init__(self, read: Sources, names: Mapping[FieldPath, str]) -> None:
        self.read = read
        self.names = names
        """What a digest was called before it was one, by path."""

    def table(self, path: FieldPath, header: FieldPath, kind: type[Table], table: Table) -> Iterator[Shown]:
        tables: list[tuple[Field, Mapping[str, Table]]] = []
        for name, field in fields_of(kind).items():
            value = getattr(table, name)
            if field.shape is Shape.TABLES:
                tables.append((field, value))
            else:
                yield from self.field((*path, name), header, field, value)
        for field, entries in tables:
            for name, entry in entries.items():
                below = (*path, field.name, name)
                shown = list(self.table(below, below, field.table, entry))
                if all(one.is_default for one in shown):
                    yield self.shown(below, below, "", None)
                yield from shown

    def field(self, path: FieldPath, header: FieldPath, field: Field, value: Any) -> Iterator[Shown]:
        if value is None:
            return
        if field.shape is Shape.TABLE:
            yield from self.table(path, header, field.table, value)
        elif field.shape is Shape.MAP and value:
            for key, item in value.items():
                yield self.shown((*path, key), header, _toml(field, item), item)
        else:
            yield self.shown(path, header, _toml(field, value), value)

    def shown(self, path: FieldPath, header: FieldPath, text: str, value: Any) -> Shown:
        found = self.read.origin(path)
        name = self.names.get(path, "")
        if found is None:
            return Shown(path, header, text, value, "", 0, 0, name or DEFAULT)
        file = str(found.source.path)
        origin = f"{found.source.path.name}:{found.place.line}" + (f", {name}" if name else "")
        if found.source is not self.read.files[0]:
            origin = f"{_below(file, str(self.read.files[0].path.parent))}:{found.place.line}"
            origin += " (overlay)" if found.source.is_overlay else ""
            origin += f", {name}" if name else ""
        return Shown(path, header, text, value, file, found.place.line, found.place.column, origin)


def _below(file: str, directory: str) -> str:
    return file.removeprefix(directory.rstrip("/") + "/")


def _toml(field: Field, value: Any) -> str:
    """A value as a definition writes it, whole."""
    if isinstance(value, msgspec.Struct):
        raise TypeError(f"{field.name} is a table")
    unit = field.unit
    if unit is not None and isinstance(value, int):
        text = units.render(unit, value)
        return text if unit in (Unit.MILLICORES, Unit.TIMES) and text.isdigit() else toml_text(text)
    if isinstance(value, tuple):
        return f"[{', '.join(toml_text(item) for item in value)}]"
    if isinstance(value, dict):
        return "{}"
    return toml_text(value)


def _names_behind(written: Definition, resolved: Resolved) -> dict[FieldPath, str]:
    """What each digest of the resolved definition stands for."""
    found: dict[FieldPath, str] = {}
    for name, process in written.process.items():
        found["process", name, "binary"] = process.binary
        for guest_path, reference in process.config.items():
            found["process", name, "config", guest_path] = reference
    for name, secret in resolved.definition.secret.items():
        for host in secret.sealed:
            found["secret", name, "sealed", host] = "sealed by `lowcloud secret set`"
    return {path: "" if text.startswith("b3:") else text for path, text in found.items()}
