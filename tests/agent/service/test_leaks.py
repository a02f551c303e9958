"""Processes come and go, and nothing of them stays: no process, descriptor, listener, mount, namespace, interface,
rule, control group or file. In CI a few; by hand LOWCLOUD_TEST_ROUNDS=250 makes 1,000."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from agent.api.calls import CreateVolume, Replace, Start, Stop
from agent.api.processes import Ready, Update, spec_digest
from agent.client.errors import CallRefused
from agent.daemon.networking import Mode
from agent.daemon.output import KEPT_GUESTS
from agent.runtime import kernel_name
from agent.supervisor.client import connect
from agent.supervisor.network.nftables import Nftables, RulesRefused
from agent.supervisor.network.ruleset import GUARD_TABLE
from tests.agent.runtime.support import descendants
from tests.agent.service.daemon import READY_S, both_networks, fetch, needs_guests, processes_of
from tests.agent.service.support import ROUNDS, Cloud, changed, host, put, run, until, web
from tests.ports import free_port
from tools import guests

CYCLES = 2 * ROUNDS
"""Each starts, swaps, fails to swap and stops: two guests that serve, one that does not become ready."""
LOOKS = 5
WARM_UP = 5
"""After so many there is as much of everything as there will be: threads, connections, kept output."""


class Traces(NamedTuple):
    """What a host holds."""

    processes: int
    agent_descriptors: Counter[str]
    supervisor_descriptors: Counter[str]
    mounts: frozenset[str]
    namespaces: frozenset[str]
    listeners: int
    groups: int
    rules: str
    files: frozenset[str]


def descriptors_of(pid: int) -> Counter[str]:
    """By kind: a socket, a pipe, or a file by its name."""
    found: Counter[str] = Counter()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found[str(entry.readlink()).partition(":[")[0]] += 1
        except FileNotFoundError:
            continue
    return found


async def look(state_dir: Path, port: int) -> Traces | None:
    """None where something came or went meanwhile."""
    try:
        return await asyncio.to_thread(traces, state_dir, port)
    except FileNotFoundError:
        return None


async def at_rest(state_dir: Path, port: int) -> Traces:
    """What is there once several looks in a row have found the same: something that is about to go has gone."""
    looks: list[Traces | None] = []

    async def the_same() -> Traces | None:
        looks.append(await look(state_dir, port))
        return looks[-1] if looks[-LOOKS:] == [looks[-1]] * LOOKS else None

    found: Traces = await until(the_same)
    return found


def traces(state_dir: Path, port: int) -> Traces:
    """Raises FileNotFoundError where something goes meanwhile."""
    (supervisor,) = processes_of(state_dir, b"agent.supervisor.main")
    below = descendants(supervisor)
    mounts = Path(f"/proc/{supervisor}/mounts").read_text().splitlines()
    listening = Path("/proc/net/tcp").read_text().split("\n")
    kept = [path.relative_to(state_dir) for path in state_dir.rglob("*") if path.name != "supervisor.log"]
    return Traces(
        processes=len(below),
        agent_descriptors=descriptors_of(os.getpid()),
        supervisor_descriptors=descriptors_of(supervisor),
        mounts=frozenset(line for line in mounts if "/run/netns/" not in line),  # those are of other tests
        namespaces=frozenset(
            str((Path("/proc") / str(pid) / "ns" / kind).readlink())
            for pid in [supervisor, *below]
            for kind in ("net", "mnt", "ipc")
        ),
        listeners=sum(f":{port:04X} 00000000:0000 0A" in line for line in listening),
        groups=len(groups_of(state_dir)),
        rules=rules_of(state_dir),
        files=frozenset(str(path) for path in kept if path.parts[0] not in ("output", "store")),
    )


def groups_of(state_dir: Path) -> list[Path]:
    """The guests' control groups, below those that bear the name of the state directory."""
    name = f"lowcloud-{kernel_name(state_dir)}"
    walked = os.walk("/sys/fs/cgroup")  # which passes over what other tests remove meanwhile
    return [Path(above, group) for above, groups, _ in walked if Path(above).name.startswith(name) for group in groups]


def rules_of(state_dir: Path) -> str:
    """The table of this agent, with every element of its maps; "" where there is none."""
    name = f"{GUARD_TABLE}-{kernel_name(state_dir)}"
    filter_ = Nftables()
    try:
        return filter_.run(f"list table inet {name}") if name in filter_.tables() else ""
    except RulesRefused:
        if name in filter_.tables():
            raise
        return ""  # it went between the two
    finally:
        filter_.close()


def interfaces_of(rules: str) -> list[str]:
    """Those of the agent whose rules these are."""
    (prefix,) = set(re.findall(r"lc[0-9a-f]{3}-", rules))
    return [name for _, name in socket.if_nameindex() if name.startswith(prefix)]


async def cycle(cloud: Cloud, port: int, binaries: list[str]) -> None:
    one, two, nonsense = binaries
    first = web(
        one,
        port=port,
        disk_bytes=1 << 20,
        volume={"/data": "files"},
        cores_milli=100,
        ready=Ready("http", path="/", within_s=READY_S),
        update=Update(drain_s=0.0),
    )
    await cloud.ask(Start(first))
    second = changed(first, binary=two)
    await cloud.ask(Replace(second, expect=spec_digest(first)))
    with pytest.raises(CallRefused):
        broken = changed(second, config={"/etc/web.toml": nonsense})
        await cloud.ask(Replace(broken, expect=spec_digest(second)))
    assert b"2.0" in await asyncio.to_thread(fetch, port)
    await cloud.ask(Stop("web", expect=spec_digest(second)))


@needs_guests
@both_networks
def test_nothing_is_left_of_processes_that_came_and_went(network: Mode) -> None:
    async def work(tmp: Path) -> None:
        state, port = tmp / "state", free_port()
        files = [guests.path("web-1").read_bytes(), guests.path("web-2").read_bytes(), b"nonsense"]
        binaries = put(state, *files)
        async with host(state, connect=lambda: connect(state), network=network) as cloud:
            rules = ""
            await cloud.ask(CreateVolume("files", 8 << 20))
            for _ in range(WARM_UP):
                await cycle(cloud, port, binaries)
                rules = rules_of(state) or rules
            assert bool(rules) == (network == "namespaces")
            await until(lambda: rules_of(state) == "")  # a namespace is buried a moment after its guest
            before = await at_rest(state, port)
            for _ in range(CYCLES):
                await cycle(cloud, port, binaries)

            async def as_before() -> bool:
                return await look(state, port) == before

            try:
                await until(as_before)
            except AssertionError:
                assert await look(state, port) == before
            assert before.listeners == 0
            assert len(list((state / "output" / "web").iterdir())) <= KEPT_GUESTS + 1
            await cloud.client.shut_down(guests=True)
            await cloud.agent.ended.wait()
        assert processes_of(state) == []
        assert rules_of(state) == ""
        assert not rules or interfaces_of(rules) == []

    run(work)
