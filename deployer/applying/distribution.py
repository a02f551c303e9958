"""Bringing blobs to hosts where these can help each other: each blob goes to one host of a region, the others take it
from there.

1. The hosts are asked what they lack, and told by the same question who their neighbours are.
2. What no host of a region has is sent to one of those that lack it (`cas.swarm.ranking` ranks them, for each blob in
   another way), large blobs piece by piece, in one body with what it takes to check them. Small blobs go to all: asking
   around for them would cost more.
3. The others are told at once what to fetch, with the inventory by which they check it; so they get the first pieces
   while the last ones are on their way to the first host. Once that has all of them, they need no deployer.
4. Where a host that was to bring blobs into its region fails, another one does, from where the first one was.
   Who has failed is tried once more when the others of its region have everything.
5. What a host has not got in the end, or makes no headway with, is sent to it. So nothing is less certain than without
   neighbours.

Where no region has two hosts that are to be served, all of it is `deployer.applying.transfer`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from agent.api import Acquaint, BlobReceipt, Fetch, Fetched, Party, Reason
from agent.client import AgentClient, AgentError, CallRefused, refused_because
from cas.digest import Digest
from cas.errors import CasError
from cas.inventory import Form, Inventory, Item
from cas.swarm.ranking import Swarm
from deployer.applying.fleet import for_each
from deployer.applying.introducing import acquaint_by_the_way, introduce
from deployer.applying.outcome import Brought
from deployer.applying.pieces import ByPieces
from deployer.applying.site import Site
from deployer.applying.transfer import HOSTS_AT_ONCE, Lack, Meter, Send, Source, send_stream, serve, transfer
from deployer.errors import TransferFailed
from deployer.history.stocktaking import read_inventory
from deployer.language.schema import Definition

FAR_SMALLER: Final = 8
"""Where a delta has no more than this part of a blob, nobody is told how to check the whole."""
SMALL_BYTES: Final = 4096
"""What takes no more to send goes to every host that lacks it."""
WAIT_S: Final = 5.0
"""For one answer about how far a host is."""
ASK_AGAIN_S: Final = 1.0
"""A host that has given up before its region had everything is asked again so much later."""
STUCK_S: Final = 20.0
"""A host that makes no headway for so long, while its region is sent nothing either, is sent the rest."""


class Shares(NamedTuple):
    """Who is sent what, and who gets what from the others."""

    sent: dict[str, tuple[Digest, ...]]
    fetched: dict[str, tuple[Digest, ...]]


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
        return {host: _added(_nothing(host, definition), receipt) for host, receipt in receipts.items()}
    listed = await asyncio.to_thread(read_inventory, site.store, inventory)
    alone = [host for host in blobs if not any(host in hosts for hosts in crowded.values())]
    acquaint = await asyncio.to_thread(acquaint_by_the_way, site, definition)
    await _introduce(site, blobs if acquaint is None else alone, definition)
    work = _Distribution(site, blobs, definition, inventory, listed, acquaint)
    await asyncio.gather(*(work.region(hosts) for hosts in crowded.values()), work.directly(alone))
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
) -> Shares:
    """Split what the hosts of a region lack. `small`: what each is sent; `held`: what another host there has."""
    lack_it: dict[Digest, list[str]] = {}
    for host in sorted(lacking):
        for blob in lacking[host]:
            lack_it.setdefault(blob, []).append(host)
    sent: dict[str, list[Digest]] = {host: [] for host in lacking}
    fetched: dict[str, list[Digest]] = {host: [] for host in lacking}
    for blob, hosts in lack_it.items():
        bringers = hosts
        if blob not in small:
            bringers = [] if blob in held else [next(host for host in swarm.ranking(region, blob) if host in hosts)]
        for host in hosts:
            (sent if host in bringers else fetched)[host].append(blob)
    return Shares({host: tuple(b) for host, b in sent.items()}, {host: tuple(b) for host, b in fetched.items()})


class _Bringing:
    """What a region is being sent."""

    def __init__(self, meters: dict[str, Meter]) -> None:
        self.meters = meters
        self.is_over = False

    @property
    def sent_bytes(self) -> int:
        return sum(meter.sent_bytes for meter in self.meters.values())


class _Distribution:
    def __init__(
        self,
        site: Site,
        blobs: Mapping[str, Sequence[Digest]],
        definition: Definition,
        inventory: Digest,
        listed: Inventory,
        acquaint: Acquaint | None,
    ) -> None:
        self._site = site
        self._acquaint = acquaint
        """What hosts are told of their neighbours when they are asked; None where they have been told."""
        self._blobs = blobs
        self._definition = definition
        self._inventory = inventory
        self._items = listed.by_blob()
        self._source = Source(site.store)
        self._by_pieces = ByPieces(inventory, self._items)
        self._gate = asyncio.Semaphore(HOSTS_AT_ONCE)
        self._wanted_by: dict[Digest, list[str]] = {}
        for host in sorted(set(blobs) & set(definition.host)):
            for blob in blobs[host]:
                self._wanted_by.setdefault(blob, []).append(host)
        self.brought: dict[str, Brought] = {}
        self.failures: dict[str, str] = {}

    async def directly(self, hosts: Iterable[str], known: Mapping[str, Lack] | None = None) -> None:
        """Send each of these hosts all that it lacks. `known`: what some have said of that just now."""
        lacks = known or {}
        await for_each(
            sorted(hosts),
            lambda host: self._serve(host, (*self._blobs[host], *self._neighbours()), lack=lacks.get(host)),
            at_once=HOSTS_AT_ONCE,
        )

    async def region(self, hosts: Sequence[str]) -> None:
        """Serve the hosts of one region. One that fails is tried once more when all others have what they need: its
        agent may have been started again meanwhile."""
        await self._serve_region(hosts)
        if [self.failures.pop(host) for host in hosts if host in self.failures]:
            await self._serve_region(hosts)

    async def _serve_region(self, hosts: Sequence[str]) -> None:
        lacking = await self._lacking(hosts)
        if not lacking:
            return
        of_all = Swarm(self._by_region(self._definition.host))
        region = of_all.region_of[hosts[0]]
        missing = {host: _of(lack, self._blobs[host]).missing for host, lack in lacking.items()}
        small = await asyncio.to_thread(self._small, missing, lacking)
        held = {blob for host, lacks_it in missing.items() for blob in {*self._blobs[host]} - {*lacks_it}}
        split = shares(missing, of_all, region, small, held)
        if not any(split.fetched.values()):
            await self.directly(lacking, lacking)
            return
        await self._bring_and_help(lacking, split, small)
        if any(host in self.failures for host in lacking):
            await self._serve_region([host for host in lacking if host not in self.failures])

    async def _bring_and_help(self, lacking: Mapping[str, Lack], split: Shares, small: Collection[Digest]) -> None:
        """Send blobs to some hosts of a region, and have others fetch them meanwhile; until all have them, or a host
        that brings them in has failed."""
        large = {host: tuple(blob for blob in sent if blob not in small) for host, sent in split.sent.items()}
        bringers = [host for host in lacking if large[host]]
        bringing = _Bringing({host: Meter(self._site, host) for host in bringers})
        try:
            async with asyncio.TaskGroup() as group:
                told = {host: asyncio.Event() for host in lacking}
                sending = {
                    host: group.create_task(self._send(host, lack, split, large[host], bringing, told[host]))
                    for host, lack in lacking.items()
                }
                helping = [
                    group.create_task(self._help(host, split.fetched[host], bringing, told[host]))
                    for host in lacking
                    if split.fetched[host]
                ]
                if bringers:
                    await asyncio.wait([sending[host] for host in bringers])
                bringing.is_over = True
                if any(host in self.failures for host in bringers):
                    for task in helping:
                        task.cancel()
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None

    # --- one host ---

    async def _lacking(self, hosts: Sequence[str]) -> dict[str, Lack]:
        found: dict[str, Lack] = {}

        async def one(host: str) -> None:
            try:
                wanted = (*self._blobs[host], *self._listing(self._blobs[host]), *self._neighbours())
                found[host] = await self._lack(await self._site.fleet.client(host), wanted)
                self.brought.setdefault(host, _nothing(host, self._definition))
            except (AgentError, CasError) as error:
                self.failures[host] = str(error)

        await for_each(sorted(hosts), one, at_once=HOSTS_AT_ONCE)
        return dict(sorted(found.items()))

    async def _lack(self, client: AgentClient, wanted: Sequence[Digest]) -> Lack:
        """Raises AgentError."""
        try:
            return await self._source.lack(client, wanted, self._acquaint)
        except CallRefused as error:
            if self._acquaint is None or not refused_because(error, Reason.BAD_REQUEST):
                raise
        await introduce(self._site, [client.host_name], self._definition)  # an agent of before
        return await self._source.lack(client, wanted)

    def _small(self, missing: Mapping[str, Sequence[Digest]], lacking: Mapping[str, Lack]) -> frozenset[Digest]:
        """What is sent to each host that lacks it: what takes few bytes, and what the inventory does not list."""
        found: set[Digest] = set()
        seen: set[Digest] = set()
        for host, blobs in missing.items():
            for blob in blobs:
                if blob not in seen:
                    seen.add(blob)
                    if blob not in self._items or self._cost(blob, lacking[host].bases) <= SMALL_BYTES:
                        found.add(blob)
        return frozenset(found)

    def _cost(self, blob: Digest, bases: tuple[Digest, ...]) -> int:
        try:
            return self._source.cost(Lack((blob,), bases))
        except CasError:
            return 0  # it cannot be sent, which is found out and told where that is tried

    async def _send(
        self, host: str, lack: Lack, split: Shares, large: Sequence[Digest], bringing: _Bringing, told: asyncio.Event
    ) -> None:
        """Send a host what is small, what it needs to check the pieces that it is sent and fetches, and the large blobs
        that it hands on. `told` is set when it can be told what to fetch."""
        meter = bringing.meters.get(host)
        try:
            small = [blob for blob in split.sent[host] if blob not in large]
            checks = await asyncio.to_thread(self._by_pieces.checks, self._source, _of(lack, large))
            listing = self._listing(split.fetched[host], lack.bases)
            first = tuple(dict.fromkeys([*small, *checks, *listing, *self._neighbours()]))
            if lack.arriving is None:
                await self._serve(host, first, lack=lack)
                told.set()
                if large and host not in self.failures:
                    await self._serve(host, large, self._by_pieces.send, meter=meter, lack=lack)
                return
            if checks:
                told.set()  # and has what it was sent once pieces move
            await self._serve(host, (*first, *large), self._by_pieces.send, meter=meter, lack=lack)
        except CasError as error:
            self.failures[host] = str(error)
        finally:
            told.set()
            if meter is not None:
                meter.moving.set()

    async def _serve(
        self,
        host: str,
        blobs: Sequence[Digest],
        send: Send = send_stream,
        *,
        meter: Meter | None = None,
        lack: Lack | None = None,
    ) -> None:
        """Send a host what it lacks of these: what `lack` says, or what it says itself."""
        lack = None if lack is None else _of(lack, blobs)
        async with self._gate:
            try:
                receipt = await serve(self._site, self._source, host, tuple(blobs), send=send, meter=meter, lack=lack)
            except (AgentError, CasError) as error:
                self.failures[host] = str(error)
                return
        self.brought[host] = _added(self.brought.get(host, _nothing(host, self._definition)), receipt)

    async def _help(self, host: str, blobs: tuple[Digest, ...], bringing: _Bringing, told: asyncio.Event) -> None:
        """Have a host fetch these once it was told of them, and send it what it does not get."""
        fetched = Fetched(blobs, under_way=False)
        try:
            await told.wait()
            if host in bringing.meters:  # what it brings comes first, over the connection that is open
                await bringing.meters[host].moving.wait()
            fetched = await self._fetched(host, blobs, bringing)
        except AgentError:
            pass  # what it lacks is sent to it, and that it cannot be reached is found out there
        whole_bytes = await asyncio.to_thread(self._whole_bytes, {*blobs} - {*fetched.missing})
        so_far = self.brought[host]
        self.brought[host] = msgspec.structs.replace(
            so_far,
            region_bytes=fetched.region_bytes,
            border_bytes=fetched.border_bytes,
            blobs=so_far.blobs + fetched.blobs,
            whole_bytes=so_far.whole_bytes + whole_bytes,
            wrong=fetched.wrong,
        )
        if self.failures.pop(host, None) or fetched.missing:
            await self._serve(host, blobs)

    def _neighbours(self) -> tuple[Digest, ...]:
        """The list of them, where hosts are to know it by its name."""
        return () if self._acquaint is None else (self._acquaint.neighbours,)

    def _whole_bytes(self, blobs: Collection[Digest]) -> int:
        return sum(stat.size for stat in self._site.store.stats(blobs).values())

    def _listing(self, blobs: Iterable[Digest], bases: Collection[Digest] = ()) -> tuple[Digest, ...]:
        """What it takes to check the pieces of these blobs; nothing for none. Of a blob that a delta of one of `bases`
        makes far smaller, only what that delta takes: the list of a large blob's own pieces would weigh as much."""
        items = [self._items[blob] for blob in blobs if blob in self._items]
        if not items:
            return ()
        forms = (form for item in items for form in _worth_checking(item, {*bases}))
        return self._inventory, *sorted({form.manifest for form in forms if form.manifest is not None})

    async def _fetched(self, host: str, blobs: tuple[Digest, ...], bringing: _Bringing) -> Fetched:
        """How far the host came by itself. Raises AgentError."""
        client = await self._site.fleet.client(host)
        fetch = Fetch(self._inventory, self._parties(blobs), WAIT_S)
        clock = asyncio.get_running_loop().time
        moved_s, before = clock(), -1
        while True:
            try:
                fetched = await client.fetch(fetch)
            except CallRefused as error:
                if bringing.is_over or not refused_because(error, Reason.MISSING_BLOBS):
                    raise
                await asyncio.sleep(ASK_AGAIN_S)  # what it takes to check the pieces is still on its way
                continue
            now = fetched.region_bytes + fetched.border_bytes + fetched.blobs + bringing.sent_bytes
            if now != before:
                moved_s, before = clock(), now
            has_ended = not fetched.under_way and (bringing.is_over or not fetched.missing)
            if has_ended or clock() - moved_s > STUCK_S:
                return fetched
            if not fetched.under_way:
                await asyncio.sleep(ASK_AGAIN_S)

    # --- what a host is told ---

    def _parties(self, blobs: Iterable[Digest]) -> tuple[Party, ...]:
        by_hosts: dict[tuple[str, ...], list[Digest]] = {}
        for blob in blobs:
            by_hosts.setdefault(tuple(self._wanted_by[blob]), []).append(blob)
        return tuple(
            Party(hosts if len(hosts) < len(self._definition.host) else (), tuple(own))
            for hosts, own in by_hosts.items()
        )

    def _by_region(self, hosts: Iterable[str]) -> dict[str, list[str]]:
        return _grouped(hosts, self._definition)


def _worth_checking(item: Item, bases: Collection[Digest]) -> tuple[Form, ...]:
    """The forms of a blob that a host with these bases may be given by others."""
    deltas = tuple(form for form in item.others if form.base in bases)
    smallest = min((form.size for form in deltas), default=item.whole.size)
    return deltas if smallest * FAR_SMALLER < item.whole.size else (item.whole, *item.others)


def _regions(blobs: Mapping[str, Sequence[Digest]], definition: Definition) -> dict[str, list[str]]:
    """The hosts that are to be served and are in the definition, by region."""
    return _grouped((host for host in blobs if host in definition.host), definition)


def _grouped(hosts: Iterable[str], definition: Definition) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for host in sorted(hosts):
        found.setdefault(definition.host[host].region, []).append(host)
    return found


def _of(lack: Lack, blobs: Iterable[Digest]) -> Lack:
    """The same of these blobs only."""
    wanted = set(blobs)
    return lack._replace(missing=tuple(blob for blob in lack.missing if blob in wanted))


def _nothing(host: str, definition: Definition) -> Brought:
    """To a host that may have left the definition."""
    return Brought(region=definition.host[host].region if host in definition.host else "")


def _added(brought: Brought, receipt: BlobReceipt) -> Brought:
    """With what the deployer has sent."""
    return msgspec.structs.replace(
        brought,
        deployer_bytes=brought.deployer_bytes + receipt.wire_bytes,
        blobs=brought.blobs + receipt.blobs,
        whole_bytes=brought.whole_bytes + receipt.raw_bytes,
    )
