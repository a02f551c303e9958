"""Machines made of network namespaces: each has its own interface and address on one switch, and nothing else.

A namespace is as far from the next as two machines on one Ethernet: what a test shows here has crossed real interfaces
and not the loopback.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

SUBNET = "10.87.7"
PREFIX_BITS = 24


def why_not() -> str | None:
    """Why this machine cannot make namespaces, in one line, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the `ip` command (Debian: iproute2)"
    tried = subprocess.run(["ip", "netns", "add", name_of("try")], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "delete", name_of("try")], capture_output=True)
    return f"this machine makes no network namespaces: {tried.stderr.strip()}" if tried.returncode else None


def name_of(machine: str) -> str:
    """Namespaces are named after this process too, so that two test runs do not meet."""
    return f"lct{os.getpid()}-{machine}"


def inside(machine: str, command: Sequence[str]) -> list[str]:
    """The command, run on that machine."""
    return ["ip", "netns", "exec", name_of(machine), *command]


@contextmanager
def machines(*names: str) -> Iterator[dict[str, str]]:
    """Make machines on one switch; gives each one's address."""
    addresses = {name: f"{SUBNET}.{number}" for number, name in enumerate(names, start=1)}
    try:
        _ip("netns", "add", name_of("switch"))
        _inside("switch", "link", "add", "switch", "type", "bridge")
        _inside("switch", "link", "set", "switch", "up")
        for name, address in addresses.items():
            _plug_in(name, address)
        yield addresses
    finally:
        for name in ("switch", *names):
            subprocess.run(["ip", "netns", "delete", name_of(name)], capture_output=True)


def _plug_in(machine: str, address: str) -> None:
    _ip("netns", "add", name_of(machine))
    _inside("switch", "link", "add", machine, "type", "veth", "peer", "name", "eth0", "netns", name_of(machine))
    _inside("switch", "link", "set", machine, "master", "switch", "up")
    _inside(machine, "link", "set", "lo", "up")
    _inside(machine, "address", "add", f"{address}/{PREFIX_BITS}", "dev", "eth0")
    _inside(machine, "link", "set", "eth0", "up")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def _inside(machine: str, *words: str) -> None:
    _ip("-n", name_of(machine), *words)
