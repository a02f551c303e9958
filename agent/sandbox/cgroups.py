"""Control groups: memory of the whole process, its processors and its share of them, its threads, kept by the kernel.

A group for each process (`lowcloud-<hash of the agent's state directory>.<process>`), which has its processors; in it
one for each of its guests, which has memory and threads of its own. Version 1 has a hierarchy for each controller, and
the groups lie inside the one that the agent runs in, so whatever limits the agent limits its guests. Version 2 has one
hierarchy for all; there they lie as high as the agent may put them, because only there a process can have CPUs that are
closed to all others (`agent.sandbox.cpusets`), and because no service manager that starts the agent again meets guests
in the agent's own group. A machine may have both versions, and what each offers is looked up. A guest's process joins
its groups itself, before it has memory to speak of and while it still may.

Files and units: `Documentation/admin-guide/cgroup-v1` and `cgroup-v2.rst` of the kernel.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from agent.sandbox import cpusets
from agent.sandbox.cpusets import Claim

MOUNTS: Final = Path("/proc/self/mounts")
OWN_GROUPS: Final = Path("/proc/self/cgroup")
CPUSET: Final = "cpuset"
OF_A_PROCESS: Final = ("cpu", CPUSET)
OF_A_GUEST: Final = ("memory", "pids")
CONTROLLERS: Final = {1: ("memory", "cpu", "pids"), 2: ("memory", "cpu", "pids", CPUSET)}
"""What is used of each version."""
LEAF: Final = "agent"
"""Version 2: an agent that a service manager has put in a group of this name (`DelegateSubgroup=agent`) is meant to use
the one above it, and no higher one."""
MAX_THREADS: Final = 512
SHARES_OF_A_CORE: Final = 1024
WEIGHT_OF_A_CORE: Final = 100
MAX_WEIGHT: Final = 10_000
ATTEMPTS: Final = 8
EVERYWHERE: Final = Claim()
MIN_SHARES: Final = 2
MAX_SHARES: Final = 262_144

_log = logging.getLogger(__name__)


class Hierarchy(NamedTuple):
    """A place where groups can be made, and for what."""

    directory: Path
    """The group in which the agent makes those of its processes."""
    version: int
    controllers: tuple[str, ...]


class Limits(NamedTuple):
    """What one process may take, and each of its guests."""

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
    """Where an agent may look for room for its groups, the best place first: from `/proc/self/mounts` and
    `/proc/self/cgroup`. Pure."""
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
                wanted = tuple(name for name in CONTROLLERS[1] if name in names)
                if wanted and options.issuperset(names):
                    found.append(Hierarchy(_below(fields[1], path), 1, wanted))
        elif fields[2] == "cgroup2" and ("",) in paths:
            # Not inside the agent's own group: there the controllers could be had only while no process is in it, and a
            # service manager that starts the agent again, beside guests that run, would fail to put it there.
            own_path = PurePosixPath(paths[("",)])
            above = [own_path.parent] if own_path.name == LEAF else [*reversed(own_path.parents)] or [own_path]
            found += [Hierarchy(_below(fields[1], str(path)), 2, CONTROLLERS[2]) for path in above]
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
        (2, CPUSET): {},
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
        left = {controller for controllers in CONTROLLERS.values() for controller in controllers}
        with contextlib.suppress(OSError):
            for place in hierarchies(MOUNTS.read_text(), OWN_GROUPS.read_text()):
                wanted = tuple(c for c in place.controllers if c in left)
                given = _usable(place._replace(controllers=wanted)) if wanted else ()
                if given:
                    usable.append(place._replace(controllers=given))
                    left -= set(given if place.version == 1 else CONTROLLERS[2])
        return cls(name, usable)

    @property
    def controllers(self) -> Mapping[str, int]:
        """What can be limited, and by which version of control groups."""
        return {controller: place.version for place in self._places for controller in place.controllers}

    def make(self, process: str, guest: str, limits: Limits, claim: Claim = EVERYWHERE) -> tuple[str, ...]:
        """Groups for a guest that is to come; their directories. Raises OSError."""
        made = []
        for place in self._places:
            directory = self._group(place, process) / guest
            for _ in range(ATTEMPTS):
                _make_outer(place, directory.parent)
                with contextlib.suppress(FileNotFoundError):  # the last other guest has just gone, and this with it
                    directory.mkdir(exist_ok=True)
                    break
            _write_all(directory.parent, files_of(place.version, _of(OF_A_PROCESS, place), limits))
            _write_all(directory, files_of(place.version, _of(OF_A_GUEST, place), limits))
            made.append(str(directory))
        self.give({process: claim})
        return tuple(made)

    def change(self, process: str, guest: str, limits: Limits) -> None:
        """Give a guest that runs other limits. Raises OSError."""
        for place in self._places:
            directory = self._group(place, process) / guest
            if directory.exists():
                _write_all(directory.parent, files_of(place.version, _of(OF_A_PROCESS, place), limits))
                _write_all(directory, files_of(place.version, _of(OF_A_GUEST, place), limits))

    def give(self, claims: Mapping[str, Claim]) -> None:
        """Give processes their CPUs, those that run and no others. What the kernel refuses is logged: such a process
        keeps to its CPUs, but others may run there too."""
        for place in self._places:
            if CPUSET in place.controllers:
                groups = {self._group(place, process): claim for process, claim in claims.items()}
                for problem in cpusets.give(groups):
                    _log.warning("%s", problem)

    def closed_cpus(self) -> set[int]:
        """The CPUs on which only one process of this agent may run."""
        return {cpu for place in self._places for cpu in cpusets.closed(self._outer(place))}

    def remove(self, process: str, guest: str) -> None:
        """Forget a guest that has ended; what is still busy goes with the next `sweep`."""
        for place in self._places:
            directory = self._group(place, process)
            with contextlib.suppress(OSError):
                (directory / guest).rmdir()
                if not any(path.is_dir() for path in directory.iterdir()):  # another guest of the process
                    cpusets.give_up([directory] if CPUSET in place.controllers else [])
                    directory.rmdir()

    def sweep(self, known: Collection[str]) -> bool:
        """Remove the groups of guests that no record knows and that have no process any more; whether nothing is left
        but what is known."""
        left = False
        for place in self._places:
            for directory in self._outer(place):
                with contextlib.suppress(OSError):
                    for path in list(directory.iterdir()):
                        if path.is_dir() and path.name not in known:
                            try:
                                path.rmdir()
                            except OSError:
                                left = True
                    directory.rmdir()
        return not left

    def _group(self, place: Hierarchy, process: str) -> Path:
        return place.directory / f"{self._name}.{process}"

    def _outer(self, place: Hierarchy) -> list[Path]:
        """The groups of processes that are there, and that of an agent which had one for all."""
        return [path for pattern in (self._name, f"{self._name}.*") for path in place.directory.glob(pattern)]


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
    """Of these controllers, those that groups made here can have."""
    if not os.access(place.directory, os.W_OK):
        return ()
    if place.version == 1:
        return place.controllers
    return tuple(name for name in place.controllers if _can_have(place.directory, name))


def _can_have(group: Path, controller: str) -> bool:
    try:
        if controller == CPUSET and not cpusets.may_close(group):
            return False
        _switch_on(group, controller)
    except OSError:
        return False
    return True


def _switch_on(group: Path, controller: str) -> None:
    """Version 2: let children of a group have this. Raises OSError where it has it not itself, or processes are in
    it."""
    cpusets.write(group / "cgroup.subtree_control", f"+{controller}")


def _make_outer(place: Hierarchy, directory: Path) -> None:
    """The group of a process. Version 2: a service manager takes back from the groups at the top what it does not need
    itself (systemd does, at each `daemon-reload`), unless groups below them have it; so the guests' have all of it."""
    directory.mkdir(exist_ok=True)
    for group in (place.directory, directory) if place.version == 2 else ():
        for controller in place.controllers:
            _switch_on(group, controller)


def _of(level: Collection[str], place: Hierarchy) -> tuple[str, ...]:
    return tuple(controller for controller in place.controllers if controller in level)


def _write_all(directory: Path, files: Mapping[str, str]) -> None:
    for file, value in files.items():
        cpusets.write(directory / file, value)
