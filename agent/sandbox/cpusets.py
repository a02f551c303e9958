"""CPUs that are one process's alone, kept by the kernel: a partition of the machine's CPUs for each such process.

Only version 2 of control groups has this. A group right below a partition (the machine itself is one) may become one
too; its CPUs are then taken from every other group, and from what runs in none. A set of version 1 binds who is in it
and nobody else: everything else on the machine may still run there, so it gives nothing that affinity does not.

Linux before 6.2 forgets affinities whenever CPUs are taken or given back: every process outside may then use all that
is left. So a guest is held by its group's set, closed or not, and not by its affinity alone.

Files: "Cpuset Interface Files" in `Documentation/admin-guide/cgroup-v2.rst` of the kernel.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

CPUS: Final = "cpuset.cpus"
EFFECTIVE: Final = "cpuset.cpus.effective"
PARTITION: Final = "cpuset.cpus.partition"
_CLOSED: Final = "root"
_OPEN: Final = "member"
_PARTITIONS: Final = ("root", "isolated")


class Claim(NamedTuple):
    """Where one process may run."""

    cpus: tuple[int, ...] = ()
    """None: everywhere."""
    alone: bool = False
    """No other program of the machine runs there."""


def may_close(parent: Path) -> bool:
    """Whether groups right below this one can be partitions."""
    try:
        return (parent / PARTITION).read_text().strip() in _PARTITIONS
    except FileNotFoundError:
        return True  # the machine's own group has no such file


def give(claims: Mapping[Path, Claim]) -> list[str]:
    """Make these groups run where they are to, and tell which the kernel refuses, and why. What a group had is given up
    before another gets it; what is as it should be is not touched."""
    wrong = {group: claim for group, claim in claims.items() if group.exists() and _held(group) != claim}
    refused: dict[Path, str] = {}
    for act in (_open, _move, _close):
        for group, claim in wrong.items():
            try:
                act(group, claim)
            except FileNotFoundError:
                continue  # its last guest has just gone
            except OSError as error:
                refused[group] = error.strerror or str(error)
    return [f"{group.name}, CPUs {said(claims[group].cpus) or 'of all'}: {why}" for group, why in refused.items()]


def give_up(groups: Iterable[Path]) -> None:
    """Open the CPUs of groups that are about to go. The kernel does so by itself, but not at once. Raises OSError."""
    for group in groups:
        _open(group, Claim())


def closed(groups: Iterable[Path]) -> set[int]:
    """The CPUs on which nobody else runs because of these groups."""
    return {cpu for held in map(_held, groups) if held.alone for cpu in held.cpus}


def said(cpus: Iterable[int]) -> str:
    """As the kernel is told."""
    return ",".join(map(str, cpus))


def heard(text: str) -> tuple[int, ...]:
    """`0-2,5` are four CPUs."""
    ends = [part.split("-") for part in text.strip().split(",") if part]
    return tuple(cpu for each in ends for cpu in range(int(each[0]), int(each[-1]) + 1))


def write(file: Path, value: str) -> None:
    """Into a file of a control group; it must be there. Raises OSError."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, f"{value}\n".encode())
    finally:
        os.close(descriptor)


def _held(group: Path) -> Claim:
    try:
        return Claim(heard((group / CPUS).read_text()), (group / PARTITION).read_text().strip() == _CLOSED)
    except OSError:
        return Claim()


def _open(group: Path, _: Claim) -> None:
    write(group / PARTITION, _OPEN)


def _move(group: Path, claim: Claim) -> None:
    """A group with processes in it cannot be told again to run everywhere, only on each CPU that is there."""
    write(group / CPUS, said(claim.cpus) or (group.parent / EFFECTIVE).read_text().strip())


def _close(group: Path, claim: Claim) -> None:
    """Raises OSError, where the kernel says no in the file instead of in its answer too."""
    if not claim.alone:
        return
    write(group / PARTITION, _CLOSED)
    state = (group / PARTITION).read_text().strip()
    if state != _CLOSED:
        write(group / PARTITION, _OPEN)
        raise OSError(0, f"they cannot be closed to others: {state}")
