"""Several agents on this machine that know each other, with their sockets, stores and certificates."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import UNSET

from agent import tls
from agent.api.fetching import Fetch, Fetched, Party
from agent.api.neighbours import Meet, Neighbour
from agent.client.client import AgentClient
from agent.daemon.assembly import Agent
from agent.daemon.peering.limits import PeerLimits
from agent.main import listening
from cas import exchange, inventory
from cas.digest import Digest
from cas.store import Store
from tests.agent.service.memory_runtime import MemoryRuntime
from tests.agent.service.support import OPERATOR, ROOM, authority
from tests.ports import free_port

REGIONS = {"fra1": "fra", "fra2": "fra", "fra3": "fra", "ams1": "ams"}
FETCH_S = 50.0
"""The longest that can be asked for."""


class Member(NamedTuple):
    """One host."""

    name: str
    agent: Agent
    client: AgentClient
    address: str
    state_dir: Path

    @property
    def store(self) -> Store:
        return self.agent._store

    def has(self, blobs: Iterable[Digest]) -> bool:
        return not self.store.missing(blobs)


class Neighbourhood:
    """Hosts, and a store of the operator's."""

    def __init__(self, tmp: Path, source: Store) -> None:
        self.tmp = tmp
        self.source = source
        self.members: dict[str, Member] = {}
        self.addresses: dict[str, str] = {}
        """Of every host that has begun; an agent is there again when it begins anew."""
        self._version = 0

    def credentials(self, host: str) -> Path:
        return authority().issue(self.tmp / host / "credentials", f"host:{host}", host=host)

    @asynccontextmanager
    async def member(self, name: str, *, limits: PeerLimits | None = None) -> AsyncIterator[Member]:
        """A host that runs."""
        state_dir = self.tmp / name
        (state_dir / "work").mkdir(parents=True, exist_ok=True)
        credentials = self.credentials(name)
        operator = authority().issue(self.tmp / "operator", OPERATOR)
        runtime = MemoryRuntime()
        agent = await Agent.open(name, state_dir, limits=ROOM, pin=False, runtime=runtime.connect, peer_limits=limits)
        port = int(self.addresses[name].rpartition(":")[2]) if name in self.addresses else free_port()
        try:
            async with (
                listening(agent, tls.server_context(credentials), "127.0.0.1", port) as address,
                AgentClient(name, address, operator) as client,
            ):
                made = self.members[name] = Member(name, agent, client, address, state_dir)
                self.addresses[name] = address
                yield made
        finally:
            self.members.pop(name, None)
            await agent.close()

    async def meet(self, regions: Mapping[str, str] = REGIONS) -> None:
        """Everybody is told of everybody who has an address."""
        self._version += 1
        neighbours = tuple(Neighbour(name, regions[name], address) for name, address in sorted(self.addresses.items()))
        for member in self.members.values():
            await member.client.meet(Meet(neighbours, self._version))

    def listed(self, blobs: Iterable[Digest]) -> Digest:
        """The inventory of these, in the operator's store."""
        return self.source.put(inventory.encode(inventory.take_inventory(self.source, blobs))).digest

    async def give(self, name: str, blobs: Iterable[Digest]) -> None:
        """As the deployer sends them."""
        wanted = list(blobs)
        client = self.members[name].client
        held = [base for base in exchange.bases_of(self.source, wanted) if self.members[name].has([base])]
        await client.send_blobs(exchange.frames(self.source, wanted, held))

    async def fetch(
        self,
        name: str,
        blobs: Iterable[Digest],
        *,
        listed: Digest,
        hosts: Iterable[str] = (),
        wait_s: float = 0.0,
        inside: bool = False,
    ) -> Fetched:
        manifests = inventory.decode(self.source.read(listed)).manifests()
        await self.give(name, [listed, *manifests])
        party = Party(tuple(hosts) or tuple(sorted(self.addresses)), tuple(blobs))
        return await self.members[name].client.fetch(Fetch(listed, (party,), wait_s, inside or UNSET))


@asynccontextmanager
async def neighbourhood(tmp: Path, *names: str, limits: PeerLimits | None = None) -> AsyncIterator[Neighbourhood]:
    with Store.open(tmp / "source") as source:
        made = Neighbourhood(tmp, source)
        async with AsyncExitStack() as stack:
            for name in names:
                await stack.enter_async_context(made.member(name, limits=limits))
            await made.meet()
            yield made


def noise(size: int, seed: int = 1) -> bytes:
    """Bytes that do not get smaller."""
    return random.Random(seed).randbytes(size)


def run(tmp: Path, work: Callable[[Path], Awaitable[Any]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(250):
            await work(tmp)

    asyncio.run(bounded())
