"""Serving the hosts of one region at once: some are sent blobs, the others fetch them from these meanwhile.

Whoever brings large blobs in may fail, be much slower than others (`slowness`), or hand on wrong bytes. Then the next
in the ranking of each blob is at once sent what it has not got of it, while all go on fetching; nobody is asked again
what it lacks. A slow one, or one that lies, gets the blobs from its region. So does one whose agent is started again
while it fetches: to be sent them would bring them over the border once more. Where nobody is left to bring a blob in,
that is told: all begins anew without the hosts that failed, or where none did, each is sent what it lacks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

from msgspec import UNSET

from agent.api.answers import Reason
from agent.api.blobs import BlobReceipt
from agent.api.fetching import Fetch, Fetched
from agent.client.errors import AgentError, CallRefused, HostSilent, HostUnreachable, refused_because
from cas.digest import Digest
from cas.errors import CasError
from cas.swarm.ranking import Swarm
from deployer.applying.delivery import Delivery, of_these
from deployer.applying.headway import Line
from deployer.applying.slowness import LOOK_S, MOST_REPLACED, TELLING_BYTES, Pace
from deployer.applying.transfer import TRIES, Lack, Meter

WAIT_S: Final = 5.0
"""For one answer about how far a host is."""
ASK_AGAIN_S: Final = 1.0
"""A host that has given up before its region had everything is asked again so much later."""
NO_NEWS_S: Final = 0.2
"""The same, of one that answers at once and has nothing new to say."""
TRIES_OF_MANY: Final = 1
"""Where others can bring a blob in, nobody is tried more often."""


class Shares(NamedTuple):
    """Who is sent what, and who gets what from the others."""

    sent: dict[str, tuple[Digest, ...]]
    fetched: dict[str, tuple[Digest, ...]]


class _Bringing(NamedTuple):
    """A host that is being sent large blobs, which it hands on."""

    host: str
    blobs: tuple[Digest, ...]
    task: asyncio.Task[bool]


class Round:
    """One region being served. `lacking`: its hosts; `small`: the blobs that each is sent. Use `run` once."""

    def __init__(
        self,
        work: Delivery,
        swarm: Swarm,
        lacking: Mapping[str, Lack],
        split: Shares,
        small: Collection[Digest],
    ) -> None:
        self._work = work
        self._swarm = swarm
        self._region = swarm.region_of[next(iter(lacking))]
        self._lacking = lacking
        self._split = split
        self._large = {host: tuple(blob for blob in sent if blob not in small) for host, sent in split.sent.items()}
        self._first: dict[str, tuple[Digest, ...]] = {}
        """What a host is sent before it can be told what to fetch."""
        self._told = {host: asyncio.Event() for host in lacking}
        self._meters = {host: Meter(work.site, host) for host in lacking}
        self._bringing: list[_Bringing] = []
        self._helping: list[asyncio.Task[None]] = []
        self._brought: list[_Bringing] = []
        """Those that have been sent all of it."""
        self._lines = {host: Line() for host in lacking}
        self._given: dict[str, set[Digest]] = {host: set() for host in lacking}
        """Blobs that hosts were sent in place of others."""
        self._liars: set[str] = set()
        """Hosts that others have had wrong bytes from."""
        self._is_over = False
        """Nothing is brought in any more."""

    async def run(self) -> bool:
        """Until all have everything; False where some blob has nobody left to bring it in."""
        try:
            async with asyncio.TaskGroup() as group:
                for host, lack in self._lacking.items():
                    sending = group.create_task(self._send(host, lack))
                    if self._large[host]:
                        self._bringing.append(_Bringing(host, self._large[host], sending))
                    if self._split.fetched[host]:
                        self._helping.append(group.create_task(self._help(host, self._split.fetched[host])))
                whole = await self._until_brought(group)
                if not whole:
                    for task in self._helping:
                        task.cancel()
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return whole

    # --- who brings ---

    async def _until_brought(self, group: asyncio.TaskGroup) -> bool:
        """Whether somebody could bring each blob in."""
        whole = True
        while running := [task for task in [*(one.task for one in self._bringing), *self._helping] if not task.done()]:
            await asyncio.wait(running, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
            for one in list(self._bringing):
                if one.task.done():
                    self._bringing.remove(one)
                    if one.task.result():
                        self._brought.append(one)
                    else:
                        whole = self._replace(one, group) and whole
                elif (one.host in self._liars or await self._is_too_slow(one.host)) and self._replace(one, group):
                    self._bringing.remove(one)
                    await self._leave(one, group)
            for one in [one for one in self._brought if one.host in self._liars]:
                self._brought.remove(one)
                whole = self._replace(one, group) and whole
            self._is_over = not self._bringing
            if not whole and self._is_over:
                break
        return whole

    def _replace(self, one: _Bringing, group: asyncio.TaskGroup) -> bool:
        """Have others bring in what this one was to; whether all of it has somebody who can."""
        by_host: dict[str, list[Digest]] = {}
        for blob in one.blobs:
            host = next((name for name in self._candidates(blob) if name != one.host), None)
            if host is None:
                return False
            by_host.setdefault(host, []).append(blob)
        for host, blobs in by_host.items():
            task = group.create_task(self._bring_instead(host, tuple(blobs)))
            self._bringing.append(_Bringing(host, tuple(blobs), task))
        return True

    def _candidates(self, blob: Digest) -> list[str]:
        """Who can bring a blob in, the best first."""
        unfit = {*self._work.failures, *self._work.slow, *self._liars}
        return [
            host
            for host in self._swarm.ranking(self._region, blob)
            if host in self._lacking and blob in self._lacking[host].missing and host not in unfit
        ]

    async def _is_too_slow(self, host: str) -> bool:
        """As long as few of its region were: it may be the border that is slow."""
        work = self._work
        arrived_bytes = (await work.site.fleet.client(host)).acknowledged_bytes()
        if arrived_bytes is None or not self._meters[host].moving.is_set():
            return False
        pace = work.paces.setdefault(host, Pace())
        pace.arrived(arrived_bytes, asyncio.get_running_loop().time())
        others = {name: other for name, other in work.paces.items() if name != host}
        inside = {
            name: other
            for name, other in others.items()
            if name in self._lacking and name not in work.slow and other.bytes >= TELLING_BYTES
        }
        best = [other.best_bytes_s for other in (inside or others).values()]
        beside = [inside[one.host] for one in self._bringing if one.host in inside and not one.task.done()]
        replaced = work.slow.intersection(self._lacking)
        return len(replaced) < MOST_REPLACED and pace.is_behind(self._meters[host].total_bytes, best, beside)

    async def _leave(self, one: _Bringing, group: asyncio.TaskGroup) -> None:
        """Have a host that is not fit for it fetch what it was to bring in."""
        self._work.slow.add(one.host)
        if pace := self._work.paces.get(one.host):
            self._work.sent(one.host, BlobReceipt(0, pace.bytes, 0))
        client = await self._work.site.fleet.client(one.host)
        one.task.cancel()
        await client.drop_connections()  # first: a request that is cancelled has its connection send all it holds
        await asyncio.wait([one.task])
        self._told[one.host].clear()
        group.create_task(self._tell_again(one.host))
        if blobs := tuple(blob for blob in one.blobs if blob not in self._split.fetched[one.host]):
            self._helping.append(group.create_task(self._help(one.host, blobs)))

    # --- what one host is sent ---

    async def _send(self, host: str, lack: Lack) -> bool:
        """Send a host what is small, what it needs to check the pieces that it is sent and fetches, and the large blobs
        that it hands on. Whether that went well."""
        work, large = self._work, self._large[host]
        try:
            small = [blob for blob in self._split.sent[host] if blob not in large]
            checks = await asyncio.to_thread(work.by_pieces.checks, work.source, of_these(lack, large))
            listing = work.listing(self._split.fetched[host], lack.bases)
            first = tuple(dict.fromkeys([*small, *checks, *listing, *work.neighbours()]))
            self._first[host] = first
            meter, tries = self._meters[host], self._tries(large)
            if lack.arriving is None:
                well = await work.serve(host, first, lack=lack)
                self._told[host].set()
                if large and well:
                    well = await work.serve(host, large, work.by_pieces.send, meter=meter, lack=lack, tries=tries)
                return well
            if checks:
                self._told[host].set()  # and has what it was sent once pieces move
            return await work.serve(host, (*first, *large), work.by_pieces.send, meter=meter, lack=lack, tries=tries)
        except CasError as error:
            work.failed(host, error)
            return False
        finally:
            self._told[host].set()
            self._meters[host].moving.set()

    async def _bring_instead(self, host: str, blobs: tuple[Digest, ...]) -> bool:
        """Send a host what another one was to bring in, and it has not got from that. Whether that went well."""
        work = self._work
        await self._told[host].wait()
        if host in work.failures:
            return False
        lack = of_these(self._lacking[host], blobs)._replace(arriving=None)
        meter, tries = self._meters[host], self._tries(blobs)
        well = await work.serve(host, blobs, work.by_pieces.send, meter=meter, lack=lack, tries=tries)
        if well:
            self._given[host].update(blobs)
        return well

    async def _tell_again(self, host: str) -> None:
        """What it was sent before it can fetch may have been cut off with the rest."""
        try:
            await self._work.serve(host, self._first.get(host, ()))
        finally:
            self._told[host].set()

    def _tries(self, blobs: Sequence[Digest]) -> int:
        return TRIES_OF_MANY if blobs and all(len(self._candidates(blob)) > 1 for blob in blobs) else TRIES

    def _brought_bytes(self) -> int:
        """Grows as long as something comes into the region: over a slow border all of it is handed to the network long
        before it has arrived."""
        paces = [self._work.paces[host] for host in self._lacking if host in self._work.paces]
        return sum(meter.sent_bytes for meter in self._meters.values()) + sum(pace.bytes for pace in paces)

    # --- what one host fetches ---

    async def _help(self, host: str, blobs: tuple[Digest, ...]) -> None:
        """Have a host fetch these once it was told of them, and send it what it does not get."""
        fetched = Fetched(blobs, under_way=False)
        try:
            await self._told[host].wait()
            if self._large[host]:  # what it brings comes first, over the connection that is open
                await self._meters[host].moving.wait()
            fetched = await self._fetched(host, blobs)
        except HostUnreachable as error:
            if not isinstance(error, HostSilent) and host not in self._work.away:
                self._work.away.add(host)
                self._work.failed(host, error)
                return
        except AgentError:
            pass  # what it lacks is sent to it, and that it cannot be reached is found out there
        await self._work.fetched(host, {*blobs} - self._given[host], fetched)
        if self._work.failures.pop(host, None) or fetched.missing:
            await self._work.serve(host, blobs)

    async def _fetched(self, host: str, blobs: tuple[Digest, ...]) -> Fetched:
        """How far the host came by itself. One that goes away is asked again, as long as something is brought into its
        region and a few times more: it goes on by itself once its agent has been started again. Raises AgentError."""
        client = await self._work.site.fleet.client(host)
        inside = UNSET if self._lacking[host].arriving is None else True
        fetch = Fetch(self._work.inventory, self._work.parties(blobs), WAIT_S, inside)
        clock = asyncio.get_running_loop().time
        size_bytes = sum(self._work.items[blob].whole.size for blob in blobs)
        line = self._lines[host]
        headway = line.begin(len(blobs), size_bytes, clock())
        unreached = 0
        while True:
            asked_s = clock()
            try:
                fetched = await client.fetch(fetch)
            except CallRefused as error:
                if self._is_over or not refused_because(error, Reason.MISSING_BLOBS):
                    raise
                await asyncio.sleep(ASK_AGAIN_S)  # what it takes to check the pieces is still on its way
                continue
            except HostUnreachable as error:
                unreached += 1
                gives_up = self._is_over and (unreached >= TRIES or line.is_stuck(clock()))
                if gives_up or isinstance(error, HostSilent):
                    raise
                await asyncio.sleep(ASK_AGAIN_S)
                continue
            unreached = 0
            accused = self._lacking.keys() & {*fetched.wrong} - self._liars
            self._liars.update(accused)
            received_bytes = fetched.region_bytes + fetched.border_bytes
            came = headway.told(fetched.blobs, received_bytes, self._brought_bytes(), clock())
            has_ended = not fetched.under_way and (self._is_over or not fetched.missing)
            if has_ended or line.is_stuck(clock()):
                return fetched
            if not fetched.under_way:
                await asyncio.sleep(ASK_AGAIN_S)
            elif not (came or accused) and clock() - asked_s < NO_NEWS_S:
                await asyncio.sleep(NO_NEWS_S)
