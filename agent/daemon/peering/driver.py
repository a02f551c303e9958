"""Carrying out what `cas.swarm` decides: its requests become questions to neighbours, their answers its events.

One errand has one driver. A piece counts once it is verified and in the spool; a blob once the store has it. Trouble of
this host, such as a full disk, ends the errand and is nobody else's fault.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from typing import Final

from agent.api.answers import Reason
from agent.api.fetching import MAX_FORMS_ASKED, MAX_HAVE_WAIT_S, Fetch, Fetched, HaveQuery, PartAsked, PiecesQuery
from agent.api.neighbours import Neighbour
from agent.client.errors import AgentError, HostUnreachable, refused_because
from agent.daemon.peering.acquaintance import Acquaintance
from agent.daemon.peering.flows import Answer, Answers
from agent.daemon.peering.forms import Forms, unchecked_forms
from agent.daemon.peering.links import Links
from agent.daemon.peering.serving import News
from cas.digest import Digest, short
from cas.errors import CasError, StoreBusy, StoreFull
from cas.interface import ExchangeStore
from cas.inventory import Item
from cas.manifest import pieces_in
from cas.partial import Spool
from cas.swarm.blob import Want
from cas.swarm.fetching import Fetch as Machine
from cas.swarm.limits import Limits
from cas.swarm.messages import (
    Arrived,
    Ask,
    Busy,
    Cancel,
    Ended,
    Event,
    Failed,
    Flowing,
    Get,
    Keep,
    Kept,
    Over,
    Request,
    Tick,
    Told,
    Wrong,
    pack_pieces,
    unpack_pieces,
)
from cas.swarm.ranking import Swarm

BUSY_AGAIN_S: Final = 0.5
LEFT_OUT_S: Final = 1.0
"""So often it is looked whether what somebody brings still comes."""
COMING_S: Final = 5.0
"""A blob of which nothing has come for so long is left to nobody."""
INSIDE_S: Final = 8.0
"""So long without a byte, of this errand or another one, no other region is asked where an operator waits; nor as long
as the own region has all."""
GREETING_S: Final = 15.0
"""The same, while connections are being made: over a thin line that takes long."""
END_S: Final = 60.0
"""An answer ends so long after its last piece."""
TELL_S: Final = 0.2
"""So often it is told how far it is."""
KEEPS_AT_ONCE: Final = 2
"""Blobs that are made of their forms side by side: undoing a delta takes processor time and memory."""

_log = logging.getLogger(__name__)


class Driver:
    """One errand under way. Use `run` once."""

    def __init__(
        self,
        host: str,
        fetch: Fetch,
        items: dict[Digest, Item],
        *,
        store: ExchangeStore,
        spool: Spool,
        links: Links,
        acquaintance: Acquaintance,
        news: News,
        now_s: Callable[[], float],
        tell: Callable[[Fetched], None],
        brought: Callable[[], frozenset[Digest]] = frozenset,
        fetched: Callable[[], frozenset[Digest]] = frozenset,
        attended: Callable[[], bool] = lambda: False,
        limits: Limits | None = None,
    ) -> None:
        self._host = host
        self._parties = fetch.parties
        self._items = items
        self._store = store
        self._spool = spool
        self._links = links
        self._acquaintance = acquaintance
        self._news = news
        self._now_s = now_s
        self._tell = tell
        self._brought = brought
        """Forms that an operator is bringing now. Their blobs are left to it: they would cross the border twice."""
        self._fetched = fetched
        """Blobs that other errands of this host fetch now, and that are left to these."""
        self._came_s: dict[Digest, float] = {}
        """When a piece of a blob came last, or bytes of one."""
        self._attended = attended
        self._limits = limits
        self._machine = Machine(host, limits=limits)
        self._forms = Forms(items.values(), store, spool)
        self._events: asyncio.Queue[Event | CasError | None] = asyncio.Queue()
        self._tasks: dict[int, tuple[str, asyncio.Task[None]]] = {}
        self._keeping: set[asyncio.Task[None]] = set()
        self._keeps = asyncio.Semaphore(KEEPS_AT_ONCE)
        self._missing: dict[Digest, None] = {}
        self._endless: set[str] = set()
        """Neighbours whose answers went on after what was asked for."""
        self._kept = 0
        self._told_s = 0.0
        self._moved_s = now_s()
        """When it began, or news of somebody near who has it came last."""
        self._stays_inside = attended()
        """Nothing is asked of other regions: somebody brings it in, and has another host do so where one fails, before
        this host could know. Once over, for good."""
        self._bytes = {True: 0, False: 0}
        """Received from the own region, and from others."""
        self._answers = Answers()
        self._looked_s = 0.0
        self._wrong: dict[str, None] = {}
        self._reasons: dict[str, None] = {}

    async def run(self) -> Fetched:
        """Until nothing is missing that anybody has. Raises StoreFull, StoreBusy, CasError."""
        while not await self._round():
            pass
        return self._state(under_way=False)

    @property
    def fetching(self) -> frozenset[Digest]:
        """The blobs that come."""
        since_s = self._now_s() - COMING_S
        return frozenset(blob for blob, at_s in self._came_s.items() if at_s > since_s)

    def look_again(self) -> None:
        """Blobs have come in another way, or begin to, or do so no more."""
        self._events.put_nowait(None)

    async def _round(self) -> bool:
        """Fetch what is missing now and nobody brings. False where that has changed."""
        self._events = asyncio.Queue()  # first: what comes while it is looked what is missing is news
        wanted = list(dict.fromkeys(blob for party in self._parties for blob in party.blobs))
        self._missing = dict.fromkeys(await asyncio.to_thread(self._store.missing, wanted))
        self._machine = Machine(self._host, limits=self._limits)
        self._look_outside()
        left_out = self._left_out()
        wants = await asyncio.to_thread(lambda: list(self._wants(left_out)))
        try:
            self._carry_out(self._machine.want(wants, self._now_s(), spooled=self._forms.spooled()))
            while self._machine.wanted or left_out:
                event = await self._next_event()
                self._look_at_flows()
                if isinstance(event, CasError):
                    raise event
                if event is not None:
                    self._carry_out(self._machine.take(event, self._now_s()))
                    self._tell_sometimes()
                elif len(await asyncio.to_thread(self._store.missing, self._missing)) < len(self._missing):
                    return False
                self._look_outside()
                if self._left_out() != left_out:
                    return False
        finally:
            tasks = [*(task for _, task in self._tasks.values()), *self._keeping]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._tasks.clear()
        return True

    def _look_at_flows(self) -> None:
        now_s = self._now_s()
        if now_s - self._looked_s < TELL_S:
            return
        self._looked_s = now_s
        for answer in self._answers.moved():
            self._links.moved_s = now_s
            self._came_s.update(dict.fromkeys(answer.blobs, now_s))
        for answer in self._answers.flowing():
            self._events.put_nowait(Flowing(answer.number))

    def _tell_sometimes(self) -> None:
        now_s = self._now_s()
        if now_s - self._told_s >= TELL_S:
            self._told_s = now_s
            self._tell(self._state(under_way=True))

    async def _next_event(self) -> Event | CasError | None:
        wake_s = self._machine.wake_s
        try:
            async with asyncio.timeout(LEFT_OUT_S if wake_s is None else max(0.0, wake_s - self._now_s())):
                return await self._events.get()
        except TimeoutError:
            return Tick()

    def _look_outside(self) -> None:
        """Ask in other regions too, once there is no reason not to."""
        if self._machine.is_near:
            return
        quiet_s = self._now_s() - max(self._moved_s, self._links.moved_s)
        greets = quiet_s < GREETING_S and self._links.greetings.under_way > 0
        self._stays_inside &= self._attended() and (quiet_s < INSIDE_S or greets)
        self._machine.stay_inside(self._stays_inside, self._now_s())

    def _left_out(self) -> frozenset[Digest]:
        """The blobs that somebody brings, or another errand fetches."""
        brought = self._brought()
        blobs = {self._forms.blob(form) for form in brought if form in self._forms}
        return frozenset((blobs | self._fetched()) & self._missing.keys())

    def _wants(self, left_out: frozenset[Digest]) -> Iterator[Want]:
        for party in self._parties:
            regions: dict[str, list[str]] = {}
            for name in {*(party.hosts or self._acquaintance.names), self._host}:
                neighbour = self._acquaintance.find(name)
                if neighbour is not None:
                    regions.setdefault(neighbour.region, []).append(name)
            if not any(self._host in hosts for hosts in regions.values()):
                regions.setdefault(self._acquaintance.region, []).append(self._host)
            swarm = Swarm(regions)
            for blob in party.blobs:
                if blob in self._missing and blob not in left_out:
                    item = self._items[blob]
                    bases = {form.base for form in item.others if form.base is not None}
                    here = frozenset(bases - set(self._store.missing(bases)))
                    yield Want(item, swarm, here, unchecked_forms(item, self._store))

    def _state(self, *, under_way: bool) -> Fetched:
        return Fetched(
            tuple(self._missing),
            under_way,
            blobs=self._kept,
            region_bytes=self._received_bytes(under_way, near=True),
            border_bytes=self._received_bytes(under_way, near=False),
            wrong=tuple(self._wrong),
            trouble="; ".join(list(self._reasons)[:4]),
        )

    def _received_bytes(self, under_way: bool, *, near: bool) -> int:
        """As long as it is under way with what has arrived of a record: over a thin line one takes long."""
        if not under_way:
            return self._bytes[near]
        return self._answers.with_arriving(self._bytes[near], near=near)

    # --- requests ---

    def _carry_out(self, requests: list[Request]) -> None:
        for request in requests:
            match request:
                case Ask() | Get():
                    self._tasks[request.id] = request.peer, asyncio.create_task(self._request(request))
                case Cancel():
                    self._cancel(request.id)
                case Keep():
                    task = asyncio.create_task(self._keep(request))
                    self._keeping.add(task)
                    task.add_done_callback(self._keeping.discard)
                case Ended():
                    self._came_s.pop(request.blob, None)
                    if request.ok:
                        self._missing.pop(request.blob, None)
                        self._kept += 1
                    else:
                        self._reasons[f"{short(request.blob)}: {request.reason}"] = None

    def _cancel(self, number: int) -> None:
        peer, request = self._tasks.pop(number, ("", None))
        if request is not None:
            request.cancel()
            left = any(source.peer == peer and source.failures for source in self._machine.sources())
            self._links.of(peer).failures += left

    async def _request(self, request: Ask | Get) -> None:
        try:
            neighbour = self._acquaintance.find(request.peer)
            if neighbour is None:
                event: Event | None = Failed(request.id, f"nobody knows {request.peer}")
            elif request.peer in self._endless:
                event = Failed(request.id, "its answers do not end")
            elif isinstance(request, Ask):
                event = await self._ask_if_there_is_room(request, neighbour)
            else:
                event = await self._get(request, neighbour)
        except AgentError as error:
            if refused_because(error, Reason.BUSY):
                event = Busy(request.id, BUSY_AGAIN_S)
            else:
                self._links.of(request.peer).failures += 1
                event = Failed(request.id, str(error))
        except (StoreFull, StoreBusy) as error:
            self._events.put_nowait(error)
            return
        except (CasError, ValueError) as error:
            event = Failed(request.id, str(error))
        self._tasks.pop(request.id, None)
        if event is not None:
            self._events.put_nowait(event)

    async def _ask_if_there_is_room(self, ask: Ask, neighbour: Neighbour) -> Event:
        """Who is sending needs another connection for a question: a thin line has no room for that."""
        if self._links.greetings.are_slow and self._answers.of(ask.peer):
            return Busy(ask.id, BUSY_AGAIN_S)
        try:
            return await self._ask(ask, neighbour)
        except HostUnreachable:
            if any(answer.flow.has_begun for answer in self._answers.of(ask.peer)):
                return Busy(ask.id, BUSY_AGAIN_S)
            raise

    async def _ask(self, ask: Ask, neighbour: Neighbour) -> Event:
        names = list(ask.forms)[:MAX_FORMS_ASKED]
        counts = [pieces_in(self._forms.form(name).size) for name in names]
        news = tuple(pack_pieces(ask.forms[name], count) for name, count in zip(names, counts, strict=True))
        asked = tuple(self._forms.asked(name) for name in names)
        answer = await self._links.have(neighbour, HaveQuery(asked, news, min(ask.wait_s, MAX_HAVE_WAIT_S)))
        holdings: dict[Digest, int] = {}
        for place, packed in answer.holdings.items():
            if not 0 <= place < len(names):
                raise ValueError(f"{neighbour.host} tells of a form that it was not asked for")
            holdings[names[place]] = unpack_pieces(packed, counts[place])
        if neighbour.region == self._acquaintance.region and any(holdings.values()):
            self._moved_s = self._now_s()
        return Told(ask.id, holdings)

    async def _get(self, get: Get, neighbour: Neighbour) -> Event | None:
        """None where the last piece has come, which ends a request by itself."""
        names = list(dict.fromkeys(part.form for part in get.parts))
        places = {name: place for place, name in enumerate(names)}
        begun = {name: await asyncio.to_thread(self._forms.begin, name) for name in names}
        expected = [(part.form, index) for part in get.parts for index in range(part.first, part.first + part.count)]
        sizes = [begun[form].length(index) for form, index in expected]
        query = PiecesQuery(
            tuple(self._forms.asked(name) for name in names),
            tuple(PartAsked(places[part.form], part.first, part.count) for part in get.parts),
        )
        came = 0
        near = neighbour.region == self._acquaintance.region
        blobs = tuple(dict.fromkeys(map(self._forms.blob, names)))
        flow = self._links.begin(neighbour, sum(sizes))

        def taken(size_bytes: int) -> None:
            self._links.moved_s = self._now_s()
            self._bytes[near] += size_bytes
            flow.taken(size_bytes)

        try:
            with self._answers.waiting_for(Answer(get.id, neighbour.host, near, blobs, flow)):
                async with aclosing(self._links.pieces(neighbour, query, sizes, taken)) as pieces:
                    async for piece in pieces:
                        form, index = expected[came]
                        if not await asyncio.to_thread(self._spool.write, form, index, piece):
                            self._ban(neighbour.host, form)
                            return Wrong(get.id, form, index)
                        came += 1
                        self._came_s[self._forms.blob(form)] = self._now_s()
                        self._news.tell()
                        self._events.put_nowait(Arrived(get.id, form, index, 1, len(piece)))
                        if came == len(expected):
                            await _end_of(pieces, neighbour.host)
        except HostUnreachable as error:
            if came < len(expected):
                raise
            _log.warning("%s is left: after all that it was asked for, %s", neighbour.host, error)
            self._links.of(neighbour.host).failures += 1
            self._endless.add(neighbour.host)
        return None if came == len(expected) else Over(get.id)

    def _ban(self, peer: str, form: Digest) -> None:
        blob = self._forms.blob(form)
        self._links.of(peer).banned[blob] = None
        self._wrong[peer] = None
        self._tell(self._state(under_way=True))
        _log.warning("%s has sent a wrong piece of blob %s and is not asked for it again", peer, blob)

    async def _keep(self, keep: Keep) -> None:
        async with self._keeps:
            try:
                await asyncio.to_thread(self._forms.keep, keep.form)
                event: Event = Kept(keep.blob, True)
            except (StoreFull, StoreBusy) as error:
                self._events.put_nowait(error)
                return
            except CasError as error:
                await asyncio.to_thread(self._spool.drop, keep.form)
                event = Kept(keep.blob, False, str(error))
        self._news.tell()
        self._events.put_nowait(event)


async def _end_of(pieces: AsyncGenerator[bytes, None], host: str) -> None:
    """Raises HostUnreachable where more comes than was asked for, or nothing."""
    try:
        async with asyncio.timeout(END_S):
            await anext(pieces, None)
    except TimeoutError as error:
        raise HostUnreachable(f"{host} does not end its answer") from error
