"""What must hold between the tables of a definition: names that exist, room on the hosts, volumes and paths that do not
collide. (`deployer.language.network_checks` has what concerns addresses and ports.)

Pure: a definition in, findings out. `broken` names the tables that are in the file but could not be read, so that
nothing is called unknown that only has a mistake inside, and no sum is made of half the numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import msgspec

from cas.digest import PREFIX, is_digest
from deployer.language import network_checks, units
from deployer.language.endpoints import OWN_HOST
from deployer.language.positions import Path
from deployer.language.reading import Finding, declared
from deployer.language.schema import Definition, Process, Unit
from deployer.language.wording import near_hint, quoted

SCRATCH = "/tmp"
RESERVED_ENV = "LOWCLOUD_"
MAX_CONSUMERS_SHOWN = 8
MAX_GUEST_PATH_BYTES = 1024
MAX_NAME_BYTES = 255
"""Of one component of a path, on the file systems of hosts."""
MAX_PROCESS_BYTES = 1 << 20
"""A process's table in msgpack. Its specification has to fit into one call to an agent."""


def check(definition: Definition, broken: Iterable[Path] = ()) -> list[Finding]:
    """Every mistake that is visible in the definition alone."""
    known_broken = frozenset(broken)
    findings = [*_regions(definition, known_broken), *_placement(definition, known_broken)]
    findings += [*_blobs(definition), *_environment(definition), *_sizes(definition)]
    findings += [
        *_guest_paths(definition),
        *_secrets(definition, known_broken),
        *_volumes(definition, known_broken),
        *_room(definition, known_broken),
    ]
    return findings + network_checks.check(definition, known_broken)


def warnings(definition: Definition) -> list[Finding]:
    """What is allowed but does nothing."""
    volumes = {volume for process in definition.process.values() for volume in process.volume.values()}
    secrets = {secret for process in definition.process.values() for secret in process.secret.values()}
    unused = [(("volume", name), "volume, so it is on no host") for name in definition.volume if name not in volumes]
    unused += [(("secret", name), "secret") for name in definition.secret if name not in secrets]
    return [Finding(path, f"no process uses this {what}", of_key=True) for path, what in unused]


def _regions(definition: Definition, broken: frozenset[Path]) -> Iterator[Finding]:
    known = declared("region", definition, broken)
    for name, host in definition.host.items():
        if host.region not in known:
            hint = near_hint(host.region, sorted(known), "regions") or f"add [region.{host.region}]"
            yield Finding(("host", name, "region"), f"there is no region {quoted(host.region)}", hint)
        if name == OWN_HOST:
            yield Finding(
                ("host", name), f"no host may be called {OWN_HOST}: in addresses it means the own one", of_key=True
            )


def _placement(definition: Definition, broken: frozenset[Path]) -> Iterator[Finding]:
    known = declared("host", definition, broken)
    for name, process in definition.process.items():
        seen: set[str] = set()
        for index, host in enumerate(process.hosts):
            path = ("process", name, "hosts", index)
            if host in seen:
                yield Finding(path, f"{quoted(host)} is listed twice; a process runs once on a host", "remove one")
            elif host not in known:
                hint = near_hint(host, sorted(known), "hosts") or f"add [host.{host}]"
                yield Finding(path, f"there is no host {quoted(host)}", hint)
            seen.add(host)


def _blobs(definition: Definition) -> Iterator[Finding]:
    """A digest must be whole; whether the blob is there is for `resolve` to say."""
    for name, process in definition.process.items():
        references = {("binary",): process.binary} | {("config", path): ref for path, ref in process.config.items()}
        for where, reference in references.items():
            if reference.startswith(PREFIX) and not is_digest(reference):
                yield Finding(
                    ("process", name, *where),
                    f"{quoted(reference)} is no whole digest",
                    f"{PREFIX} and 64 hex digits, as `lowcloud push` prints it; for a file of this name, ./{reference}",
                )
    for name, secret in definition.secret.items():
        for host, reference in secret.sealed.items():
            if not is_digest(reference):
                yield Finding(
                    ("secret", name, "sealed", host),
                    f"{quoted(reference)} is no whole digest",
                    f"{PREFIX} and 64 hex digits, as `lowcloud secret ls` prints it",
                )


def _environment(definition: Definition) -> Iterator[Finding]:
    for name, process in definition.process.items():
        for variable in process.env:
            if variable.upper().startswith(RESERVED_ENV):
                yield Finding(
                    ("process", name, "env", variable),
                    f"names that begin with {RESERVED_ENV} are set by the host",
                    "choose another name",
                    of_key=True,
                )


def _sizes(definition: Definition) -> Iterator[Finding]:
    for name, process in definition.process.items():
        files: dict[str, Iterable[str]] = {"config": process.config, "volume": process.volume, "secret": process.secret}
        for field, paths in files.items():
            for path in paths:
                longest = max(len(part.encode()) for part in path.split("/"))
                if len(path.encode()) > MAX_GUEST_PATH_BYTES or longest > MAX_NAME_BYTES:
                    yield Finding(
                        ("process", name, field, path),
                        "this path is too long",
                        f"at most {MAX_GUEST_PATH_BYTES} bytes in all, and {MAX_NAME_BYTES} between two slashes",
                        of_key=True,
                    )
        size = len(msgspec.msgpack.encode(process))
        if size > MAX_PROCESS_BYTES:
            yield Finding(
                ("process", name),
                f"has {size} bytes of arguments, environment and names; at most {MAX_PROCESS_BYTES} are allowed",
                "put large values into a configuration file",
                of_key=True,
            )


def _guest_paths(definition: Definition) -> Iterator[Finding]:
    """No file, directory or scratch space of a process may lie in, on or around another."""
    for name, process in definition.process.items():
        places: list[tuple[str, Path, str]] = [(path, ("config", path), "the file") for path in process.config]
        places += [(path, ("volume", path), "the volume") for path in process.volume]
        places += [(path, ("secret", path), "the secret") for path in process.secret]
        if process.disk:
            places.append((SCRATCH, ("disk",), "the scratch space"))
        # Sorted by component, whatever lies in a path follows it.
        places.sort(key=lambda place: place[0].split("/"))
        outer, what = "", ""
        around: Path = ()
        for inner, where, which in places:
            if outer and (inner == outer or inner.startswith(outer + "/")):
                relation = "is at the same path as" if inner == outer else "lies in"
                path = where if where[0] != "disk" else around
                yield Finding(
                    ("process", name, *path),
                    f"{which} {inner} {relation} {what} {outer}",
                    "give each a place of its own",
                    of_key=True,
                )
            else:
                outer, what, around = inner, which, where


def _secrets(definition: Definition, broken: frozenset[Path]) -> Iterator[Finding]:
    hosts = declared("host", definition, broken)
    for name, secret in definition.secret.items():
        for host in secret.sealed:
            if host not in hosts:
                hint = near_hint(host, sorted(hosts), "hosts")
                yield Finding(("secret", name, "sealed", host), f"there is no host {quoted(host)}", hint, of_key=True)
    for name, process in definition.process.items():
        alone = {_parent(path) for path in process.secret}
        others = [("config", path) for path in process.config] + [("volume", path) for path in process.volume]
        for field, path in others:
            if any(parent in alone for parent in _parents(path)):
                yield Finding(
                    ("process", name, field, path),
                    f"{path} lies in a directory that holds a secret",
                    "give secrets a directory of their own, such as /run/secrets",
                    of_key=True,
                )
        if process.disk and "/" in alone:
            yield Finding(
                ("process", name, "secret"),
                f"the scratch space {SCRATCH} lies in a directory that holds a secret",
                "give secrets a directory of their own, such as /run/secrets",
            )


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def _parents(path: str) -> Iterator[str]:
    while path != "/":
        path = _parent(path)
        yield path


def _volumes(definition: Definition, broken: frozenset[Path]) -> Iterator[Finding]:
    known = declared("volume", definition, broken)
    holder: dict[str, str] = {}
    for name, process in definition.process.items():
        for guest_path, volume in process.volume.items():
            path = ("process", name, "volume", guest_path)
            if volume not in known:
                hint = near_hint(volume, sorted(known), "volumes") or f"add [volume.{volume}] with its size"
                yield Finding(path, f"there is no volume {quoted(volume)}", hint)
            elif volume in holder:
                whose = "this process already" if holder[volume] == name else f"process {holder[volume]}"
                yield Finding(
                    path,
                    f"volume {quoted(volume)} is used by {whose}",
                    "a volume has one process and one path; add another volume",
                )
            holder.setdefault(volume, name)
        if process.volume and len(set(process.hosts)) > 1:
            yield Finding(
                ("process", name, "hosts"),
                f"a process with a volume runs on one host, not on {len(set(process.hosts))}",
                "write one process with one volume for each host",
            )


def _room(definition: Definition, broken: frozenset[Path]) -> Iterator[Finding]:
    """What the processes of a host are given, in all, against what it has."""
    residents: dict[str, list[str]] = defaultdict(list)
    for name, process in definition.process.items():
        for host_name in dict.fromkeys(process.hosts):
            residents[host_name].append(name)
    for host_name, host in definition.host.items():
        names = residents[host_name]
        if any(("process", name) in broken for name in names) or ("host", host_name) in broken:
            continue
        for field, unit, capacity in (
            ("cores", Unit.MILLICORES, host.cores),
            ("memory", Unit.BYTES, host.memory),
            ("disk", Unit.BYTES, host.disk),
        ):
            wanted = {name: _takes(definition, definition.process[name], field) for name in names}
            too_large = [name for name in names if wanted[name] > capacity]
            for name in too_large:
                yield _too_large(definition, name, field, wanted[name], unit, host_name, capacity)
            total = sum(wanted.values())
            if total > capacity and not too_large:
                yield Finding(
                    ("host", host_name, field),
                    f"has {units.render(unit, capacity)} of {field}, but its processes take "
                    f"{units.render(unit, total)}: {_largest_first(wanted, unit)}",
                    "give a process less, or place one elsewhere",
                )


def _takes(definition: Definition, process: Process, field: str) -> int:
    taken: int = getattr(process, field)
    if field == "disk":
        sizes = {name: volume.size for name, volume in definition.volume.items()}
        taken += sum(sizes.get(volume, 0) for volume in set(process.volume.values()))
    return taken


def _too_large(
    definition: Definition, name: str, field: str, wanted: int, unit: Unit, host: str, capacity: int
) -> Finding:
    volumes = field == "disk" and bool(definition.process[name].volume)
    has = f"host {host} has {units.render(unit, capacity)}"
    return Finding(
        ("process", name, "volume" if volumes else field),
        f"takes {units.render(unit, wanted)} of {field}{' with its volumes' if volumes else ''}, but {has}",
        f"at most {units.render(unit, capacity)}",
    )


def _largest_first(wanted: dict[str, int], unit: Unit) -> str:
    order = sorted((name for name in wanted if wanted[name]), key=lambda name: (-wanted[name], name))
    shown = [f"{name} {units.render(unit, wanted[name])}" for name in order[:MAX_CONSUMERS_SHOWN]]
    return ", ".join(shown) + (f" and {len(order) - len(shown)} more" if len(order) > len(shown) else "")
