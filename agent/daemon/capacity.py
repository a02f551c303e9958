"""Does the host have what a set of processes asks for? Pure: limits and specifications in, a reason or nothing out."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

import msgspec

from agent.api.base import Struct
from agent.api.processes import Endpoint, ProcessSpec


class Limits(Struct, frozen=True):
    """What processes may be given in all."""

    cores_milli: int
    memory_bytes: int
    disk_bytes: int


def shortage(limits: Limits, specs: Mapping[str, ProcessSpec], volumes_bytes: int) -> str:
    """What these processes would take beyond the limits, as a sentence; "" where they fit.

    `specs`: every process that is to run, by name. `volumes_bytes`: what volumes have been promised.
    """
    wanted = specs.values()
    for what, asked, limit in (
        ("cores", sum(spec.cores_milli for spec in wanted), limits.cores_milli),
        ("memory", sum(spec.memory_bytes for spec in wanted), limits.memory_bytes),
        ("disk", sum(spec.disk_bytes for spec in wanted) + volumes_bytes, limits.disk_bytes),
    ):
        if asked > limit:
            unit = "thousandths of a core" if what == "cores" else "bytes"
            return f"{what}: {asked} {unit} would be in use, this host gives {limit}"
    return ""


def conflict(specs: Mapping[str, ProcessSpec]) -> str:
    """Two listeners that cannot be open at once, as a sentence; "" where there are none. The unspecified address stands
    for every one of its own IP version: an IPv6 listener takes no IPv4 here, so both can be open side by side. Takes
    time in proportion to the number of listeners, of which one call may name very many."""
    taken: dict[tuple[int, str, int], dict[str, str]] = {}
    """By port, protocol and IP version: whose each address is."""
    for process, spec in specs.items():
        for name, endpoint in spec.listen.items():
            address = ipaddress.ip_address(endpoint.address)
            others = taken.setdefault((endpoint.port, endpoint.protocol, address.version), {})
            every = "::" if address.version == 6 else "0.0.0.0"
            other = next(iter(others.values()), "") if address.is_unspecified else others.get(every, "")
            other = other or others.get(str(address), "")
            if other:
                return f"{process}'s listener {name} ({endpoint}) is in the way of {other}"
            others[str(address)] = f"{process}'s listener {name} ({endpoint})"
    return ""


def in_its_own_way(old: ProcessSpec, new: ProcessSpec) -> str:
    """Which listener of the next version cannot be open while one of the last is, as a sentence; "" where each can. Two
    versions share an endpoint that is the same in both; `0.0.0.0` and another address on one port they cannot."""
    kept = set(old.listen.values()) & set(new.listen.values())
    versions = {
        "the version that runs": old.listen,
        "the next version": {name: one for name, one in new.listen.items() if one not in kept},
    }
    return conflict({whose: msgspec.structs.replace(new, listen=listen) for whose, listen in versions.items()})


def unusable_address(endpoints: Iterable[Endpoint]) -> str:
    """The first address that is none, or ""."""
    for endpoint in endpoints:
        try:
            ipaddress.ip_address(endpoint.address)
        except ValueError:
            return endpoint.address
    return ""
