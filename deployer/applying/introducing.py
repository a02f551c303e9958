"""Telling hosts who their neighbours are: by the name of the list where they have it, and otherwise the list itself.

The list is a blob (`agent.api.neighbours`), so a change of it costs a host its delta. A host that has no list before,
in a large cloud, is told of itself and one neighbour of its region that has been sent the list, and gets it from there.
One that does not listen can still be sent everything.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from agent.api.answers import Reason
from agent.api.neighbours import Acquaint, Meet, Neighbour, Neighbours
from agent.api.records import encode_record
from agent.client.client import AgentClient
from agent.client.errors import AgentError, refused_because
from cas.digest import Digest
from cas.errors import CasError
from deployer.applying.fleet import for_each
from deployer.applying.progress import Quiet
from deployer.applying.site import Site
from deployer.applying.transfer import HOSTS_AT_ONCE, Source, serve
from deployer.language.schema import Definition

SMALL_BYTES: Final = 4096
"""What costs no more is sent to a host at once."""


def keep_neighbours(site: Site, definition: Definition) -> tuple[Digest, Neighbours]:
    """The list of a definition's hosts, in the store as a blob. Raises StoreFull."""
    addresses = site.fleet.addresses
    listed = Neighbours(
        tuple(
            Neighbour(name, host.region, addresses.get(name, host.address))
            for name, host in sorted(definition.host.items())
        )
    )
    return site.store.put(encode_record(listed), name=f"neighbours/{site.ref}").digest, listed


def acquaint_by_the_way(site: Site, definition: Definition) -> Acquaint | None:
    """What hosts may be told with another question, where their list is small enough to be sent to all that lack it;
    None where it is not, or where there is nobody to know. Blocks. Raises StoreFull."""
    name, listed = keep_neighbours(site, definition)
    if len(listed.neighbours) < 2 or len(encode_record(listed)) > SMALL_BYTES:
        return None
    return Acquaint(name, time.time_ns())


async def introduce(site: Site, hosts: Iterable[str], definition: Definition) -> None:
    """Tell these hosts of their neighbours. Never raises for what they answer."""
    name, listed = await asyncio.to_thread(keep_neighbours, site, definition)
    work = _Introduction(site, name, listed, time.time_ns())
    answers = await site.fleet.each(hosts, lambda client: client.acquaint(work.acquaint))
    lacking = [host for host, known in answers.results.items() if not known]
    holders = {definition.host[host].region: host for host, known in answers.results.items() if known}
    of_before = [host for host, error in answers.failures.items() if refused_because(error, Reason.NOT_FOUND)]
    if work.is_small:
        of_before += lacking
    else:
        await work.bring(lacking, holders)
    await site.fleet.each(of_before, lambda client: client.meet(Meet(listed.neighbours, work.acquaint.at_unix_ns)))


class _Introduction:
    """A list that is too large to be sent to everybody."""

    def __init__(self, site: Site, name: Digest, listed: Neighbours, at_unix_ns: int) -> None:
        self.acquaint = Acquaint(name, at_unix_ns)
        self.is_small = len(encode_record(listed)) <= SMALL_BYTES
        self._site = site._replace(progress=Quiet())  # who watches the transfer is shown what was to be transferred
        self._source = Source(site.store)
        self._by_name = {one.host: one for one in listed.neighbours}

    async def bring(self, hosts: Iterable[str], holders: Mapping[str, str]) -> None:
        """Send it to those for which that costs little, and to one host of each region that has no holder of it yet;
        the others get it there. `holders`: by region, a host that has it."""
        regions: dict[str, list[str]] = {}
        for host in sorted(hosts):
            regions.setdefault(self._by_name[host].region, []).append(host)
        first = [found[0] for region, found in regions.items() if region not in holders]
        await for_each(first, self._send, at_once=HOSTS_AT_ONCE)
        rest = [
            (host, holders.get(region, found[0]))
            for region, found in regions.items()
            for host in found[region not in holders :]
        ]
        await for_each(rest, lambda pair: self._have_brought(*pair), at_once=HOSTS_AT_ONCE)

    async def _send(self, host: str) -> None:
        try:
            await serve(self._site, self._source, host, (self.acquaint.neighbours,))
            await (await self._site.fleet.client(host)).acquaint(self.acquaint)
        except (AgentError, CasError):
            pass  # it can still be sent everything, where it answers at all

    async def _have_brought(self, host: str, first: str) -> None:
        """Have the host get the list from the first of its region, where sending it a delta would not be cheaper."""
        try:
            client = await self._site.fleet.client(host)
            lack = await self._source.lack(client, (self.acquaint.neighbours,))
            if self._source.cost(lack) > SMALL_BYTES and await self._knows_by(client, first):
                return
        except (AgentError, CasError):
            return
        await self._send(host)

    async def _knows_by(self, client: AgentClient, first: str) -> bool:
        known: tuple[Neighbour, ...] = (self._by_name[client.host_name], self._by_name[first])
        await client.meet(Meet(known, self.acquaint.at_unix_ns - 1))
        return await client.acquaint(msgspec.structs.replace(self.acquaint, bring=True))
