"""Every field of the schema, changed, is a change that names it, with the class that the schema declares."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployer.language.fields import Field, Shape, bare, field_at, fields_of
from deployer.language.schema import Change, Definition, Table
from deployer.resolving.difference import FieldChange, FieldPath, differences, format_value
from tests.deployer.definition.definitions import definitions
from tests.deployer.definition.test_canonical import SHOP_WITH_SECRET as SHOP


def every_field(table: type[Table] = Definition, path: FieldPath = ()) -> Iterator[tuple[FieldPath, Field]]:
    """Every field of the schema with the path it has in SHOP. A table that is always there is its fields."""
    for field in fields_of(table).values():
        here = (*path, field.name)
        if not isinstance(field.default, Table):
            yield here, field
        if field.shape is Shape.TABLE:
            yield from every_field(field.table, here)
        elif field.shape is Shape.TABLES:
            yield from every_field(field.table, (*here, next(iter(getattr(SHOP, field.name)))))


FIELDS = list(every_field())


def other_value(field: Field, value: Any) -> Any:
    """A value of the field's type that differs from `value`."""
    match field.shape:
        case Shape.TABLE:
            return None
        case Shape.TABLES:
            return {**value, "added": next(iter(value.values()))}
        case Shape.MAP:
            return {**value, "added": "x"}
        case Shape.LIST:
            return (*value, "added")
    inner = bare(field.item)
    if get_origin(inner) is Literal:
        return next(choice for choice in get_args(inner) if choice != value)
    return value + 1 if isinstance(value, int) else f"{value}x"


def with_value(tree: Any, path: FieldPath, change: Any) -> Any:
    if not path:
        return change(tree)
    if isinstance(tree, dict):
        return {**tree, path[0]: with_value(tree[path[0]], path[1:], change)}
    return msgspec.structs.replace(tree, **{path[0]: with_value(getattr(tree, path[0]), path[1:], change)})


@pytest.mark.parametrize(("path", "field"), FIELDS, ids=[".".join(path) for path, _ in FIELDS])
def test_a_change_of_a_field_is_named(path: FieldPath, field: Field) -> None:
    changed = with_value(SHOP, path, lambda value: other_value(field, value))
    found = differences(SHOP, changed)
    named = (*path, "added") if field.shape in (Shape.MAP, Shape.TABLES) else path
    assert [(change.path, change.change) for change in found] == [(named, field.change)]
    assert str(found[0]).startswith(".".join(path[:2]))
    assert [change.path for change in differences(changed, SHOP)] == [named]


def test_every_field_of_the_schema_has_a_class_and_a_meaning() -> None:
    assert len(FIELDS) > 30
    for path, field in FIELDS:
        assert isinstance(field.change, Change)
        assert field.description
        assert field_at(path) == field


def test_a_first_definition_is_all_new() -> None:
    found = {change.path: change for change in differences(None, SHOP)}
    assert set(found) == {("name",), ("region", "fra"), ("host", "fra1"), ("process", "web"), ("volume", "files")} | {
        ("secret", "db")
    }
    assert found["process", "web"].change is Change.MOVE
    assert all(change.before is None for change in found.values())


@settings(max_examples=40)
@given(definitions(), definitions())
def test_differences_say_everything_that_differs_and_nothing_else(one: Definition, other: Definition) -> None:
    assert differences(one, one) == []
    there, back = differences(one, other), differences(other, one)
    assert sorted(change.path for change in there) == sorted(change.path for change in back)
    assert {c.path: (c.before, c.after) for c in there} == {c.path: (c.after, c.before) for c in back}
    rebuilt = msgspec.to_builtins(one)
    for change in there:
        set_at(rebuilt, change.path, msgspec.to_builtins(change.after))
    assert rebuilt == msgspec.to_builtins(other)


def set_at(tree: dict[str, Any], path: FieldPath, value: Any) -> None:
    for key in path[:-1]:
        tree = tree[key]
    whole = path[-1] in ("path", "ready")
    if value is None and not whole:
        del tree[path[-1]]
    else:
        tree[path[-1]] = value


@pytest.mark.parametrize(
    ("path", "before", "after", "text"),
    [
        (("process", "web", "memory"), 64 << 20, 1 << 30, "process.web.memory: 64MiB -> 1GiB"),
        (("process", "web", "cores"), 1000, 500, "process.web.cores: 1 -> 0.5"),
        (("process", "web", "ready", "within"), 10_000, 1500, "process.web.ready.within: 10s -> 1500ms"),
        (("process", "web", "hosts"), ("a",), ("a", "b"), 'process.web.hosts: ["a"] -> ["a", "b"]'),
        (("process", "web", "env", "LOG"), None, "info", 'process.web.env.LOG: added "info"'),
        (("process", "web", "config", "/etc/x"), "b3:1", None, 'process.web.config."/etc/x": removed "b3:1"'),
        (("process", "web"), None, SHOP.process["web"], "process.web: added"),
        (("process", "web"), SHOP.process["web"], None, "process.web: removed"),
    ],
)
def test_a_change_prints_in_the_definitions_own_units(path: FieldPath, before: Any, after: Any, text: str) -> None:
    assert str(FieldChange(path, Change.HOT, before, after)) == text


@given(st.integers(0, 1 << 50))
def test_a_size_is_shown_with_its_unit(size: int) -> None:
    assert format_value(field_at(("volume", "x", "size")), size)[-1] == "B"
