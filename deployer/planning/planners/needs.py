"""What must be called, before any thought of order: the difference between what runs and what should, process by
process, each with its reasons.

What a host reports is what counts. Where it differs from the next definition there is a step, whether the definition
changed or the host drifted; where it does not there is none, whatever the definitions say. Which call a difference
needs follows from the class that `deployer.language.schema` declares for the field:

    only fields that are `hot`          Resize
    only configuration files            Configure
    anything else                       Replace
    on this host, no longer wanted      Stop         (its volumes stay)
    wanted, not on this host            Start        (its volumes are created first)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from agent.api.processes import ProcessSpec, spec_digest
from deployer.applying.observe import HostState, Observed, Running
from deployer.language.endpoints import EndpointError, ProcessTarget, parse_target
from deployer.language.fields import fields_of
from deployer.language.schema import Change, Definition, Process, Unit
from deployer.language.units import render
from deployer.planning.plan import Cause, Changed, Kind, Step
from deployer.resolving.difference import FieldChange, differences
from deployer.resolving.specs import specs_of, volumes_of

RENAMED: Final = {"cores_milli": "cores", "memory_bytes": "memory", "disk_bytes": "disk"}
"""Fields of a specification that have another name in the definition; all others have the same."""

ALSO_FROM: Final = {"update": ("volume",)}
"""Fields of a specification that depend on further fields of the process: one with a volume is always stop-first."""

STRENGTH: Final = {change: strength for strength, change in enumerate(Change)}
"""`Change` is declared from the mildest to the strongest."""

Specs = dict[str, dict[str, ProcessSpec]]


class Needs(NamedTuple):
    """What a plan consists of, without its order."""

    steps: list[Step]
    changes: tuple[Changed, ...]
    notes: tuple[str, ...]
    unreachable: tuple[str, ...]
    specs: Specs
    """What should run: host, process, specification."""


def needs(current: Definition | None, following: Definition, observed: Observed) -> Needs:
    """Every call that leads from what is observed to `following`."""
    specs, volumes = specs_of(following), volumes_of(following)
    changed = differences(current, following)
    reasons = _Reasons(current, following, changed)
    steps: list[Step] = []
    for host in sorted(observed.hosts):
        steps += _volume_steps(host, volumes.get(host, {}), observed.hosts[host], reasons)
        steps += _process_steps(host, specs.get(host, {}), observed.hosts[host], reasons)
    unreachable = tuple(sorted(observed.unreachable))
    return Needs(
        steps,
        tuple(Changed(change.path, change.change) for change in changed),
        tuple(_notes(current, following, observed, unreachable)),
        unreachable,
        specs,
    )


def definition_field(spec_field: str) -> str:
    """The field of a process in the definition that a field of its specification comes from."""
    return RENAMED.get(spec_field, spec_field)


def changes_of(old: ProcessSpec, new: ProcessSpec) -> dict[str, Change]:
    """The fields, as the definition names them, in which two specifications of a process differ, and what each of these
    changes means."""
    found: dict[str, Change] = {}
    for name in ProcessSpec.__struct_fields__:
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            field = definition_field(name)
            found[field] = fields_of(Process)[field].change_from(before, after)
    return found


def kind_of(changes: Mapping[str, Change]) -> Kind:
    """The call that makes these changes of a process."""
    if changes.keys() == {"config"}:
        return Kind.CONFIGURE
    if changes and set(changes.values()) == {Change.HOT}:
        return Kind.RESIZE
    return Kind.REPLACE


def strongest(changes: Mapping[str, Change]) -> Change:
    """What they mean together."""
    return max(changes.values(), key=STRENGTH.__getitem__, default=Change.RESTART)


# --- steps ----------------------------------------------------------------------------------------------------------


def _process_steps(host: str, wanted: Mapping[str, ProcessSpec], state: HostState, reasons: _Reasons) -> Iterator[Step]:
    for name in sorted({*wanted, *state.processes}):
        spec, runs = wanted.get(name), state.processes.get(name)
        if spec is None and runs is not None:
            causes = reasons.for_place(name)
            yield Step(host=host, subject=name, kind=Kind.STOP, change=Change.MOVE, causes=causes, expect=runs.digest)
        elif spec is not None and runs is None:
            causes = reasons.for_place(name)
            yield Step(host=host, subject=name, kind=Kind.START, change=Change.MOVE, causes=causes, spec=spec)
        elif spec is not None and runs is not None and runs.digest != spec_digest(spec):
            yield _change_step(host, spec, runs, reasons)


def _change_step(host: str, spec: ProcessSpec, runs: Running, reasons: _Reasons) -> Step:
    changes = changes_of(runs.spec, spec)
    return Step(
        host=host,
        subject=spec.name,
        kind=kind_of(changes),
        change=strongest(changes),
        causes=reasons.for_fields(host, spec.name, changes),
        spec=spec,
        expect=runs.digest,
    )


def _volume_steps(host: str, wanted: Mapping[str, int], state: HostState, reasons: _Reasons) -> Iterator[Step]:
    for volume, size_bytes in sorted(wanted.items()):
        if state.volumes.get(volume, 0) < size_bytes:
            yield Step(
                host=host,
                subject=volume,
                kind=Kind.CREATE_VOLUME,
                change=Change.HOT,
                causes=reasons.for_volume(volume),
                size_bytes=size_bytes,
            )


# --- reasons --------------------------------------------------------------------------------------------------------


class _Reasons:
    """Finds the changed fields of the definition behind a step. Where there is none, the host drifted, and the field in
    which it differs is the reason."""

    def __init__(self, current: Definition | None, following: Definition, changed: Iterable[FieldChange]) -> None:
        self._current = current
        self._following = following
        self._by_table: dict[tuple[str, str], list[tuple[str, ...]]] = {}
        for change in changed:
            if len(change.path) >= 2:
                self._by_table.setdefault((change.path[0], change.path[1]), []).append(change.path)

    def for_place(self, process: str) -> tuple[Cause, ...]:
        """Why a process starts on a host or ends on it."""
        paths = self._by_table.get(("process", process), [])
        appears = self._current is None or process not in self._current.process
        vanishes = process not in self._following.process
        if not appears and not vanishes:
            paths = [path for path in paths if len(path) == 2 or path[2] == "hosts"]
        whole = [path for path in paths if len(path) == 2] or paths
        return _changes(whole) or (Cause(("process", process, "hosts"), drift=True),)

    def for_fields(self, host: str, process: str, fields: Iterable[str]) -> tuple[Cause, ...]:
        """Why a process that stays where it is changes in these fields."""
        causes: list[Cause] = []
        paths = self._by_table.get(("process", process), [])
        for field in fields:
            sources = {field, *ALSO_FROM.get(field, ())}
            found = [path for path in paths if len(path) == 2 or path[2] in sources]
            found += self._elsewhere(host, process, field)
            causes += _changes(found) or (Cause(("process", process, field), drift=True),)
        return tuple(dict.fromkeys(causes)) or (Cause(("process", process), drift=True),)

    def for_volume(self, volume: str) -> tuple[Cause, ...]:
        """Why a volume is made or grows on a host."""
        paths = list(self._by_table.get(("volume", volume), []))
        for name, process in sorted(self._following.process.items()):
            if volume in process.volume.values():
                of_holder = self._by_table.get(("process", name), [])
                paths += [path for path in of_holder if len(path) == 2 or path[2] in ("hosts", "volume")]
        return _changes(paths) or (Cause(("volume", volume), drift=True),)

    def _elsewhere(self, host: str, process: str, field: str) -> list[tuple[str, ...]]:
        """Changed fields of other tables that a listener, a connection or a secret stands for: addresses of hosts,
        listeners of the process that is connected to, and what was sealed to this host."""
        if field == "secret":
            names = sorted(set(self._following.process[process].secret.values()))
            paths = [path for name in names for path in self._by_table.get(("secret", name), [])]
            return [path for path in paths if len(path) == 2 or path[3:] == (host,)]
        if field not in ("listen", "connect"):
            return []
        wanted = {("host", host): "address"}
        if field == "connect":
            for text in self._following.process[process].connect.values():
                target = _process_in(text)
                if target is not None:
                    wanted |= {("host", target.host): "address", ("process", target.process): "listen"}
        return [
            path
            for table, wanted_field in sorted(wanted.items())
            for path in self._by_table.get(table, [])
            if len(path) == 2 or path[2] == wanted_field
        ]


def _process_in(target: str) -> ProcessTarget | None:
    try:
        parsed = parse_target(target)
    except EndpointError:
        return None
    return parsed if isinstance(parsed, ProcessTarget) else None


def _changes(paths: Iterable[tuple[str, ...]]) -> tuple[Cause, ...]:
    return tuple(Cause(path) for path in dict.fromkeys(paths))


# --- notes ----------------------------------------------------------------------------------------------------------


def _notes(
    current: Definition | None,
    following: Definition,
    observed: Observed,
    unreachable: Iterable[str],
) -> Iterator[str]:
    before = volumes_of(current) if current else {}
    after = volumes_of(following)
    homes: dict[str, list[str]] = {}
    for host, volumes in before.items():
        for volume in sorted(volumes.keys() - after.get(host, {}).keys()):
            homes.setdefault(volume, []).append(host)
            yield f"volume {volume} on {host} is no longer used; what is in it stays there"
    for host, volumes in after.items():
        sizes = observed.hosts[host].volumes if host in observed.hosts else {}
        for volume, wanted_bytes in sorted(volumes.items()):
            if volume in homes and volume not in sizes:
                yield f"volume {volume} begins empty on {host}; its data stays on {', '.join(homes[volume])}"
            if sizes.get(volume, 0) > wanted_bytes != before.get(host, {}).get(volume):
                yield f"volume {volume} on {host} keeps its {render(Unit.BYTES, sizes[volume])}; a volume never shrinks"
    for host in unreachable:
        yield f"{host} does not answer and is left alone"
