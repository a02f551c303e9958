"""All that a host has to do with other hosts' blobs, in one hand: whom it knows, what it gives, and what it fetches."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from pathlib import Path
from typing import Final

from msgspec import UNSET

from agent.api.answers import Reason
from agent.api.blobs import BlobReceipt
from agent.api.fetching import MAX_FORMS_ASKED, Fetch, Fetched, PiecesOffer
from agent.api.neighbours import Acquaint, Meet, Neighbours, PeersStatus, PeerStatus
from agent.api.records import decode_record
from agent.daemon.peering.acquaintance import Acquaintance
from agent.daemon.peering.driver import Driver
from agent.daemon.peering.errands import Errands, Progress
from agent.daemon.peering.forms import Forms, unchecked_forms
from agent.daemon.peering.heeding import Heeding, Programs
from agent.daemon.peering.limits import PeerLimits
from agent.daemon.peering.links import Counted, Links
from agent.daemon.peering.repair import Rescue, Waiting
from agent.daemon.peering.serving import Giving, News
from agent.daemon.peering.shelf import Shelf
from agent.daemon.peering.taking import Exactly, Taking
from agent.daemon.peering.words import Words
from agent.daemon.refusal import Refused
from agent.tls import CA_FILE
from cas import inventory as inventories
from cas.digest import Digest
from cas.errors import BlobMissing, CasError, ExchangeError
from cas.exchange import Received, Receiver
from cas.interface import ExchangeStore
from cas.inventory import Form, Inventory, Item
from cas.partial import Spool

NEIGHBOURS_NAME: Final = "neighbours"
ERRANDS_NAME: Final = "errands"
SPOOL_NAME: Final = "arriving"
WORDS_NAME: Final = "words"
MAX_LIST_BYTES: Final = 16 << 20
"""Of a list of neighbours."""
NEIGHBOURS_LEASE_S: Final = 30 * 86400.0
"""The list stays so long, for the next one to be sent as a delta of it."""
LEASE_OWNER: Final = "fetch"
LEASE_S: Final = 86400.0
NOTHING: Final = Counted()
CATCH_UP_S: Final = 60.0
"""So often it is looked whether a blob of what runs here is gone."""
LOOSE_S: Final = 3600.0
"""What has arrived of a form that nothing asks for is kept so long, for a sender that begins again."""

_log = logging.getLogger(__name__)


class Peering:
    """The peering of one host. Make it in the event loop, `open` it and `close` it."""

    def __init__(
        self,
        host: str,
        state_dir: Path,
        store: ExchangeStore,
        credentials: Path,
        *,
        limits: PeerLimits | None = None,
        now_s: Callable[[], float] = time.monotonic,
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        limits = limits or PeerLimits()
        self._host = host
        self._store = store
        self._state_dir = state_dir
        self._now_s = now_s
        self._acquaintance = Acquaintance(host, state_dir / NEIGHBOURS_NAME)
        self._news = News()
        self._spool = Spool(state_dir / SPOOL_NAME)
        self._links = Links(credentials, limits, now_s)
        self._deployer_bytes = 0
        self._expected: Acquaint | None = None
        """The neighbours whose list was not here when this host was told of them."""
        self._drivers: list[tuple[Fetch, Driver]] = []
        self._catching_up: asyncio.Task[None] | None = None
        self._errands = Errands(state_dir / ERRANDS_NAME, self._carry_out, unix_s)
        self._taking = Taking(store, self._spool, self._news.tell, self._look_again, now_s)
        self._loose: dict[Digest, float] = {}
        """Forms in the spool that nothing asks for, and since when."""
        self.giving = Giving(store, Shelf(store, self._spool, state_dir), self._news, limits, now_s)
        self.rescue = Rescue(self._acquaintance, self._links, now_s)
        self.heeding = Heeding(
            host,
            Words(state_dir / WORDS_NAME, credentials / CA_FILE, unix_s),
            self._acquaintance,
            self._links,
            self._errands,
            store,
            self.rescue,
        )

    async def open(self, needed: Callable[[], Iterable[Digest]] = tuple, programs: Programs | None = None) -> None:
        """Go on with what was being fetched, get what is gone of the blobs that this host needs, and ask around for
        releases that it was not told of."""
        await self._errands.open()
        self.heeding.open(programs)
        self._catching_up = asyncio.get_running_loop().create_task(self._catch_up(needed))

    async def close(self) -> None:
        if self._catching_up is not None:
            self._catching_up.cancel()
            await asyncio.gather(self._catching_up, return_exceptions=True)
        await self.heeding.close()
        await self._errands.close()
        await self._links.close()

    # --- what operators ask ---

    async def meet(self, meet: Meet) -> None:
        """Raises Refused(BAD_REQUEST)."""
        await asyncio.to_thread(self._acquaintance.meet, meet)

    async def acquaint(self, acquaint: Acquaint) -> bool:
        """Be told of the neighbours by the name of their list. False where that is not here. Raises
        Refused(BAD_REQUEST)."""
        known = await asyncio.to_thread(self._acquaint, acquaint)
        if not known and acquaint.bring:
            with contextlib.suppress(BlobMissing):
                data = await self.rescue.fetch(acquaint.neighbours, max_bytes=MAX_LIST_BYTES)
                await asyncio.to_thread(self._store.put, data, expect=acquaint.neighbours)
                known = await asyncio.to_thread(self._acquaint, acquaint)
        return known

    async def acquainted(self, acquaint: Acquaint) -> tuple[Digest, ...]:
        """As `acquaint`; where the list is not here, the neighbours are known as soon as it comes. Returns the forms
        of which pieces are here. Raises Refused(BAD_REQUEST)."""
        self._expected = None if await self.acquaint(acquaint) else acquaint
        return tuple(sorted(self._spool.forms())[:MAX_FORMS_ASKED])

    def _acquaint(self, acquaint: Acquaint) -> bool:
        if acquaint.neighbours == self._acquaintance.listed:
            return True
        self._store.lease([acquaint.neighbours], owner=NEIGHBOURS_NAME, ttl_s=NEIGHBOURS_LEASE_S)
        try:
            listed = decode_record(self._store.read(acquaint.neighbours), Neighbours)
        except BlobMissing:
            return False
        except ValueError as error:
            raise Refused(Reason.BAD_BLOB, str(error), hint="upgrade one side") from error
        self._acquaintance.meet(Meet(listed.neighbours, acquaint.at_unix_ns))
        return True

    async def fetch(self, fetch: Fetch) -> Fetched:
        """Raises Refused(MISSING_BLOBS) where the inventory is not here, or of some blob no manifest of any form that
        could be used."""
        await asyncio.to_thread(self._items, fetch)
        return await self._errands.fetch(fetch)

    async def take_pieces(self, offer: PiecesOffer, parts: AsyncIterator[bytes]) -> BlobReceipt:
        """Take pieces of large blobs from an operator. Raises Refused, CasError."""
        before = Received(0, 0, 0)
        body = Exactly(parts)
        if offer.before_bytes is not UNSET:
            before = await asyncio.to_thread(self._take_in, await body.read(offer.before_bytes))
            await self.arrived(before.wire_bytes)
        forms = await asyncio.to_thread(self._offered, offer)
        receipt = await self._taking.take(offer, forms, body)
        await self.arrived(receipt.wire_bytes)
        return BlobReceipt(
            before.blobs + receipt.blobs,
            before.wire_bytes + receipt.wire_bytes,
            before.raw_bytes + receipt.raw_bytes,
        )

    def _take_in(self, frames: bytes) -> Received:
        with Receiver(self._store) as receiver:
            receiver.feed(frames)
            return receiver.finish()

    async def status(self) -> PeersStatus:
        rows = []
        for neighbour in self._acquaintance.others:
            counted = self._links.counted.get(neighbour.host, NOTHING)
            rows.append(
                PeerStatus(
                    neighbour.host,
                    neighbour.region,
                    neighbour.address,
                    received_bytes=counted.received_bytes,
                    sent_bytes=self.giving.sent_bytes.get(neighbour.host, 0),
                    rate_bytes_s=round(counted.rate_bytes_s, 1),
                    failures=counted.failures,
                    banned=tuple(counted.banned),
                )
            )
        waiting = await asyncio.to_thread(self.heeding.waiting) or UNSET
        return PeersStatus(self._acquaintance.region, tuple(rows), self._deployer_bytes, waiting)

    async def arrived(self, wire_bytes: int) -> None:
        """An operator has brought so many bytes of blobs. Never raises: they are here whatever comes of the list of
        neighbours."""
        self._deployer_bytes += wire_bytes
        if (expected := self._expected) is not None:
            try:
                if await asyncio.to_thread(self._acquaint, expected) and self._expected is expected:
                    self._expected = None
            except (Refused, CasError, OSError) as error:
                _log.warning("the list of neighbours %s cannot be used: %s", expected.neighbours, error)
        self._news.tell()
        self._look_again()

    def _look_again(self) -> None:
        for _, driver in self._drivers:
            driver.look_again()

    # --- what the rest of the agent asks ---

    def source(self) -> Waiting:
        """Where `Store.check` gets blobs from that are damaged here."""
        return Waiting(self.rescue)

    async def restore(self, digest: Digest) -> bool:
        """Get a blob that is damaged or gone from a neighbour; whether it is whole now."""
        try:
            data = await self.rescue.fetch(digest)
            await asyncio.to_thread(self._store.put, data, expect=digest)
        except CasError as error:
            _log.warning("blob %s is not repaired: %s", digest, error)
            return False
        _log.info("blob %s is repaired from another host", digest)
        return True

    async def _catch_up(self, needed: Callable[[], Iterable[Digest]]) -> None:
        while True:
            if self._acquaintance.others:
                for digest in await asyncio.to_thread(self._store.missing, needed()):
                    await self.restore(digest)
            await asyncio.to_thread(self._sweep, self._errands.fetches)
            await asyncio.sleep(CATCH_UP_S)

    def _sweep(self, fetches: Iterable[Fetch]) -> None:
        """Drop what has arrived of forms that nothing has asked for lately."""
        arriving = self._spool.forms().keys() - self._taking.under_way
        for fetch in fetches if arriving else ():
            with contextlib.suppress(Refused, CasError):
                for item in self._items(fetch).values():
                    arriving -= {form.digest for form in (item.whole, *item.others)}
        now_s = self._now_s()
        self._loose = {form: self._loose.get(form, now_s) for form in arriving}
        for form, since_s in self._loose.items():
            if now_s - since_s >= LOOSE_S:
                self._spool.drop(form)

    # --- errands ---

    async def _carry_out(self, fetch: Fetch, tell: Progress, attended: Callable[[], bool]) -> Fetched:
        try:
            items = await asyncio.to_thread(self._items, fetch)
            await asyncio.to_thread(self._protect, items)
            driver = Driver(
                self._host,
                fetch,
                items,
                store=self._store,
                spool=self._spool,
                links=self._links,
                acquaintance=self._acquaintance,
                news=self._news,
                now_s=self._now_s,
                tell=tell,
                brought=lambda: self._taking.moving,
                fetched=lambda: self._fetched_for_later(fetch),
                attended=attended,
            )
            self._drivers.append((fetch, driver))
            try:
                return await driver.run()
            finally:
                self._drivers.remove((fetch, driver))
                self._look_again()  # what it has fetched or given up is no longer left to it
        except (Refused, CasError) as error:
            wanted = {blob for party in fetch.parties for blob in party.blobs}
            missing = await asyncio.to_thread(self._store.missing, sorted(wanted))
            return Fetched(tuple(missing), under_way=False, trouble=str(error))

    def _fetched_for_later(self, fetch: Fetch) -> frozenset[Digest]:
        """The blobs that come for errands which were given after this one: whoever asked last waits most likely."""
        if len(self._drivers) < 2:
            return frozenset()
        place = {id(one): number for number, one in enumerate(self._errands.fetches)}
        own = place.get(id(fetch), -1)
        later = [driver.fetching for one, driver in self._drivers if place.get(id(one), -1) > own]
        return frozenset().union(*later)

    def _items(self, fetch: Fetch) -> dict[Digest, Item]:
        """What the inventory says of the blobs that are to be fetched. Raises Refused."""
        known = self._inventory(fetch.inventory).by_blob()
        wanted = dict.fromkeys(blob for party in fetch.parties for blob in party.blobs)
        if strange := [blob for blob in wanted if blob not in known]:
            raise Refused(Reason.BAD_REQUEST, f"the inventory has no {strange[0]}")
        items = {blob: known[blob] for blob in wanted}
        for item in items.values():
            self._require_a_way(item, items)
        return items

    def _require_a_way(self, item: Item, wanted: Collection[Digest]) -> None:
        """Some form of it can be made into the blob here, and checked. Raises Refused."""
        unchecked = unchecked_forms(item, self._store)
        if not unchecked:
            return
        others = {form.base for form in item.others if form.base is not None} - {*wanted}
        absent = set(self._store.missing(others))
        usable = [form for form in (item.whole, *item.others) if form.base is None or form.base not in absent]
        if all(form.digest in unchecked for form in usable):
            self._require_manifests(usable)

    def _offered(self, offer: PiecesOffer) -> Forms:
        """The forms that are offered, with what they make protected. Raises Refused."""
        offered = set(offer.forms)
        named = {
            form.digest: (item, form)
            for item in self._inventory(offer.inventory).items
            for form in (item.whole, *item.others)
            if form.digest in offered
        }
        if strange := [name for name in offer.forms if name not in named]:
            raise Refused(Reason.BAD_REQUEST, f"the inventory has no form {strange[0]}")
        self._require_manifests(form for _, form in named.values())
        items = {item.whole.digest: item for item, _ in named.values()}
        self._protect(items)
        return Forms(items.values(), self._store, self._spool)

    def _inventory(self, digest: Digest) -> Inventory:
        """Raises Refused."""
        try:
            return inventories.decode(self._store.read(digest))
        except BlobMissing as error:
            raise Refused(Reason.MISSING_BLOBS, "the inventory is not here", missing=(error.digest,)) from error
        except ExchangeError as error:
            raise Refused(Reason.BAD_BLOB, str(error), hint=error.hint) from error

    def _require_manifests(self, forms: Iterable[Form]) -> None:
        """Raises Refused."""
        manifests = {form.manifest for form in forms if form.manifest is not None}
        if missing := self._store.missing(sorted(manifests)):
            raise Refused(Reason.MISSING_BLOBS, "manifests are not here", missing=tuple(missing))

    def _protect(self, items: dict[Digest, Item]) -> None:
        bases = {form.base for item in items.values() for form in item.others if form.base is not None}
        self._store.lease([*items, *sorted(bases)], owner=LEASE_OWNER, ttl_s=LEASE_S)
