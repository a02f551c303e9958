"""Drift: where what runs differs from what should run, field by field. Computed from state, never from history.

The same comparison that plans an apply (specification against specification), told in the words of the definition.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from agent.api.facts import ProcessState
from agent.api.processes import Endpoint, ProcessSpec, spec_digest
from deployer.applying.observe import HostState, Observed, Running
from deployer.language import units
from deployer.language.fields import fields_of
from deployer.language.schema import Definition, Process, Unit
from deployer.planning.planners.needs import definition_field
from deployer.resolving.specs import specs_of, volumes_of

NOTHING = ""
UNWELL = (ProcessState.BACKOFF, ProcessState.FAILED)
LOOP_STARTS = 3
"""So many starts in a row without a good run are a crash loop, also while the next one runs."""


class Drift(msgspec.Struct, frozen=True):
    """One thing that is not as it should be."""

    host: str
    process: str
    """Empty where it concerns the host as a whole."""
    field: str
    """As in the definition (`args`, `config./etc/web.toml`); `host`, `process` (there, or not), `state`, or
    `volume.NAME`."""
    runs: str
    """Empty: nothing, or it is not there."""
    should: str
    """Empty: nothing should."""


def drift(definition: Definition | None, observed: Observed) -> list[Drift]:
    """Every difference between a definition (None: nothing should run) and what hosts say, sorted."""
    specs = specs_of(definition) if definition else {}
    volumes = volumes_of(definition) if definition else {}
    found = [Drift(host, "", "host", f"unknown: {why}", "reachable") for host, why in observed.unreachable.items()]
    for host, state in observed.hosts.items():
        found += _processes(host, specs.get(host, {}), state)
        found += _volumes(host, volumes.get(host, {}), state)
    return sorted(found, key=lambda row: (row.host, row.process, row.field))


def _processes(host: str, wanted: dict[str, ProcessSpec], state: HostState) -> Iterator[Drift]:
    for name in sorted({*wanted, *state.processes}):
        spec, runs = wanted.get(name), state.processes.get(name)
        if runs is None:
            yield Drift(host, name, "process", NOTHING, spec_digest(wanted[name]))
        elif spec is None:
            yield Drift(host, name, "process", runs.digest, NOTHING)
        else:
            if runs.spec != spec:
                yield from _fields(host, spec, runs)
            if runs.state in UNWELL or runs.starts >= LOOP_STARTS:
                why = f": {runs.reason}" if runs.reason else ""
                failed = runs.state is ProcessState.FAILED
                how = str(runs.state) if failed or runs.starts < LOOP_STARTS else "crash loop"
                yield Drift(host, name, "state", f"{how}{why}", ProcessState.RUNNING)


def _fields(host: str, spec: ProcessSpec, runs: Running) -> Iterator[Drift]:
    is_now, should = _values(runs.spec), _values(spec)
    for field in sorted({*is_now, *should}):
        if is_now.get(field) != should.get(field):
            yield Drift(host, spec.name, field, is_now.get(field, NOTHING), should.get(field, NOTHING))


def _volumes(host: str, wanted: dict[str, int], state: HostState) -> Iterator[Drift]:
    for volume, size_bytes in sorted(wanted.items()):
        has = state.volumes.get(volume)
        if has is None or has < size_bytes:
            runs = NOTHING if has is None else units.render(Unit.BYTES, has)
            yield Drift(host, "", f"volume.{volume}", runs, units.render(Unit.BYTES, size_bytes))


def _values(spec: ProcessSpec) -> dict[str, str]:
    """A specification as texts by field; entries of a map and parts of a table are fields of their own."""
    values: dict[str, str] = {}
    for name in ProcessSpec.__struct_fields__:
        if name != "name":
            _flatten(definition_field(name), getattr(spec, name), values)
    return values


def _flatten(field: str, value: Any, into: dict[str, str]) -> None:
    if value is None or value is msgspec.UNSET:
        return
    if isinstance(value, dict):
        for key, item in sorted(value.items()):
            _flatten(f"{field}.{key}", item, into)
    elif isinstance(value, msgspec.Struct) and not isinstance(value, Endpoint):
        for name in value.__struct_fields__:
            _flatten(f"{field}.{name.removesuffix('_s')}", getattr(value, name), into)
    else:
        into[field] = _text(field, value)


def _text(field: str, value: Any) -> str:
    declared = fields_of(Process).get(field)
    if declared is not None and declared.unit is not None and isinstance(value, int):
        return units.render(declared.unit, value)
    if isinstance(value, float):
        return f"{value:g}s"
    if isinstance(value, tuple):
        return msgspec.json.encode(value).decode()
    return str(value)
