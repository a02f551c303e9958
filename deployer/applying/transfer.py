"""Bringing blobs to hosts: ask each what it lacks, then send that, each blob in the form that costs the fewest bytes.

Hosts are asked and served side by side. What has arrived stays, so a transfer that was cut off goes on where it was
when it is tried again. Asking leases the wanted blobs on the host, so nothing that arrives is collected before it is
used.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from msgspec import UNSET, UnsetType

from agent.api.answers import Reason
from agent.api.blobs import BlobAnswer, BlobQuery, BlobReceipt
from agent.api.neighbours import Acquaint
from agent.client.client import AgentClient
from agent.client.errors import AgentError, CallRefused, HostSilent, HostUnreachable, refused_because
from cas.bodies import RECORD_BYTES
from cas.digest import Digest, short
from cas.errors import BlobMissing, CasError
from cas.exchange import bases_of, cost, frames, steps
from cas.fresh import RELATIVES, freshen
from cas.interface import Begun, ExchangeStore
from cas.inventory import Form
from cas.manifest import PIECE_BYTES
from cas.routes import Step
from deployer.applying.fleet import for_each
from deployer.applying.site import Site
from deployer.errors import HostsUnreachable, TransferFailed

HOSTS_AT_ONCE: Final = 16
QUERY_BLOBS: Final = 20_000
"""So many digests in one question."""
TRIES: Final = 3
WAIT_S: Final = 0.5
"""After the first failure; doubled after the next."""


class Lack(NamedTuple):
    """What a host needs to be sent, and what it has that helps."""

    missing: tuple[Digest, ...]
    bases: tuple[Digest, ...]
    arriving: tuple[Digest, ...] | None = None
    """Forms of which it has pieces; None where it did not say."""


class Source:
    """The deployer's store as a sender. Hosts are often asked for the same blobs, so what these can be built on is
    looked up once, and a delta that only this sender has is made once."""

    def __init__(self, store: ExchangeStore) -> None:
        self._store = store
        self._bases: dict[tuple[Digest, ...], tuple[Digest, ...]] = {}
        self._freshening = threading.Lock()
        self._fresh: set[Lack] = set()

    def bases(self, wanted: tuple[Digest, ...]) -> tuple[Digest, ...]:
        """Blobs that a receiver of these might have and that would save bytes: those that stored deltas lead from, and
        what resembles them."""
        if wanted not in self._bases:
            absent = set(self._store.missing(wanted))
            here = [digest for digest in wanted if digest not in absent]
            alike = (other for digest in here for other in self._store.relatives(digest, RELATIVES))
            self._bases[wanted] = tuple(dict.fromkeys([*bases_of(self._store, here), *alike]))
        return self._bases[wanted]

    def freshen(self, lack: Lack) -> None:
        """Make the deltas that this receiver has bases for and the store has none of. It may take seconds of processor
        time; the next receiver that lacks the same waits for it instead of making them too. Raises BlobMissing,
        BlobDamaged, StoreFull."""
        with self._freshening:
            if lack not in self._fresh:
                self._fresh.add(lack)
                freshen(self._store, lack.missing, lack.bases)

    async def lack(self, client: AgentClient, wanted: Sequence[Digest], acquaint: Acquaint | None = None) -> Lack:
        """What a host lacks of these; it may be told of its neighbours by the same question. Raises AgentError."""
        return await _ask(client, self, tuple(wanted), acquaint)

    def cost(self, lack: Lack) -> int:
        """About how many bytes it takes to send this; 0 where nothing is missing. Raises BlobMissing."""
        return cost(self._store, lack.missing, lack.bases) if lack.missing else 0

    def steps(self, lack: Lack) -> list[Step]:
        """What the stream consists of. Raises BlobMissing."""
        return list(steps(self._store, lack.missing, lack.bases))

    def frames(self, lack: Lack, begun: Iterable[Begun] = ()) -> Iterator[bytes]:
        """The stream, without what the host has of it already."""
        return frames(self._store, lack.missing, lack.bases, begun)

    def may_have_begun(self, lack: Lack) -> list[Digest]:
        """What is worth asking for whether a stream that broke off has brought a part of it. Raises BlobMissing."""
        if not any(one.size > RECORD_BYTES for one in self._store.stats(lack.missing).values()):
            return []
        return [step.stat.digest for step in self.steps(lack) if step.base is None and step.bytes > RECORD_BYTES]

    def pieces(self, blob: Digest, form: Form, wanted: int) -> Iterator[bytes]:
        """The pieces of a form in this set, ascending. Raises BlobMissing where the store has the blob in another form
        by now."""
        held, index = bytearray(), 0
        for chunk in self._form(blob, form):
            held += chunk
            while len(held) >= PIECE_BYTES:
                if wanted >> index & 1:
                    yield bytes(held[:PIECE_BYTES])
                del held[:PIECE_BYTES]
                index += 1
        if held and wanted >> index & 1:
            yield bytes(held)

    def _form(self, blob: Digest, form: Form) -> Iterable[bytes]:
        if form.encoding == "plain":
            return self._store.stream(blob)
        if form.base is not None:
            found = self._store.patch(blob, [form.base])
            if found is None:
                raise BlobMissing(form.digest)
            return [found[1]]
        stat, chunks = self._store.encoded(blob)
        if stat.encoding != form.encoding:
            raise BlobMissing(form.digest)
        return chunks


async def estimate(site: Site, blobs: Mapping[str, Sequence[Digest]]) -> dict[str, int]:
    """About how many bytes each host would be sent. `blobs`: what each must have (`plan.blobs_by_host`). Raises
    HostsUnreachable, TransferFailed where a blob is nowhere to be had."""
    return costs(site.store, await lacks(site, blobs))


def costs(store: ExchangeStore, lacking: Mapping[str, Lack]) -> dict[str, int]:
    """About how many bytes it takes to send each host what it lacks. Raises TransferFailed where a blob is nowhere to
    be had."""
    source = Source(store)
    found: dict[str, int] = {}
    failures: dict[str, str] = {}
    known: dict[Lack, int] = {}
    for host, lack in lacking.items():
        try:
            if lack not in known:
                known[lack] = source.cost(lack)
            found[host] = known[lack]
        except CasError as error:
            failures[host] = str(error)
    if failures:
        raise TransferFailed(failures)
    return found


async def lacks(site: Site, blobs: Mapping[str, Sequence[Digest]]) -> dict[str, Lack]:
    """What each host lacks of these blobs. Raises HostsUnreachable."""
    source = Source(site.store)
    found: dict[str, Lack] = {}
    unreachable: dict[str, str] = {}

    async def one(host: str) -> None:
        try:
            found[host] = await _ask(await site.fleet.client(host), source, tuple(blobs[host]))
        except AgentError as error:
            unreachable[host] = str(error)

    await for_each(sorted(blobs), one, at_once=HOSTS_AT_ONCE)
    if unreachable:
        raise HostsUnreachable(unreachable)
    return dict(sorted(found.items()))


async def transfer(site: Site, blobs: Mapping[str, Sequence[Digest]]) -> dict[str, BlobReceipt]:
    """Bring to each host what it lacks of these blobs. Raises TransferFailed once every host has been served that could
    be."""
    source = Source(site.store)
    receipts: dict[str, BlobReceipt] = {}
    failures: dict[str, str] = {}

    async def one(host: str) -> None:
        try:
            receipts[host] = await serve(site, source, host, tuple(blobs[host]))
        except (AgentError, CasError) as error:
            failures[host] = str(error)

    await for_each(sorted(blobs), one, at_once=HOSTS_AT_ONCE)
    if failures:
        raise TransferFailed(failures)
    return dict(sorted(receipts.items()))


class Meter:
    """What is handed to the network on the way to one host, told as it grows."""

    def __init__(self, site: Site, host: str) -> None:
        self.sent_bytes = 0
        """In all tries."""
        self.in_vain_bytes = 0
        """In tries that failed."""
        self.moving = asyncio.Event()
        """The first bytes are on their way."""
        self._site = site
        self._host = host
        self._now_bytes = 0
        self._total_bytes = 0
        self._loop = asyncio.get_running_loop()

    @property
    def total_bytes(self) -> int:
        """About so many are to be sent in this try."""
        return self._total_bytes

    def begin(self, total_bytes: int) -> None:
        """A new try, of about so many bytes."""
        self.in_vain_bytes += self._now_bytes
        self._now_bytes, self._total_bytes = 0, total_bytes

    def end(self, wire_bytes: int) -> None:
        """A try that went well, and brought so many bytes."""
        self._now_bytes = 0
        self._site.progress.transfer(self._host, wire_bytes, wire_bytes)

    def metered(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The same chunks, counted as they go; for any thread."""
        for chunk in chunks:
            yield chunk
            self._now_bytes += len(chunk)
            self.sent_bytes += len(chunk)
            sent, total = self._now_bytes, max(self._total_bytes, self._now_bytes)
            self._loop.call_soon_threadsafe(self._tell, sent, total)

    def _tell(self, sent_bytes: int, total_bytes: int) -> None:
        self.moving.set()
        self._site.progress.transfer(self._host, sent_bytes, total_bytes)


Send = Callable[[Source, AgentClient, Lack, Meter], Awaitable[BlobReceipt]]
"""A way to send a host what it lacks. Raises AgentError, CasError."""


async def send_stream(source: Source, client: AgentClient, lack: Lack, meter: Meter) -> BlobReceipt:
    """All of it in one stream, without what has come of it before by one that broke off."""
    large = await asyncio.to_thread(source.may_have_begun, lack)
    told = await client.begun(large[:QUERY_BLOBS]) if large else ()
    begun = [Begun(one.digest, one.encoding, one.bytes) for one in told]
    try:
        receipt = await client.send_blobs(meter.metered(source.frames(lack, begun)))
    except CallRefused as error:
        if not begun or not refused_because(error, Reason.BAD_BLOB):
            raise  # Otherwise what was begun is not what it was, or gone, and by now it is not there any more.
        receipt = await client.send_blobs(meter.metered(source.frames(lack)))
    if receipt.blobs < len(lack.missing):
        raise HostUnreachable(
            f"{client.host_name} kept {receipt.blobs} of {len(lack.missing)} blobs, from {short(lack.missing[0])} on"
        )
    return receipt


async def serve(
    site: Site,
    source: Source,
    host: str,
    wanted: tuple[Digest, ...],
    *,
    send: Send = send_stream,
    meter: Meter | None = None,
    lack: Lack | None = None,
    tries: int = TRIES,
) -> BlobReceipt:
    """Send until nothing is missing, from what is missing by then each time. Bytes that were sent in vain count too.
    `lack`: what the host has said just now of what is wanted, so that it is not asked again before the first try."""
    client = await site.fleet.client(host)
    meter = meter or Meter(site, host)
    vain_bytes = meter.in_vain_bytes
    arrived = BlobReceipt(0, 0, 0)
    for attempt in range(1, tries + 1):
        try:
            if lack is None:
                lack = await _ask(client, source, wanted)
            if not lack.missing:
                break
            await asyncio.to_thread(source.freshen, lack)
            meter.begin(await asyncio.to_thread(source.cost, lack))
            arrived = await send(source, client, lack, meter)
            meter.end(arrived.wire_bytes)
            break
        except HostUnreachable as error:
            if attempt == tries or isinstance(error, HostSilent):
                raise
            lack = None
            await asyncio.sleep(WAIT_S * 2 ** (attempt - 1))
    return BlobReceipt(arrived.blobs, arrived.wire_bytes + meter.in_vain_bytes - vain_bytes, arrived.raw_bytes)


async def _ask(
    client: AgentClient, source: Source, wanted: tuple[Digest, ...], acquaint: Acquaint | None = None
) -> Lack:
    bases = await asyncio.to_thread(source.bases, wanted)
    answers: list[BlobAnswer] = []
    tell: Acquaint | UnsetType = UNSET if acquaint is None else acquaint
    for part, helpers in _questions(wanted, bases):
        answers.append(await client.query(BlobQuery(want=part, bases=helpers, acquaint=tell)))
        tell = UNSET
    arriving = answers[0].arriving if answers else UNSET
    asked, offered = set(wanted), set(bases)
    return Lack(  # a host cannot have itself sent what it was not asked about
        tuple(digest for answer in answers for digest in answer.missing if digest in asked),
        tuple(digest for answer in answers for digest in answer.bases if digest in offered),
        None if arriving is UNSET else arriving,
    )


def _questions(
    wanted: Sequence[Digest], bases: Sequence[Digest]
) -> Iterable[tuple[tuple[Digest, ...], tuple[Digest, ...]]]:
    for start in range(0, max(len(wanted), len(bases)), QUERY_BLOBS):
        yield tuple(wanted[start : start + QUERY_BLOBS]), tuple(bases[start : start + QUERY_BLOBS])
