"""Writes the definition's reference (`docs/definition.md`) and its JSON Schema from the schema's declarations.

`python -m deployer.language.reference` rewrites both; a test fails while they are stale. Editors that know JSON Schema
complete and check definitions with `docs/definition.schema.json`.
"""

from __future__ import annotations

import json
import sys
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from deployer.language import units
from deployer.language.definition import MAX_DEFINITION_BYTES
from deployer.language.fields import Field, Shape, bare, fields_of, limits_of, metas_of, unit_of
from deployer.language.schema import MEANING_OF_CHANGE, Definition, Head, Table, Unit
from deployer.language.sources import MAX_FILES, MAX_INCLUDE_DEPTH

REFERENCE: Final = "definition.md"
JSON_SCHEMA: Final = "definition.schema.json"

EXAMPLE: Final = """\
name = "shop"

[region.fra]

[host.fra1]
region = "fra"
address = "10.0.0.1:7400"
cores = 8
memory = "32GiB"
disk = "400GiB"

[process.web]
binary = "build/web.wasm"                # a path, or b3:<hash>
args = ["--port", "8080"]
env = { LOG = "info" }
hosts = ["fra1"]
config = { "/etc/web.toml" = "conf/web.toml" }
listen = { http = "0.0.0.0:8080/tcp" }
connect = { kv = "kv@fra1:6379/tcp" }    # nothing else is reachable
ready = { tcp = "http", within = "10s" }
secret = { "/run/secrets/db" = "db-password" }

[process.kv]
binary = "build/kv.wasm"
hosts = ["fra1"]
cores = "0.5"
listen = { kv = "host:6379/tcp" }        # the host's own address
volume = { "/data" = "kv-data" }

[volume.kv-data]
size = "1GiB"
"""

_INTRODUCTION: Final = f"""\
# The definition

*Generated from `deployer/language/schema.py` by `python -m deployer.language.reference`; do not edit.*

One TOML file names everything: regions, hosts, processes with what they may use, and volumes. There are no templates
and no expressions, and nothing is decided behind your back: a process runs on the hosts that its `hosts` names.

```toml
{EXAMPLE}```

`lowcloud resolve` turns every file name into a digest and writes `lowcloud.lock` beside the definition. The canonical
form of the result (`docs/formats.md`) has a digest too, and that digest is the version.

- Every key is known: an unknown one is an error that names the nearest.
- All mistakes are reported at once, each with file, line and column, and with what to write instead.
- File names are relative to the definition file, also in files that it includes. Files are UTF-8, all of them together
  at most {MAX_DEFINITION_BYTES >> 20} MiB large.
- `lowcloud fmt` lays the files out in one way, `lowcloud show --why` prints the whole with where each value comes from.
- For completion and checks in an editor there is a JSON Schema, `{JSON_SCHEMA}`, beside this file.
"""

_FILES: Final = f"""\
## Several files, and overlays

`include = ["hosts.toml", "regions/eu.toml"]`, at the top of a file, adds what those files say. A path is relative to
the file that it stands in and leads to a file in the definition's directory or below. An included file may include
more, up to {MAX_INCLUDE_DEPTH} deep and {MAX_FILES} files in all. Each region, host, process, volume and secret is
written in one file: one that is in two is an error that names both places. A file that includes itself, or that is
included twice, is an error.

An **overlay** says what is different somewhere else: `lowcloud plan -e staging` reads `shop.toml` and what it includes,
then `shop.staging.toml` beside it.

```toml
remove = ["host.ams1", "process.web.env.LOG"]   # taken away first: keys as TOML writes them

[process.web]
hosts = ["fra1"]                                # a value, or a list, replaces
env.TRACE = "1"                                 # tables are merged key by key
```

A table is replaced as a whole by removing it and writing it again. An overlay includes nothing, and there is one at a
time. It has a lock of its own, `shop.staging.lock`, a history of its own, the ref `staging`, and secrets of its own;
`-e staging` chooses all of them, for every verb. So give its hosts addresses of their own, or remove them: an agent
runs what was applied last, from whichever history, and you are warned where two name the same one.

## Secrets

A process names a secret, never its value:

```toml
[process.web.secret]
"/run/secrets/db" = "db-password"
```

`lowcloud secret set db-password < FILE` seals the value to the key of each host that needs it; only that host can open
it (docs/formats.md). `lowcloud resolve` writes the hash of what was sealed into the lock, and a release has that hash.
The guest finds a file that it can only read and that lies in memory. Setting a secret again changes the hash: a
`restart`, on the hosts that it was set for. A directory that holds a secret holds nothing else.
"""

_RULES: Final = """\
## Rules between the tables

- A host's `region`, a process's `hosts` and its volumes must be in the file. No host may be called `host`.
- The cores, memory and disk of the processes on a host, volumes included, are at most what the host has.
- No two listeners of one host share address, port and protocol, and none has the agent's. Hosts with the same address
  share their ports; hosts with loopback addresses are taken to be one machine.
- A connection to a process names a host that it runs on and a port that it listens on, at an address that can be
  reached from there: a loopback listener only from the same machine.
- A volume has one process and one path, and its process runs on one host.
- Configuration files, secrets, volumes and scratch space of a process do not lie in one another, a directory that holds
  a secret holds nothing else, and guest paths have no `.`, `..`, `//` or `/` at the end.
- A `gpu` is refused when a plan is made, because no host offers one yet.
- `ready` names a TCP listener of the process (`tcp`, without which there is no `path`), a command (`run`), or both.
- Environment variables do not begin with `LOWCLOUD_`.

What a binary imports is compared with what its process is given. These are warnings, because an interpreter imports
every interface whether its script uses it or not: sockets without a listener or connection, outgoing HTTP without a
connection, a listener without sockets, files or secrets without a file system, interfaces that hosts do not offer, a
library where a program is needed.
"""

_ENDPOINTS: Final = """\
## Addresses

| text | meaning |
|---|---|
| `0.0.0.0:8080/tcp`, `[::]:8080/tcp` | every IPv4 (IPv6) address of the host |
| `10.0.0.1:53/udp`, `[fd00::1]:53/udp` | one address |
| `host:8080/tcp` | the address of the host that the process runs on, from its `address` |
| `kv@fra1:6379/tcp` | for `connect`: the listener at port 6379 of process `kv` on host `fra1` |
| `kv@host:6379/tcp` | for `connect`: the same on the host that the process itself runs on |

Names are never looked up.
"""


def reference() -> str:
    """The text of `docs/definition.md`."""
    parts = [_INTRODUCTION, *_table_sections(Definition, "", set()), _head(), _FILES]
    parts += [_units(), _ENDPOINTS, _changes(), _RULES]
    return "\n".join(parts)


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a definition as written."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "lowcloud definition",
        **_whole_schema(),
    }


def write(directory: Path) -> None:
    """Write both files."""
    for name, text in texts().items():
        (directory / name).write_text(text, encoding="utf-8")


def texts() -> dict[str, str]:
    """File name to text."""
    return {REFERENCE: reference(), JSON_SCHEMA: json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"}


# --- the reference --------------------------------------------------------------------------------------------------


def _table_sections(table: type[Table], path: str, seen: set[type[Table]]) -> Iterator[str]:
    """A section for a table, then those of the tables in it."""
    if table in seen:
        return
    seen.add(table)
    fields = fields_of(table)
    title = f"`[{path}]`" if path else "At the top"
    lines = [f"## {title}", "", (table.__doc__ or "").strip(), ""]
    lines += ["| key | value | default | a change | meaning |", "|---|---|---|---|---|"]
    lines += [_row(field, path) for field in fields.values()]
    yield "\n".join(lines) + "\n"
    for field in fields.values():
        if field.shape in (Shape.TABLE, Shape.TABLES):
            below = f"{path}.{field.name}" if path else field.name
            yield from _table_sections(field.table, below + (".NAME" if field.shape is Shape.TABLES else ""), seen)


def _row(field: Field, path: str) -> str:
    key = f"`{field.name}`"
    if field.shape in (Shape.TABLE, Shape.TABLES):
        below = f"{path}.{field.name}" if path else field.name
        value = f"`[{below}{'.NAME' if field.shape is Shape.TABLES else ''}]`"
        if field.shape is Shape.TABLE:
            value += f", or `{field.example}`"
        default = ""
    else:
        value = f"`{field.example}`"
        default = "required" if field.required else _written_default(field)
    return f"| {key} | {value}{_limits(field)} | {default} | {_change(field)} | {field.description} |"


def _change(field: Field) -> str:
    return f"{field.change.value}; less: {field.smaller.value}" if field.smaller else field.change.value


def _written_default(field: Field) -> str:
    value = field.default
    if value is None:
        return "none"
    if field.unit in (Unit.MILLICORES, Unit.TIMES):
        return f"`{units.render(field.unit, value)}`"
    if field.unit is not None:
        return f'`"{units.render(field.unit, value)}"`'
    if value in ((), {}):
        return "none"
    return f'`"{value}"`' if value != "" else "none"


def _limits(field: Field) -> str:
    choices = typing.get_args(bare(field.item)) if typing.get_origin(bare(field.item)) is Literal else ()
    if choices:
        return " — one of " + ", ".join(f"`{choice}`" for choice in choices)
    least, greatest = limits_of(field.item)
    if field.unit is None or least is None or greatest is None:
        return ""
    low, high = (units.render(field.unit, limit) for limit in (least, greatest))
    if field.unit in (Unit.MILLISECONDS, Unit.TIMES):
        return f" — {low} to {high}"
    return f" — at least {low}" if least else ""


def _units() -> str:
    lines = ["## Units", "", 'A number with a unit is text. It is exact or refused: `"0.5B"` is an error.', ""]
    lines += ["| for | units |", "|---|---|"]
    for unit, known in units.UNITS.items():
        lines.append(f"| {unit.value} | {', '.join(f'`{name}`' for name in known)} |")
    lines.append('| cores | none: `2`, or a share of one with at most 3 decimals as text: `"0.5"` |')
    return "\n".join(lines) + "\n"


def _changes() -> str:
    lines = ["## What a change means", "", "| class | meaning |", "|---|---|"]
    lines += [f"| {change.value} | {meaning} |" for change, meaning in MEANING_OF_CHANGE.items()]
    return "\n".join(lines) + "\n"


def _head() -> str:
    lines = ["## In each file", "", (Head.__doc__ or "").strip(), ""]
    lines += ["| key | value | default | a change | meaning |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *(_row(field, "") for field in fields_of(Head).values())]) + "\n"


# --- the JSON Schema ------------------------------------------------------------------------------------------------


def _whole_schema() -> dict[str, Any]:
    """A definition, with what a file may say of itself."""
    schema = _table_schema(Definition)
    schema["properties"] = _table_schema(Head)["properties"] | schema["properties"]
    return schema


def _table_schema(table: type[Table]) -> dict[str, Any]:
    fields = fields_of(table)
    schema: dict[str, Any] = {"description": (table.__doc__ or "").strip(), "type": "object"}
    schema["properties"] = {field.name: _field_schema(field) for field in fields.values()}
    required = [field.name for field in fields.values() if field.required]
    return schema | ({"required": required} if required else {}) | {"additionalProperties": False}


def _field_schema(field: Field) -> dict[str, Any]:
    match field.shape:
        case Shape.VALUE:
            schema = _value_schema(field.annotation)
        case Shape.LIST:
            schema = {"type": "array", "items": _value_schema(field.item)}
            if field.required:
                schema["minItems"] = 1
        case Shape.MAP:
            schema = {"type": "object", "propertyNames": _value_schema(field.key)}
            schema["additionalProperties"] = _value_schema(field.item)
        case Shape.TABLE:
            schema = _table_schema(field.table)
        case Shape.TABLES:
            schema = {"type": "object", "propertyNames": _value_schema(field.key)}
            schema["additionalProperties"] = _table_schema(field.table)
    schema["description"] = field.description
    if field.example:
        schema["examples"] = [tomllib.loads(f"x = {field.example}")["x"]]
    return schema


def _value_schema(annotation: Any) -> dict[str, Any]:
    unit = unit_of(annotation)
    if unit is Unit.MILLICORES:
        share = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]{1,3})?$"}
        return {"anyOf": [{"type": "integer", "minimum": 0}, share]}
    if unit is Unit.TIMES:
        least, greatest = limits_of(annotation)
        return {"type": "integer", "minimum": least, "maximum": greatest}
    if unit is not None:
        return {"type": "string", "pattern": rf"^[0-9]+(\.[0-9]+)? ?({'|'.join(units.UNITS[unit])})$"}
    inner = bare(annotation)
    if typing.get_origin(inner) is Literal:
        return {"enum": list(typing.get_args(inner))}
    schema: dict[str, Any] = {"type": "string"}
    for meta in (*metas_of(annotation), *metas_of(inner)):
        schema |= _text_schema(meta)
    return schema


def _text_schema(meta: msgspec.Meta) -> dict[str, Any]:
    limits: dict[str, Any] = {"minLength": meta.min_length, "maxLength": meta.max_length}
    # Python's end of text has another name in the patterns of JSON Schema.
    limits |= {"pattern": meta.pattern.replace("\\Z", "$") if meta.pattern else None, "description": meta.description}
    return {name: limit for name, limit in limits.items() if limit is not None}


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "docs")
