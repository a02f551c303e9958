"""What it costs to tell hosts of their neighbours: bytes between the deployer and one host, counted on the wire.

    python -m benchmarks.introducing [HOSTS ...]

Two real agents, in one region of a cloud of so many hosts, are told of all of them through relays that count what
passes on connections that are there already, TLS and HTTP included: a host whose region has the list nowhere, one whose
neighbour has it, the same again, and after one host was added; beside it `Meet`, which carries the whole list each
time, and how many bytes a `Fetch` of what all hosts want takes to say so.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from pathlib import Path

import msgspec

from agent.api.fetching import Fetch, Party
from agent.api.neighbours import Meet
from cas.digest import digest_of
from deployer.applying.fleet import Fleet
from deployer.applying.introducing import introduce, keep_neighbours
from deployer.applying.site import Site
from deployer.cloud import trust
from deployer.cloud.cloud import Cloud
from deployer.language.schema import Definition, Host, Region
from tests.deployer.ground import Ground, LocalAgent

REGIONS = 20
REAL = ("h1", "h2")


class Relay:
    """Passes connections on to an agent, and counts."""

    def __init__(self, target: str) -> None:
        self._host, _, self._port = target.rpartition(":")
        self.passed_bytes = 0
        self.address = ""

    async def start(self) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    def taken(self) -> int:
        """Since the last time this was asked."""
        passed, self.passed_bytes = self.passed_bytes, 0
        return passed

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward_reader, onward_writer = await asyncio.open_connection(self._host, int(self._port))
        with contextlib.suppress(asyncio.CancelledError):  # it ends with the program
            await asyncio.gather(self._pass(reader, onward_writer), self._pass(onward_reader, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                self.passed_bytes += len(data)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.close()


def definition_of(hosts: int, addresses: dict[str, str]) -> Definition:
    made = {
        name: Host(region="r0", address=address, cores=1000, memory=1 << 30, disk=1 << 30)
        for name, address in addresses.items()
    }
    for number in range(hosts - len(made)):
        address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}:7400"
        made[f"node{number:05}"] = Host(
            region=f"r{number % REGIONS}", address=address, cores=1000, memory=1 << 30, disk=1 << 30
        )
    return Definition(name="many", region={f"r{number}": Region() for number in range(REGIONS)}, host=made)


async def measure(cloud: Cloud, agents: dict[str, LocalAgent], hosts: int) -> list[tuple[str, int]]:
    relays = {name: Relay(agent.listen) for name, agent in agents.items()}
    for relay in relays.values():
        await relay.start()
    addresses = {name: relay.address for name, relay in relays.items()}
    definition = definition_of(hosts, addresses)
    rows: list[tuple[str, int]] = []

    async with Fleet(addresses, cloud.credentials) as fleet:
        site = Site(cloud.store, f"of-{hosts}", fleet, "operator:ada")
        await fleet.each(REAL, lambda client: client.processes())  # what an apply has asked before

        async def told(what: str, asked: tuple[str, ...], definition: Definition) -> None:
            for relay in relays.values():
                relay.taken()
            await introduce(site, asked, definition)
            rows.append((what, relays[asked[-1]].taken()))

        await told("first host of a region", ("h1",), definition)
        await told("another one there", ("h1", "h2"), definition)
        rows.append(("  and between the two hosts", relays["h1"].taken()))
        await told("the same again", ("h2",), definition)
        await told("one host was added", ("h2",), definition_of(hosts + 1, addresses))
        _, listed = keep_neighbours(site, definition)
        await fleet.each(["h1"], lambda client: client.meet(Meet(listed.neighbours, 1 << 62)))
        rows.append(("`Meet`, each time", relays["h1"].taken()))
    name = digest_of(b"")
    for what, party in (("each host named", tuple(definition.host)), ("all", ())):
        rows.append((f"a `Fetch`, {what}", len(msgspec.msgpack.encode(Fetch(name, (Party(party, (name,)),))))))
    return rows


def main(sizes: list[int]) -> None:
    with tempfile.TemporaryDirectory(prefix="introducing-") as scratch:
        root = Path(scratch)
        for hosts in sizes:
            with Cloud.create(root / f"cloud-{hosts}", operator="ada") as cloud:
                agents: dict[str, LocalAgent] = {}
                try:
                    for name in REAL:
                        state = root / f"{name}-{hosts}"
                        state.mkdir(mode=0o700)
                        trust.issue_host(cloud.authority, name, ["127.0.0.1"], state / "credentials")
                        agents[name] = LocalAgent(name, "127.0.0.1", state)
                        agents[name].start()
                    print(f"{hosts} hosts")
                    for what, size in asyncio.run(measure(cloud, agents, hosts)):
                        print(f"  {what:<32}{size:>12,} bytes")
                finally:
                    Ground(cloud, agents, "introducing").end_all()


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]] or [12, 1000, 10_000])
