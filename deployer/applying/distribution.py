"""Bringing blobs to hosts where these can help each other: each blob goes to one host of a region, the others take it
from there.

1. The hosts are asked what they lack, and told by the same question who their neighbours are.
2. What no host of a region has is sent to one of those that lack it (`cas.swarm.ranking` ranks them, for each blob in
   another way), large blobs piece by piece, in one body with what it takes to check them. Small blobs go to all: asking
   around for them would cost more.
3. The others are told at once what to fetch, with the inventory by which they check it; so they get the first pieces
   while the last ones are on their way to the first host. Once that has all of them, they need no deployer.
4. Where a host that was to bring blobs into its region fails, another one does, from where the first one was.
   Who has failed is tried again when the others of its region have everything.
5. So it does where that host is much slower than others that bring blobs in (`slowness`): the slow one gets them from
   its region.
6. What a host has not got in the end, or makes no headway with (`headway`: its word alone keeps nobody waiting), is
   sent to it. So nothing is less certain than without neighbours.

Where no region has two hosts that are to be served, all of it is `deployer.applying.transfer`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

from agent.client.client import AgentClient
from agent.client.errors import AgentError, CallRefused
from cas.digest import Digest
from cas.errors import CasError
from cas.swarm.ranking import Swarm
from deployer.applying.delivery import Delivery, added, nothing, of_these
from deployer.applying.fleet import for_each
from deployer.applying.introducing import acquaint_by_the_way, introduce
from deployer.applying.outcome import Brought
from deployer.applying.region import Round, Shares
from deployer.applying.site import Site
from deployer.applying.transfer import HOSTS_AT_ONCE, Lack, transfer
from deployer.errors import TransferFailed
from deployer.history.stocktaking import read_inventory
from deployer.language.schema import Definition

BACK_S: Final = (0.0, 0.5, 1.5)
"""Before a host that has failed is tried again, each time."""
SMALL_BYTES: Final = 4096
"""What takes no more to send goes to every host that lacks it."""


async def distribute(
    site: Site, blobs: Mapping[str, Sequence[Digest]], definition: Definition, inventory: Digest | None
) -> dict[str, Brought]:
    """Bring to each host what it lacks of these blobs. Raises TransferFailed once every host has been served that
    could be."""
    regions = _regions(blobs, definition)
    crowded = {region: hosts for region, hosts in regions.items() if len(hosts) > 1}
    if inventory is None or not crowded:
        await _introduce(site, blobs, definition)
        receipts = await transfer(site, blobs)
        return {host: added(nothing(host, definition), receipt) for host, receipt in receipts.items()}
    listed = await asyncio.to_thread(read_inventory, site.store, inventory)
    alone = [host for host in blobs if not any(host in hosts for hosts in crowded.values())]
    acquaint = await asyncio.to_thread(acquaint_by_the_way, site, definition)
    await _introduce(site, blobs if acquaint is None else alone, definition)
    work = _Distribution(site, blobs, definition, inventory, listed, acquaint)
    parts = [*(partial(work.region, hosts) for hosts in crowded.values()), partial(work.directly, alone)]
    await for_each(parts, lambda part: part(), at_once=len(parts))
    if work.failures:
        raise TransferFailed(work.failures)
    return dict(sorted(work.brought.items()))


async def _introduce(site: Site, hosts: Iterable[str], definition: Definition) -> None:
    known = [host for host in hosts if host in definition.host]
    if known and len(definition.host) > 1:
        await introduce(site, known, definition)


def shares(
    lacking: Mapping[str, Sequence[Digest]],
    swarm: Swarm,
    region: str,
    small: Collection[Digest],
    held: Collection[Digest] = (),
    slow: Collection[str] = (),
) -> Shares:
    """Split what the hosts of a region lack. `small`: what each is sent; `held`: what another host there has; `slow`:
    hosts that bring nothing in, as long as there are others."""
    lack_it: dict[Digest, list[str]] = {}
    for host in sorted(lacking):
        for blob in lacking[host]:
            lack_it.setdefault(blob, []).append(host)
    sent: dict[str, list[Digest]] = {host: [] for host in lacking}
    fetched: dict[str, list[Digest]] = {host: [] for host in lacking}
    for blob, hosts in lack_it.items():
        bringers = hosts
        if blob not in small:
            ranked = sorted(
                (host for host in swarm.ranking(region, blob) if host in hosts), key=lambda host: host in slow
            )
            bringers = [] if blob in held else ranked[:1]
        for host in hosts:
            (sent if host in bringers else fetched)[host].append(blob)
    return Shares({host: tuple(b) for host, b in sent.items()}, {host: tuple(b) for host, b in fetched.items()})


class _Distribution(Delivery):
    async def directly(self, hosts: Iterable[str], known: Mapping[str, Lack] | None = None) -> None:
        """Send each of these hosts all that it lacks. `known`: what some have said of that just now."""
        lacks = known or {}
        await for_each(
            sorted(hosts),
            lambda host: self.serve(host, (*self.blobs[host], *self.neighbours()), lack=lacks.get(host)),
            at_once=HOSTS_AT_ONCE,
        )

    async def region(self, hosts: Sequence[str]) -> None:
        """Serve the hosts of one region. One that fails is tried again when all others have what they need: its agent
        may have been started again meanwhile, or be about to. Not so one that took what it was sent and did nothing."""
        await self._serve_region(hosts)
        for wait_s in BACK_S:
            again = [host for host in hosts if host in self.failures and host not in self.silent]
            if not again:
                return
            await asyncio.sleep(wait_s)
            for host in again:
                del self.failures[host]
            served = [host for host in hosts if host not in again and host not in self.failures]
            await self._serve_region(again, served)

    async def _serve_region(self, hosts: Sequence[str], served: Sequence[str] = ()) -> None:
        """`served`: others of the region, which have all that they need."""
        lacking = await self._lacking(hosts)
        if not lacking:
            return
        of_all = Swarm(_grouped(self.definition.host, self.definition))
        region = of_all.region_of[hosts[0]]
        missing = {host: of_these(lack, self.blobs[host]).missing for host, lack in lacking.items()}
        small = await asyncio.to_thread(self._small, missing, lacking)
        held = {blob for host in served for blob in self.blobs[host]}
        held |= {blob for host, lacks_it in missing.items() for blob in {*self.blobs[host]} - {*lacks_it}}
        split = shares(missing, of_all, region, small, held, self.slow)
        if not any(split.fetched.values()):
            await self.directly(lacking, lacking)
        elif not await Round(self, of_all, lacking, split, small).run():
            left = [host for host in lacking if host not in self.failures]
            if len(left) < len(lacking):
                await self._serve_region(left, served)
            else:  # by what they say of each other nobody is fit to bring it in, and would not be another time
                await self.directly(left)

    async def _lacking(self, hosts: Sequence[str]) -> dict[str, Lack]:
        found: dict[str, Lack] = {}

        async def one(host: str) -> None:
            try:
                wanted = (*self.blobs[host], *self.listing(self.blobs[host]), *self.neighbours())
                found[host] = await self._lack(await self.site.fleet.client(host), wanted)
                self.begin(host)
            except (AgentError, CasError) as error:
                self.failed(host, error)

        await for_each(sorted(hosts), one, at_once=HOSTS_AT_ONCE)
        return dict(sorted(found.items()))

    async def _lack(self, client: AgentClient, wanted: Sequence[Digest]) -> Lack:
        """Raises AgentError."""
        try:
            return await self.source.lack(client, wanted, self.acquaint)
        except CallRefused:
            if self.acquaint is None:
                raise
        await introduce(self.site, [client.host_name], self.definition)  # an agent of before, or it cannot use the list
        return await self.source.lack(client, wanted)

    def _small(self, missing: Mapping[str, Sequence[Digest]], lacking: Mapping[str, Lack]) -> frozenset[Digest]:
        """What is sent to each host that lacks it: what takes few bytes, and what the inventory does not list."""
        found: set[Digest] = set()
        seen: set[Digest] = set()
        for host, blobs in missing.items():
            for blob in blobs:
                if blob not in seen:
                    seen.add(blob)
                    if blob not in self.items or self._cost(blob, lacking[host].bases) <= SMALL_BYTES:
                        found.add(blob)
        return frozenset(found)

    def _cost(self, blob: Digest, bases: tuple[Digest, ...]) -> int:
        try:
            return self.source.cost(Lack((blob,), bases))
        except CasError:
            return 0  # it cannot be sent, which is found out and told where that is tried


def _regions(blobs: Mapping[str, Sequence[Digest]], definition: Definition) -> dict[str, list[str]]:
    """The hosts that are to be served and are in the definition, by region."""
    return _grouped((host for host in blobs if host in definition.host), definition)


def _grouped(hosts: Iterable[str], definition: Definition) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for host in sorted(hosts):
        found.setdefault(definition.host[host].region, []).append(host)
    return found
