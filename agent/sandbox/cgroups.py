"""Control groups: memory of the whole process, its share of the processors, its threads, all kept by the kernel.

A group for each agent (`lowcloud-<hash of its state directory>`), in it one for each guest. Version 1 has a hierarchy
for each controller, and the agent's group lies inside the one that the agent runs in, so whatever limits the agent
limits its guests. Version 2 has one hierarchy for all; there the agent's group lies at the top, or where it was
delegated. A machine may have both, and what each offers is looked up. A guest's process joins its groups itself, before
it has memory to speak of and while it still may.

Files and units: `Documentation/admin-guide/cgroup-v1` and `cgroup-v2.rst` of the kernel.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

MOUNTS: Final = Path("/proc/self/mounts")
OWN_GROUPS: Final = Path("/proc/self/cgroup")
CONTROLLERS: Final = ("memory", "cpu", "pids")
LEAF: Final = "agent"
"""Version 2: an agent that a service manager has put in a group of this name (`DelegateSubgroup=agent`) may use the one
above it."""
MAX_THREADS: Final = 512
SHARES_OF_A_CORE: Final = 1024
WEIGHT_OF_A_CORE: Final = 100
MAX_WEIGHT: Final = 10_000
ATTEMPTS: Final = 8
MIN_SHARES: Final = 2
MAX_SHARES: Final = 262_144


class Hierarchy(NamedTuple):
    """A place where groups can be made, and for what."""

    directory: Path
    """The group in which the agent makes its own."""
    version: int
    controllers: tuple[str, ...]


class Limits(NamedTuple):
    """What one guest may take."""

    memory_bytes: int
    cores_milli: int


def join(directory: str) -> None:
    """Make this process, which has one thread, a member. Raises OSError."""
    descriptor = os.open(f"{directory}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, b"0")
    finally:
        os.close(descriptor)


def hierarchies(mounts: str, own: str) -> list[Hierarchy]:
    """Where an agent finds its groups: from `/proc/self/mounts` and `/proc/self/cgroup`. Pure."""
    found = []
    paths = {
        tuple(fields[1].split(",")): fields[2] for line in own.splitlines() if len(fields := line.split(":", 2)) == 3
    }
    for fields in (line.split() for line in mounts.splitlines()):
        if len(fields) < 4:
            continue
        if fields[2] == "cgroup":
            options = set(fields[3].split(","))
            for names, path in paths.items():
                wanted = tuple(name for name in CONTROLLERS if name in names)
                if wanted and options.issuperset(names):
                    found.append(Hierarchy(_below(fields[1], path), 1, wanted))
        elif fields[2] == "cgroup2" and ("",) in paths:
            # Not inside the agent's own group: there the controllers could be had only while no process is in it, and a
            # service manager that starts the agent again, beside guests that run, would fail to put it there.
            own_path = PurePosixPath(paths[("",)])
            top = str(own_path.parent) if own_path.name == LEAF else "/"
            found.append(Hierarchy(_below(fields[1], top), 2, CONTROLLERS))
    return found


def _below(mount: str, path: str) -> Path:
    return Path(mount) / path.lstrip("/")


def files_of(version: int, controllers: Collection[str], limits: Limits) -> dict[str, str]:
    """File name to content: how these limits are said to the kernel. Pure."""
    shares = min(max(limits.cores_milli * SHARES_OF_A_CORE // 1000, MIN_SHARES), MAX_SHARES)
    weight = min(max(limits.cores_milli * WEIGHT_OF_A_CORE // 1000, 1), MAX_WEIGHT)
    said = {
        (1, "memory"): {"memory.limit_in_bytes": limits.memory_bytes},
        (1, "cpu"): {"cpu.shares": shares},
        (1, "pids"): {"pids.max": MAX_THREADS},
        (2, "memory"): {"memory.max": limits.memory_bytes, "memory.oom.group": 1},
        (2, "cpu"): {"cpu.weight": weight},
        (2, "pids"): {"pids.max": MAX_THREADS},
    }
    return {file: str(value) for name in controllers for file, value in said[version, name].items()}


class Groups:
    """The groups of one agent. `open` finds what this machine offers; without any everything here does nothing."""

    def __init__(self, name: str, places: Collection[Hierarchy]) -> None:
        self._name = name
        self._places = tuple(places)

    @classmethod
    def open(cls, name: str) -> Groups:
        """See where this agent may make groups. Never raises OSError: what cannot be had is not there."""
        usable = []
        left = set(CONTROLLERS)
        with contextlib.suppress(OSError):
            for place in hierarchies(MOUNTS.read_text(), OWN_GROUPS.read_text()):
                wanted = tuple(c for c in place.controllers if c in left)
                given = _usable(place._replace(controllers=wanted)) if wanted else ()
                if given:
                    usable.append(place._replace(controllers=given))
                    left -= set(given)
        return cls(name, usable)

    @property
    def controllers(self) -> Mapping[str, int]:
        """What can be limited, and by which version of control groups."""
        return {controller: place.version for place in self._places for controller in place.controllers}

    def make(self, guest: str, limits: Limits) -> tuple[str, ...]:
        """Groups for a guest that is to come; their directories. Raises OSError."""
        made = []
        for place in self._places:
            directory = place.directory / self._name / guest
            for _ in range(ATTEMPTS):
                _make_top(place, directory.parent)
                with contextlib.suppress(FileNotFoundError):  # the last other guest has just gone, and the top with it
                    directory.mkdir(exist_ok=True)
                    break
            for file, value in files_of(place.version, place.controllers, limits).items():
                _write(directory / file, value)
            made.append(str(directory))
        return tuple(made)

    def change(self, guest: str, limits: Limits) -> None:
        """Give a guest that runs other limits. Raises OSError."""
        if any((place.directory / self._name / guest).exists() for place in self._places):
            self.make(guest, limits)

    def remove(self, guest: str) -> None:
        """Forget a guest that has ended; what is still busy goes with the next `sweep`."""
        for place in self._places:
            with contextlib.suppress(OSError):
                (place.directory / self._name / guest).rmdir()
                (place.directory / self._name).rmdir()  # another guest's are in it, mostly

    def sweep(self, known: Collection[str]) -> None:
        """Remove the groups of guests that no record knows and that have no process any more."""
        for place in self._places:
            with contextlib.suppress(OSError):
                for path in list((place.directory / self._name).iterdir()):
                    if path.is_dir() and path.name not in known:
                        with contextlib.suppress(OSError):
                            path.rmdir()
                (place.directory / self._name).rmdir()


def was_killed_for_memory(directories: Collection[str]) -> bool:
    """Has the kernel ended a process of these groups because its memory was full?"""
    for directory in directories:
        for file in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError, ValueError):
                words = (Path(directory) / file).read_text().split()
                if "oom_kill" in words and int(words[words.index("oom_kill") + 1]) > 0:
                    return True
    return False


def _usable(place: Hierarchy) -> tuple[str, ...]:
    """Of these controllers, those that children of the agent's own group can have."""
    own = place.directory
    if not os.access(own, os.W_OK):
        return ()
    if place.version == 1:
        return place.controllers
    try:
        offered = set((own / "cgroup.controllers").read_text().split())
        given = tuple(name for name in place.controllers if name in offered)
        if given:
            _switch_on(own, given)
    except OSError:
        return ()
    return given


def _switch_on(group: Path, controllers: tuple[str, ...]) -> None:
    """Version 2: let children of a group have these. Raises OSError where processes are in it."""
    _write(group / "cgroup.subtree_control", " ".join(f"+{name}" for name in controllers))


def _make_top(place: Hierarchy, directory: Path) -> None:
    """The agent's group. All guests together weigh as much as the machine has cores."""
    if directory.exists():
        return
    directory.mkdir(exist_ok=True)
    if place.version == 2:
        _switch_on(directory, place.controllers)
    elif "cpu" in place.controllers:
        _write(directory / "cpu.shares", str((os.cpu_count() or 1) * SHARES_OF_A_CORE))


def _write(file: Path, value: str) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)
