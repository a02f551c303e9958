"""Does the host have what a set of processes asks for? Pure: limits and specifications in, a reason or nothing out."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

from agent.api import Endpoint, ProcessSpec, Struct


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
    """Two listeners that cannot be open at once, as a sentence; "" where there are none."""
    taken: list[tuple[str, str, Endpoint]] = []
    for process, spec in specs.items():
        for name, endpoint in spec.listen.items():
            for other_process, other_name, other in taken:
                if overlap(endpoint, other):
                    return (
                        f"{process}'s listener {name} ({endpoint}) is in the way of "
                        f"{other_process}'s listener {other_name} ({other})"
                    )
            taken.append((process, name, endpoint))
    return ""


def overlap(one: Endpoint, other: Endpoint) -> bool:
    """Would these two listeners receive the same connection? The unspecified address stands for every one; `::` covers
    IPv4 too, as the kernel's default does."""
    if one.port != other.port or one.protocol != other.protocol:
        return False
    left, right = ipaddress.ip_address(one.address), ipaddress.ip_address(other.address)
    if left == right:
        return True
    for wide, narrow in ((left, right), (right, left)):
        if wide.is_unspecified and (wide.version == narrow.version or wide.version == 6):
            return True
    return False


def unusable_address(endpoints: Iterable[Endpoint]) -> str:
    """The first address that is none, or ""."""
    for endpoint in endpoints:
        try:
            ipaddress.ip_address(endpoint.address)
        except ValueError:
            return endpoint.address
    return ""
