"""The reference and the JSON Schema say what the schema says."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deployer.language import reference
from deployer.language.fields import Field, Shape, fields_of
from deployer.language.reading import Finding, read_table, read_values
from deployer.language.schema import Change, Definition, Table

DOCS = Path(__file__).parents[3] / "docs"


def every_field(table: type[Table]) -> Iterator[tuple[type[Table], Field]]:
    for field in fields_of(table).values():
        yield table, field
        if field.shape in (Shape.TABLE, Shape.TABLES):
            yield from every_field(field.table)


FIELDS = list(every_field(Definition))


@pytest.mark.parametrize("name", [reference.REFERENCE, reference.JSON_SCHEMA])
def test_the_files_in_docs_are_up_to_date(name: str) -> None:
    written = (DOCS / name).read_text(encoding="utf-8")
    assert written == reference.texts()[name], "run `python -m deployer.language.reference`"


def test_writing_makes_both_files(tmp_path: Path) -> None:
    reference.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(reference.texts())


@pytest.mark.parametrize(("table", "field"), FIELDS, ids=[f"{t.__name__}.{f.name}" for t, f in FIELDS])
def test_every_example_is_valid(table: type[Table], field: Field) -> None:
    if field.shape is Shape.TABLES:
        assert field.example == ""
        return
    findings: list[Finding] = []
    raw = tomllib.loads(f"{field.name} = {field.example}")
    values, _ = read_values(table, raw, (), findings)
    assert field.name in values or field.shape is Shape.TABLE
    assert all(finding.message == "is missing" for finding in findings)
    schema = reference.json_schema()
    assert matches(raw[field.name], schema_of(schema, field), optional_parts=True)


def test_every_field_is_in_the_reference_with_its_class() -> None:
    text = reference.reference()
    for _, field in FIELDS:
        change = field.change.value + (f"; less: {field.smaller.value}" if field.smaller else "")
        assert re.search(rf"\| `{field.name}` \| .* \| {change} \| {re.escape(field.description)} \|", text)
    for change in Change:
        assert f"| {change.value} |" in text


def test_the_json_schema_takes_the_example_and_refuses_mistakes() -> None:
    schema = reference.json_schema()
    example = tomllib.loads(reference.EXAMPLE)
    assert matches(example, schema)
    for broken in (
        {**example, "nme": 1},
        {key: value for key, value in example.items() if key != "name"},
        {**example, "volume": {"v": {"size": "1"}}},
        {**example, "volume": {"V": {"size": "1B"}}},
        {**example, "process": {"web": {"binary": "x", "hosts": []}}},
        {**example, "process": {"web": {"binary": "x", "hosts": ["a"], "restart": "maybe"}}},
        {**example, "process": {"web": {"binary": "x", "hosts": ["a"], "config": {"/a/../b": "x"}}}},
    ):
        assert not matches(broken, schema)


def test_what_the_json_schema_takes_is_what_is_read() -> None:
    findings: list[Finding] = []
    assert read_table(Definition, tomllib.loads(reference.EXAMPLE), (), findings) is not None
    assert findings == []


def schema_of(schema: dict[str, Any], wanted: Field) -> dict[str, Any]:
    """The part of the JSON Schema that stands for a field."""
    for name, part in schema.get("properties", {}).items():
        if name == wanted.name and part.get("description") == wanted.description:
            return dict(part)
        inner = part.get("additionalProperties")
        for below in (part, inner if isinstance(inner, dict) else {}):
            found = schema_of(below, wanted)
            if found:
                return found
    return {}


def matches(value: Any, schema: dict[str, Any], *, optional_parts: bool = False) -> bool:
    """A validator for the parts of JSON Schema that are used."""
    if "anyOf" in schema:
        return any(matches(value, part) for part in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    match schema["type"]:
        case "string":
            return isinstance(value, str) and bool(re.search(schema.get("pattern", ""), value))
        case "integer":
            return isinstance(value, int) and value >= schema["minimum"]
        case "array":
            whole = isinstance(value, list) and len(value) >= schema.get("minItems", 0)
            return whole and all(matches(item, schema["items"]) for item in value)
    known = schema.get("properties", {})
    more = schema["additionalProperties"]
    if not isinstance(value, dict) or (not optional_parts and not set(schema.get("required", ())) <= set(value)):
        return False
    names = schema.get("propertyNames", {})
    return all(
        (name in known and matches(inner, known[name]))
        or (name not in known and bool(more) and matches(name, names) and matches(inner, more))
        for name, inner in value.items()
    )
