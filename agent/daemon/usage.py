"""What each process takes of its host now: processor time, memory, disk, connections. Read from the kernel when asked.

Nothing here is in a guest's way: everything comes from `/proc`, and the table of connections, which is the costly part,
is read once for each network namespace however many guests are in it. A guest with a namespace of its own may have
connections on the host too, where it took the listener of one without over. Call it in a thread.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from agent.api.facts import ProcessUsage
from agent.api.processes import ProcessSpec
from agent.daemon import host, trees
from agent.supervisor.sockdiag import OPEN

PROC: Final = Path("/proc")
TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
USER_TICKS, SYSTEM_TICKS = 11, 12
"""Where they are in `/proc/PID/stat` behind the name in parentheses (proc(5): fields 14 and 15)."""
STATE_COLUMN, INODE_COLUMN = 3, 9
"""Of `/proc/net/tcp`."""
_SOCKET = re.compile(r"socket:\[(\d+)\]\Z")


class Running(NamedTuple):
    """A guest that runs."""

    process: str
    pid: int
    spec: ProcessSpec
    scratch: Path


def usage_of(running: Iterable[Running], volume_bytes: Callable[[str], int]) -> tuple[ProcessUsage, ...]:
    """One row for each. A guest that has just ended takes nothing."""
    namespaces: dict[str, frozenset[int]] = {}
    return tuple(_usage(guest, volume_bytes, namespaces) for guest in running)


def _usage(guest: Running, volume_bytes: Callable[[str], int], namespaces: dict[str, frozenset[int]]) -> ProcessUsage:
    volumes = sorted(set(guest.spec.volume.values()))
    return ProcessUsage(
        process=guest.process,
        pid=guest.pid,
        cpu_s=cpu_s(guest.pid),
        memory_bytes=host.private_memory_bytes(guest.pid),
        disk_bytes=sum(map(volume_bytes, volumes)) + scratch_bytes(guest.pid, guest.scratch),
        connections=connections(guest.pid, namespaces),
    )


def cpu_s(pid: int) -> float:
    """Processor time that a process has taken since its start; 0 where it is gone."""
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[USER_TICKS]) + int(fields[SYSTEM_TICKS])) / TICKS_PER_S


def scratch_bytes(pid: int, scratch: Path) -> int:
    """What is in a guest's scratch space: of the file system that is mounted there for the guest alone, or of the
    directory."""
    try:
        seen = PROC / str(pid) / "root" / scratch.relative_to("/")
        if seen.stat().st_dev != scratch.stat().st_dev:
            facts = os.statvfs(seen)
            return (facts.f_blocks - facts.f_bfree) * facts.f_frsize
        return trees.used_bytes(scratch)
    except OSError:
        return 0


def connections(pid: int, namespaces: dict[str, frozenset[int]]) -> int:
    """Open TCP connections, in both directions, that a process has accepted or made. `namespaces` keeps what was read
    of the network namespaces that were seen before."""
    try:
        known = _sockets_seen_by(PROC / "self", namespaces) | _sockets_seen_by(PROC / str(pid), namespaces)
        entries = list((PROC / str(pid) / "fd").iterdir())
    except OSError:
        return 0
    return sum(_inode(entry) in known for entry in entries)


def _sockets_seen_by(process: Path, namespaces: dict[str, frozenset[int]]) -> frozenset[int]:
    """Inodes of the connections in the namespace of a process; no two sockets of a machine have the same."""
    namespace = str((process / "ns" / "net").readlink())
    if namespace not in namespaces:
        tables = "".join((process / "net" / name).read_text() for name in ("tcp", "tcp6"))
        namespaces[namespace] = open_sockets(tables)
    return namespaces[namespace]


def _inode(entry: Path) -> int:
    """Of the socket that a descriptor is; 0 where it is none, or is closed by now."""
    try:
        match = _SOCKET.match(str(entry.readlink()))
    except OSError:
        return 0
    return int(match[1]) if match else 0


def open_sockets(table: str) -> frozenset[int]:
    """The inodes of the connections in `/proc/net/tcp` that may still carry bytes and that a process holds."""
    found = set()
    for line in table.splitlines():
        columns = line.split()
        if len(columns) > INODE_COLUMN and columns[0] != "sl" and int(columns[STATE_COLUMN], 16) in OPEN:
            found.add(int(columns[INODE_COLUMN]))
    return frozenset(found - {0})
