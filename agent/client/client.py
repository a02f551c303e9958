"""Every question that can be put to a host's agent, a method each.

A call waits as long as the specification that it carries allows; what needs no work on the host, a minute.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from agent.api.answers import Outcome, Reason
from agent.api.blobs import (
    BegunAnswer,
    BegunQuery,
    BlobAnswer,
    BlobBegun,
    BlobOffer,
    BlobQuery,
    BlobReceipt,
    BlobsWanted,
    CodeAnswer,
    CodeQuery,
)
from agent.api.calls import MAX_SPECS_PER_STAGE, Call, Envelope, Replace, Stage, Start
from agent.api.facts import HostFacts, HostReport, ProcessStatus, ProcessUsage
from agent.api.fetching import Fetch, Fetched, HaveAnswer, HaveQuery, PiecesOffer, PiecesQuery
from agent.api.journal import JournalEntry
from agent.api.neighbours import Acquaint, Acquainted, Meet, PeersStatus
from agent.api.routes import Routes
from agent.api.words import SignedWord, WordsAnswer, WordsQuery
from agent.client.connections import READ_TIMEOUT_S, Connections
from agent.client.errors import BadAnswer, CallRefused, refused_because
from agent.client.greetings import Greetings
from agent.streaming import in_thread
from cas.digest import Digest, digest_of

CALL_SLACK_S: Final = 120.0
"""Added to what the specification itself allows: staging, compiling, starting."""
STAGE_TIMEOUT_S: Final = 1800.0
MAX_WORDS_BYTES: Final = 512 << 10
HOLDING_BYTES: Final = 32
"""What the answer which pieces a host has may take for each form, beside a bit for each piece."""
MAX_BLOB_BYTES: Final = 1 << 30
PEER_TIMEOUT_S: Final = 10.0
"""Between hosts, where another may have what one does not give."""
SMALL_STREAM_BYTES: Final = 64 << 10
"""A stream that has no more is made before it is sent."""


def call_timeout_s(call: Call) -> float:
    """How long the carrying out of a call may take, by what the call itself allows."""
    match call:
        case Stage():
            return STAGE_TIMEOUT_S
        case Start(spec=spec):
            return CALL_SLACK_S + (spec.ready.within_s if spec.ready else 0)
        case Replace(spec=spec):
            return (
                CALL_SLACK_S + (spec.ready.within_s if spec.ready else 0) + spec.update.drain_s + spec.update.watched_s
            )
        case _:
            return STAGE_TIMEOUT_S


class AgentClient:
    """One host's agent. Use as an asynchronous context manager; methods may run side by side.

    `address` is `address:port` (IPv6 in brackets); `credentials_dir` holds this party's certificate (`agent.tls`);
    `greetings`: see `Connections`.
    """

    def __init__(
        self, host_name: str, address: str, credentials_dir: Path, *, greetings: Greetings | None = None
    ) -> None:
        self.host_name = host_name
        self.address = address
        self._agent = Connections(host_name, address, credentials_dir, greetings)

    async def __aenter__(self) -> Self:
        await self._agent.open()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        await self._agent.close()

    async def drop_connections(self) -> None:
        """End all of them, with what is still on its way; the next question makes a new one."""
        await self._agent.drop()

    def acknowledged_bytes(self) -> int | None:
        """Of all that was sent over the connections that are open; None where the system does not say."""
        return self._agent.acknowledged_bytes()

    def received_bytes(self) -> int | None:
        """Of all that has arrived over the connections that are open; None where the system does not say."""
        return self._agent.received_bytes()

    # --- calls -------------------------------------------------------------------------------------------------------

    async def call(self, envelope: Envelope, *, timeout_s: float | None = None) -> Outcome:
        """Have a call carried out. Raises CallRefused, HostUnreachable, BadAnswer."""
        body = msgspec.msgpack.encode(envelope)
        limit_s = call_timeout_s(envelope.call) if timeout_s is None else timeout_s
        return await self._agent.ask("POST", Routes.CALL, Outcome, body=body, timeout_s=limit_s)

    async def shut_down(self, *, guests: bool = False) -> None:
        """End the agent, and with `guests` everything that it runs; all of it comes back with the next agent."""
        query = {"guests": "1"} if guests else {}
        await self._agent.ask("POST", Routes.SHUTDOWN, dict[str, bool], query=query)

    # --- facts -------------------------------------------------------------------------------------------------------

    async def host(self) -> HostFacts:
        return await self._agent.ask("GET", Routes.HOST, HostFacts)

    async def processes(self) -> tuple[ProcessStatus, ...]:
        return await self._agent.ask("GET", Routes.PROCESSES, tuple[ProcessStatus, ...])

    async def report(self) -> HostReport:
        """Both at once."""
        try:
            return await self._agent.ask("GET", Routes.REPORT, HostReport)
        except CallRefused as error:
            if not refused_because(error, Reason.NOT_FOUND):
                raise
            return HostReport(await self.host(), await self.processes())  # an agent of before has no such route

    async def usage(self) -> tuple[ProcessUsage, ...]:
        """What the processes that run take. An agent of before has no such route: CallRefused."""
        return await self._agent.ask("GET", Routes.USAGE, tuple[ProcessUsage, ...])

    async def journal(self, after: int = -1, *, limit: int = 1000) -> tuple[JournalEntry, ...]:
        """Entries whose `seq` is greater than `after`, oldest first, at most `limit` (the host may give fewer; an empty
        answer means that there are none)."""
        query = {"after": str(after), "limit": str(limit)}
        return await self._agent.ask("GET", Routes.JOURNAL, tuple[JournalEntry, ...], query=query)

    async def output(self, process: str, *, follow: bool = False, tail_bytes: int = 64 << 10) -> AsyncIterator[bytes]:
        """What the guests of a process have printed: the last `tail_bytes`, then, with `follow`, all that comes."""
        query = {"tail_bytes": str(tail_bytes), "follow": "1" if follow else "0"}
        path = Routes.OUTPUT.format(process=process)
        async with self._agent.request(
            "GET", path, query=query, timeout_s=None if follow else READ_TIMEOUT_S
        ) as answer:
            async for piece in answer.content.iter_any():
                yield piece

    # --- blobs -------------------------------------------------------------------------------------------------------

    async def query(self, query: BlobQuery) -> BlobAnswer:
        """What does the host lack, and which bases does it hold? Leases what is wanted."""
        return await self._agent.ask("POST", Routes.BLOBS_QUERY, BlobAnswer, body=msgspec.msgpack.encode(query))

    async def begun(self, blobs: Sequence[Digest]) -> tuple[BlobBegun, ...]:
        """What has come of these by streams that broke off; nothing where the agent is of a version that keeps none."""
        body = msgspec.msgpack.encode(BegunQuery(tuple(blobs)))
        try:
            return (await self._agent.ask("POST", Routes.BLOBS_BEGUN, BegunAnswer, body=body)).begun
        except CallRefused as error:
            if not refused_because(error, Reason.NOT_FOUND):
                raise
            return ()

    async def uncompiled(self, binaries: Iterable[Digest]) -> tuple[Digest, ...]:
        """Those of these binaries that the host has never compiled, or not for the engine that it has now."""
        wanted = tuple(binaries)
        parts = [wanted[n : n + MAX_SPECS_PER_STAGE] for n in range(0, len(wanted), MAX_SPECS_PER_STAGE)]
        missing: list[Digest] = []
        for part in parts:
            body = msgspec.msgpack.encode(CodeQuery(part))
            missing += (await self._agent.ask("POST", Routes.CODE_QUERY, CodeAnswer, body=body)).missing
        return tuple(missing)

    async def reconcile(self, question: bytes) -> bytes:
        """The answer to a question of `cas.reconcile` about all blobs of the host."""
        return await self._agent.ask("POST", Routes.RECONCILE, bytes, body=question)

    async def send_blobs(self, chunks: AsyncIterable[bytes] | Iterable[bytes]) -> BlobReceipt:
        """Send a stream of exchange frames. An ordinary iterable is run in a thread, so it may read a store."""
        if not isinstance(chunks, AsyncIterable):
            first, rest = await asyncio.to_thread(_begun, chunks)
            if rest is None:  # it goes in fewer packets
                return await self._agent.ask("POST", Routes.BLOBS, BlobReceipt, body=first, timeout_s=None)
            chunks = _resumed(first, rest)
        body: AsyncIterable[bytes | memoryview] = chunks if isinstance(chunks, AsyncIterable) else in_thread(chunks)
        return await self._agent.ask("POST", Routes.BLOBS, BlobReceipt, stream=body, timeout_s=None)

    async def give_pieces(self, offer: PiecesOffer, pieces: Iterable[bytes]) -> BlobReceipt:
        """Bring pieces of large blobs: `pieces` are the bytes of what is offered, in its order, run in a thread. An
        agent of before has no such route: CallRefused."""
        head = msgspec.msgpack.encode(offer)
        body = in_thread(itertools.chain([len(head).to_bytes(4, "little") + head], pieces))
        return await self._agent.ask("POST", Routes.PIECES, BlobReceipt, stream=body, timeout_s=None)

    async def offer(self, wanted: BlobsWanted) -> BlobOffer:
        """How would the host send these? Raises CallRefused where one is not there."""
        return await self._agent.ask("POST", Routes.BLOBS_OFFER, BlobOffer, body=msgspec.msgpack.encode(wanted))

    async def take(self, wanted: BlobsWanted) -> AsyncGenerator[bytes, None]:
        """A stream of exchange frames that brings these blobs, unchecked (`cas.exchange.Receiver`). Raises
        HostUnreachable where nothing comes for a while."""
        body = msgspec.msgpack.encode(wanted)
        async with self._agent.request(
            "POST", Routes.BLOBS_TAKE, body=body, timeout_s=None, stalled_s=READ_TIMEOUT_S
        ) as answer:
            async for piece in answer.content.iter_any():
                yield piece

    async def blob(self, digest: Digest, *, max_bytes: int = MAX_BLOB_BYTES) -> bytes:
        """One blob, checked against its name. Raises BadAnswer where the host sent other bytes."""
        path = Routes.BLOB.format(digest=digest)
        async with self._agent.request("GET", path, timeout_s=None, stalled_s=READ_TIMEOUT_S) as answer:
            data = await self._agent.bounded(answer, max_bytes)
        if digest_of(data) != digest:
            raise BadAnswer(f"{self.host_name} sent other bytes for {digest}", hint="run `lowcloud check` there")
        return data

    # --- between hosts -----------------------------------------------------------------------------------------------

    async def meet(self, meet: Meet) -> PeersStatus:
        """Tell a host of its neighbours."""
        return await self._agent.ask("POST", Routes.PEERS, PeersStatus, body=msgspec.msgpack.encode(meet))

    async def peers(self) -> PeersStatus:
        """What the host has exchanged with others."""
        return await self._agent.ask("GET", Routes.PEERS, PeersStatus)

    async def acquaint(self, acquaint: Acquaint) -> bool:
        """Tell a host of its neighbours by the name of their list; False where the list must be sent to it first. An
        agent of before has no such route: CallRefused."""
        body = msgspec.msgpack.encode(acquaint)
        return (await self._agent.ask("POST", Routes.ACQUAINT, Acquainted, body=body)).known

    async def leave_word(self, word: SignedWord) -> bool:
        """Leave word of a release with a host; whether it was new there. An agent of before has no such route:
        CallRefused."""
        return await self._agent.ask("POST", Routes.WORD, bool, body=msgspec.msgpack.encode(word))

    async def words(self, query: WordsQuery) -> WordsAnswer:
        """The words that the host has heard and the asker has not. As a host asks another one."""
        body = msgspec.msgpack.encode(query)
        return await self._agent.ask(
            "POST", Routes.PEER_WORDS, WordsAnswer, body=body, timeout_s=PEER_TIMEOUT_S, max_bytes=MAX_WORDS_BYTES
        )

    async def fetch(self, fetch: Fetch) -> Fetched:
        """Have the host bring blobs from its neighbours."""
        body = msgspec.msgpack.encode(fetch)
        return await self._agent.ask("POST", Routes.FETCH, Fetched, body=body, timeout_s=READ_TIMEOUT_S + fetch.wait_s)

    async def have(self, query: HaveQuery) -> HaveAnswer:
        """Which pieces of these forms does the host have? As a host asks another one."""
        body = msgspec.msgpack.encode(query)
        limit_s = PEER_TIMEOUT_S + query.wait_s
        most = HOLDING_BYTES * (1 + len(query.forms)) + sum(map(len, query.news))
        return await self._agent.ask("POST", Routes.PEER_HAVE, HaveAnswer, body=body, timeout_s=limit_s, max_bytes=most)

    async def pieces(self, query: PiecesQuery, *, stalled_s: float = PEER_TIMEOUT_S) -> AsyncGenerator[bytes, None]:
        """The bytes of these pieces as they come, unchecked and without bound: the caller stops taking them. Raises
        HostUnreachable where none comes for `stalled_s`."""
        body = msgspec.msgpack.encode(query)
        async with self._agent.request(
            "POST", Routes.PEER_PIECES, body=body, timeout_s=None, stalled_s=stalled_s
        ) as answer:
            async for part in answer.content.iter_any():
                yield part

    async def blob_of_peer(self, digest: Digest, *, stalled_s: float = PEER_TIMEOUT_S) -> AsyncGenerator[bytes, None]:
        """As `pieces`, for one whole blob."""
        path = Routes.PEER_BLOB.format(digest=digest)
        async with self._agent.request("GET", path, timeout_s=None, stalled_s=stalled_s) as answer:
            async for part in answer.content.iter_any():
                yield part


def _begun(chunks: Iterable[bytes]) -> tuple[bytes, Iterator[bytes] | None]:
    """The beginning of what comes, and the rest; None where that is all."""
    iterator = iter(chunks)
    first = bytearray()
    for chunk in iterator:
        first += chunk
        if len(first) > SMALL_STREAM_BYTES:
            return bytes(first), iterator
    return bytes(first), None


def _resumed(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest
