"""What this host is: cores, memory, disk, addresses, kernel. Read from the kernel each time it is asked."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Collection
from pathlib import Path
from typing import Final, NamedTuple

from agent.daemon.capacity import Limits
from agent.daemon.placement import MILLI

FIB_TRIE: Final = Path("/proc/net/fib_trie")
IF_INET6: Final = Path("/proc/net/if_inet6")
MEMINFO: Final = Path("/proc/meminfo")
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
CGROUP_LIMITS: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_PRIVATE = re.compile(r"^Private_(?:Clean|Dirty):\s+(\d+) kB", re.MULTILINE)


class Disk(NamedTuple):
    total_bytes: int
    free_bytes: int


def usable_cpus(closed: Collection[int] = ()) -> tuple[int, ...]:
    """The CPUs that this agent's guests may run on: those that the agent may, and those that are closed to it, because
    they belong to its guests."""
    return tuple(sorted(os.sched_getaffinity(0) | set(closed)))


def machine_limits(state_dir: Path, cpus: Collection[int]) -> Limits:
    """All that the machine has, of whose CPUs these may be used."""
    return Limits(
        cores_milli=len(cpus) * MILLI,
        memory_bytes=memory_bytes(),
        disk_bytes=disk(state_dir).total_bytes,
    )


def memory_bytes() -> int:
    """What the machine has, or what the control group allows where that is less."""
    found = int(re.findall(r"^MemTotal:\s+(\d+) kB", MEMINFO.read_text(), re.MULTILINE)[0]) << 10
    for path in CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):
            found = min(found, int(path.read_text()))
    return found


def disk(path: Path) -> Disk:
    facts = os.statvfs(path)
    return Disk(facts.f_blocks * facts.f_frsize, facts.f_bavail * facts.f_frsize)


def kernel() -> str:
    facts = platform.uname()
    return f"{facts.system} {facts.release} {facts.machine}"


def boot() -> str:
    """Names this run of the machine."""
    return BOOT_ID.read_text().strip()


def addresses() -> tuple[str, ...]:
    """Every address of this host, IPv4 first, without loopback and link-local ones."""
    four: list[str] = []
    six: list[str] = []
    with contextlib.suppress(OSError):
        four = ipv4_addresses(FIB_TRIE.read_text())
    with contextlib.suppress(OSError):
        six = ipv6_addresses(IF_INET6.read_text())
    return (*four, *six)


def ipv4_addresses(fib_trie: str) -> list[str]:
    """The local addresses of `/proc/net/fib_trie`: a leaf line with the address, then one that says `host LOCAL`."""
    found = re.findall(r"\|-- (\d+\.\d+\.\d+\.\d+)\n\s+/32 host LOCAL", fib_trie)
    return [address for address in dict.fromkeys(found) if not address.startswith(("127.", "169.254."))]


def ipv6_addresses(if_inet6: str) -> list[str]:
    """The addresses of `/proc/net/if_inet6`: 32 hex digits first in each line."""
    import ipaddress

    found = [ipaddress.IPv6Address(int(line[:32], 16)) for line in if_inet6.splitlines() if len(line) > 32]
    return [str(address) for address in found if not address.is_loopback and not address.is_link_local]


def private_memory_bytes(pid: int) -> int:
    """Memory that a process shares with no other; 0 where it is gone or may not be looked at."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(int(kilobytes) for kilobytes in _PRIVATE.findall(text)) << 10


def process_cpus(pid: int) -> tuple[int, ...]:
    """The CPUs that a process may run on; none where it is gone."""
    try:
        return tuple(sorted(os.sched_getaffinity(pid)))
    except OSError:
        return ()
