"""How anything talks to a host's agent: one connection pool, every answer bounded, every failure one of three.

`HostUnreachable`: no answer; the call may or may not have been carried out, and asking again is safe (calls are
idempotent). `CallRefused`: the host said no and changed nothing; decide by `refusal.reason`. `BadAnswer`: what came
back is not this API. A call waits as long as the specification it carries allows, and a host that dies or
freezes meanwhile is noticed in under half a minute (`agent.pulse`).
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import ssl
import zlib
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

import aiohttp
import msgspec

from agent import tls
from agent.api.answers import Outcome, Reason, Refusal
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
from agent.pulse import SILENT_S, Moved, Pulse, Silent, Stuck
from agent.sockets import Sockets
from agent.streaming import in_thread
from cas.digest import Digest, digest_of

CONNECT_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 60.0
"""For an answer that needs no work on the host."""
CALL_SLACK_S: Final = 120.0
"""Added to what the specification itself allows: staging, compiling, starting."""
STAGE_TIMEOUT_S: Final = 1800.0
MAX_ANSWER_BYTES: Final = 64 << 20
MAX_REFUSAL_BYTES: Final = 2 << 20
"""Of an agent of before, which tells of up to 20,000 missing blobs; other refusals have a few KiB."""
MAX_WORDS_BYTES: Final = 512 << 10
HOLDING_BYTES: Final = 32
"""What the answer which pieces a host has may take for each form, beside a bit for each piece."""
MAX_BLOB_BYTES: Final = 1 << 30
PEER_TIMEOUT_S: Final = 10.0
"""Between hosts, where another may have what one does not give."""
READ_AHEAD_BYTES: Final = 1 << 20
"""What may have arrived of an answer beyond what was taken of it."""
UNSAID: Final = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
"""Of no use to an agent; in small questions they were half of the bytes."""
SMALL_STREAM_BYTES: Final = 64 << 10
"""A stream that has no more is made before it is sent."""
DEFLATED_BYTES: Final = 256
"""Questions that are longer are deflated: mostly they are digests in hexadecimal."""
AT_ONCE_BYTES: Final = 32 << 10
"""What has more is deflated in a thread: 32 KiB take 1 ms, the longest question 0.5 s of processor time."""
TRIES: Final = 2
"""A connection that the host closed while it lay idle costs one more try."""

T = TypeVar("T")


class AgentError(Exception):
    """Base of what a client raises."""

    hint: str = ""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        if hint:
            self.hint = hint


class HostUnreachable(AgentError):
    hint = "is its agent running? `lowcloud host show` asks every host; a call may safely be repeated"


class HostSilent(HostUnreachable):
    """It took the question, and has shown no sign of life since, or does nothing about it."""


class BadAnswer(AgentError):
    hint = "the agent on that host may be of another version"


class CallRefused(AgentError):
    """The host refused and changed nothing."""

    def __init__(self, refusal: Refusal, host: str = "") -> None:
        super().__init__(f"{host}: {refusal.message}" if host else refusal.message, hint=refusal.hint)
        self.refusal = refusal
        self.host = host


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

    `address` is `address:port` (IPv6 in brackets); `credentials_dir` holds this party's certificate (`agent.tls`).
    """

    def __init__(self, host_name: str, address: str, credentials_dir: Path) -> None:
        self.host_name = host_name
        self.address = address
        self._credentials_dir = credentials_dir
        self._session: aiohttp.ClientSession | None = None
        self._context: ssl.SSLContext | None = None
        self._pulse: Pulse | None = None
        self._sockets = Sockets()

    async def __aenter__(self) -> Self:
        self._context = await asyncio.to_thread(tls.client_context, self._credentials_dir)
        self._pulse = Pulse(self.address, self._context, tls.server_name(self.host_name))
        self._session = self._new_session()
        return self

    def _new_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=16, socket_factory=self._sockets.make),
            auto_decompress=False,
            read_bufsize=READ_AHEAD_BYTES,
            skip_auto_headers=UNSAID,
        )

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self._pulse is not None:
            await self._pulse.close()
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def drop_connections(self) -> None:
        """End all of them, with what is still on its way; the next question makes a new one."""
        if self._session is not None:
            self._sockets.forget_unsent()
            session, self._session = self._session, self._new_session()
            await session.close()

    def acknowledged_bytes(self) -> int | None:
        """Of all that was sent over the connections that are open; None where the system does not say."""
        return self._sockets.acknowledged_bytes()

    # --- calls -------------------------------------------------------------------------------------------------------

    async def call(self, envelope: Envelope, *, timeout_s: float | None = None) -> Outcome:
        """Have a call carried out. Raises CallRefused, HostUnreachable, BadAnswer."""
        body = msgspec.msgpack.encode(envelope)
        limit_s = call_timeout_s(envelope.call) if timeout_s is None else timeout_s
        return await self._ask("POST", Routes.CALL, Outcome, body=body, timeout_s=limit_s)

    async def shut_down(self, *, guests: bool = False) -> None:
        """End the agent, and with `guests` everything that it runs; all of it comes back with the next agent."""
        query = {"guests": "1"} if guests else {}
        await self._ask("POST", Routes.SHUTDOWN, dict[str, bool], query=query)

    # --- facts -------------------------------------------------------------------------------------------------------

    async def host(self) -> HostFacts:
        return await self._ask("GET", Routes.HOST, HostFacts)

    async def processes(self) -> tuple[ProcessStatus, ...]:
        return await self._ask("GET", Routes.PROCESSES, tuple[ProcessStatus, ...])

    async def report(self) -> HostReport:
        """Both at once."""
        try:
            return await self._ask("GET", Routes.REPORT, HostReport)
        except CallRefused as error:
            if not refused_because(error, Reason.NOT_FOUND):
                raise
            return HostReport(await self.host(), await self.processes())  # an agent of before has no such route

    async def usage(self) -> tuple[ProcessUsage, ...]:
        """What the processes that run take. An agent of before has no such route: CallRefused."""
        return await self._ask("GET", Routes.USAGE, tuple[ProcessUsage, ...])

    async def journal(self, after: int = -1, *, limit: int = 1000) -> tuple[JournalEntry, ...]:
        """Entries whose `seq` is greater than `after`, oldest first, at most `limit` (the host may give fewer; an empty
        answer means that there are none)."""
        query = {"after": str(after), "limit": str(limit)}
        return await self._ask("GET", Routes.JOURNAL, tuple[JournalEntry, ...], query=query)

    async def output(self, process: str, *, follow: bool = False, tail_bytes: int = 64 << 10) -> AsyncIterator[bytes]:
        """What the guests of a process have printed: the last `tail_bytes`, then, with `follow`, all that comes."""
        query = {"tail_bytes": str(tail_bytes), "follow": "1" if follow else "0"}
        path = Routes.OUTPUT.format(process=process)
        async with self._request("GET", path, query=query, timeout_s=None if follow else READ_TIMEOUT_S) as answer:
            async for piece in answer.content.iter_any():
                yield piece

    # --- blobs -------------------------------------------------------------------------------------------------------

    async def query(self, query: BlobQuery) -> BlobAnswer:
        """What does the host lack, and which bases does it hold? Leases what is wanted."""
        return await self._ask("POST", Routes.BLOBS_QUERY, BlobAnswer, body=msgspec.msgpack.encode(query))

    async def begun(self, blobs: Sequence[Digest]) -> tuple[BlobBegun, ...]:
        """What has come of these by streams that broke off; nothing where the agent is of a version that keeps none."""
        body = msgspec.msgpack.encode(BegunQuery(tuple(blobs)))
        try:
            return (await self._ask("POST", Routes.BLOBS_BEGUN, BegunAnswer, body=body)).begun
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
            missing += (await self._ask("POST", Routes.CODE_QUERY, CodeAnswer, body=body)).missing
        return tuple(missing)

    async def reconcile(self, question: bytes) -> bytes:
        """The answer to a question of `cas.reconcile` about all blobs of the host."""
        return await self._ask("POST", Routes.RECONCILE, bytes, body=question)

    async def send_blobs(self, chunks: AsyncIterable[bytes] | Iterable[bytes]) -> BlobReceipt:
        """Send a stream of exchange frames. An ordinary iterable is run in a thread, so it may read a store."""
        if not isinstance(chunks, AsyncIterable):
            first, rest = await asyncio.to_thread(_begun, chunks)
            if rest is None:  # it goes in fewer packets
                return await self._ask("POST", Routes.BLOBS, BlobReceipt, body=first, timeout_s=None)
            chunks = _resumed(first, rest)
        body: AsyncIterable[bytes | memoryview] = chunks if isinstance(chunks, AsyncIterable) else in_thread(chunks)
        return await self._ask("POST", Routes.BLOBS, BlobReceipt, stream=body, timeout_s=None)

    async def give_pieces(self, offer: PiecesOffer, pieces: Iterable[bytes]) -> BlobReceipt:
        """Bring pieces of large blobs: `pieces` are the bytes of what is offered, in its order, run in a thread. An
        agent of before has no such route: CallRefused."""
        head = msgspec.msgpack.encode(offer)
        body = in_thread(itertools.chain([len(head).to_bytes(4, "little") + head], pieces))
        return await self._ask("POST", Routes.PIECES, BlobReceipt, stream=body, timeout_s=None)

    async def offer(self, wanted: BlobsWanted) -> BlobOffer:
        """How would the host send these? Raises CallRefused where one is not there."""
        return await self._ask("POST", Routes.BLOBS_OFFER, BlobOffer, body=msgspec.msgpack.encode(wanted))

    async def take(self, wanted: BlobsWanted) -> AsyncGenerator[bytes, None]:
        """A stream of exchange frames that brings these blobs, unchecked (`cas.exchange.Receiver`). Raises
        HostUnreachable where nothing comes for a while."""
        body = msgspec.msgpack.encode(wanted)
        async with self._request(
            "POST", Routes.BLOBS_TAKE, body=body, timeout_s=None, stalled_s=READ_TIMEOUT_S
        ) as answer:
            async for piece in answer.content.iter_any():
                yield piece

    async def blob(self, digest: Digest, *, max_bytes: int = MAX_BLOB_BYTES) -> bytes:
        """One blob, checked against its name. Raises BadAnswer where the host sent other bytes."""
        path = Routes.BLOB.format(digest=digest)
        async with self._request("GET", path, timeout_s=None, stalled_s=READ_TIMEOUT_S) as answer:
            data = await self._bounded(answer, max_bytes)
        if digest_of(data) != digest:
            raise BadAnswer(f"{self.host_name} sent other bytes for {digest}", hint="run `lowcloud check` there")
        return data

    # --- between hosts -----------------------------------------------------------------------------------------------

    async def meet(self, meet: Meet) -> PeersStatus:
        """Tell a host of its neighbours."""
        return await self._ask("POST", Routes.PEERS, PeersStatus, body=msgspec.msgpack.encode(meet))

    async def peers(self) -> PeersStatus:
        """What the host has exchanged with others."""
        return await self._ask("GET", Routes.PEERS, PeersStatus)

    async def acquaint(self, acquaint: Acquaint) -> bool:
        """Tell a host of its neighbours by the name of their list; False where the list must be sent to it first. An
        agent of before has no such route: CallRefused."""
        body = msgspec.msgpack.encode(acquaint)
        return (await self._ask("POST", Routes.ACQUAINT, Acquainted, body=body)).known

    async def leave_word(self, word: SignedWord) -> bool:
        """Leave word of a release with a host; whether it was new there. An agent of before has no such route:
        CallRefused."""
        return await self._ask("POST", Routes.WORD, bool, body=msgspec.msgpack.encode(word))

    async def words(self, query: WordsQuery) -> WordsAnswer:
        """The words that the host has heard and the asker has not. As a host asks another one."""
        body = msgspec.msgpack.encode(query)
        return await self._ask(
            "POST", Routes.PEER_WORDS, WordsAnswer, body=body, timeout_s=PEER_TIMEOUT_S, max_bytes=MAX_WORDS_BYTES
        )

    async def fetch(self, fetch: Fetch) -> Fetched:
        """Have the host bring blobs from its neighbours."""
        body = msgspec.msgpack.encode(fetch)
        return await self._ask("POST", Routes.FETCH, Fetched, body=body, timeout_s=READ_TIMEOUT_S + fetch.wait_s)

    async def have(self, query: HaveQuery) -> HaveAnswer:
        """Which pieces of these forms does the host have? As a host asks another one."""
        body = msgspec.msgpack.encode(query)
        limit_s = PEER_TIMEOUT_S + query.wait_s
        most = HOLDING_BYTES * (1 + len(query.forms)) + sum(map(len, query.news))
        return await self._ask("POST", Routes.PEER_HAVE, HaveAnswer, body=body, timeout_s=limit_s, max_bytes=most)

    async def pieces(self, query: PiecesQuery, *, stalled_s: float = PEER_TIMEOUT_S) -> AsyncGenerator[bytes, None]:
        """The bytes of these pieces as they come, unchecked and without bound: the caller stops taking them. Raises
        HostUnreachable where none comes for `stalled_s`."""
        body = msgspec.msgpack.encode(query)
        async with self._request("POST", Routes.PEER_PIECES, body=body, timeout_s=None, stalled_s=stalled_s) as answer:
            async for part in answer.content.iter_any():
                yield part

    async def blob_of_peer(self, digest: Digest, *, stalled_s: float = PEER_TIMEOUT_S) -> AsyncGenerator[bytes, None]:
        """As `pieces`, for one whole blob."""
        path = Routes.PEER_BLOB.format(digest=digest)
        async with self._request("GET", path, timeout_s=None, stalled_s=stalled_s) as answer:
            async for part in answer.content.iter_any():
                yield part

    # --- one request -------------------------------------------------------------------------------------------------

    async def _ask(
        self,
        method: str,
        path: str,
        kind: type[T],
        *,
        body: bytes | None = None,
        stream: AsyncIterable[bytes | memoryview] | None = None,
        query: dict[str, str] | None = None,
        timeout_s: float | None = READ_TIMEOUT_S,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> T:
        tries = TRIES if stream is None else 1
        for attempt in range(tries):
            try:
                sent = body if stream is None else stream
                moved = Moved(self._sockets.acknowledged_bytes)
                once = functools.partial(self._ask_once, method, path, kind, sent, query, timeout_s, max_bytes, moved)
                return await self._while_there(once, moved, timeout_s)
            except HostUnreachable as error:
                lost_idle = isinstance(error.__cause__, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError)
                refused = isinstance(error.__cause__, aiohttp.ClientConnectorError)
                if attempt + 1 == tries or refused or not lost_idle:
                    raise
        raise AssertionError("unreachable: the last try returns or raises")

    async def _ask_once(
        self,
        method: str,
        path: str,
        kind: type[T],
        sent: bytes | AsyncIterable[bytes | memoryview] | None,
        query: dict[str, str] | None,
        timeout_s: float | None,
        max_bytes: int,
        moved: Moved,
    ) -> T:
        body = _telling(sent, moved) if isinstance(sent, AsyncIterable) else sent
        headers = {}
        if isinstance(body, bytes) and len(body) > DEFLATED_BYTES:
            smaller = await _deflated(body)
            if len(smaller) < len(body):
                body, headers = smaller, {"Content-Encoding": "deflate"}
        async with self._request(method, path, body=body, query=query, headers=headers, timeout_s=timeout_s) as answer:
            return self._decoded(await self._bounded(answer, max_bytes, moved), kind)

    async def _while_there(self, ask: Callable[[], Awaitable[T]], moved: Moved, timeout_s: float | None) -> T:
        """Raises HostSilent."""
        if self._pulse is None or (timeout_s is not None and timeout_s <= SILENT_S):
            return await ask()
        try:
            return await self._pulse.while_there(ask, moved, ends=timeout_s is not None)
        except Silent as error:
            raise HostSilent(
                f"{self.host_name} at {self.address} has given no sign of life for {SILENT_S:.0f} s"
            ) from error
        except Stuck as error:
            raise HostSilent(f"{self.host_name} at {self.address} {error}") from error

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | AsyncIterable[bytes | memoryview] | None = None,
        query: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        timeout_s: float | None,
        stalled_s: float | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A request whose answer is a success; every other way it can end is one of this module's errors."""
        if self._session is None or self._context is None:
            raise RuntimeError("use AgentClient as an asynchronous context manager")
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S, sock_read=stalled_s)
        try:
            async with self._session.request(
                method,
                f"https://{self.address}{path}",
                params=query,
                data=body,
                headers=headers,
                ssl=self._context,
                server_hostname=tls.server_name(self.host_name),
                timeout=timeout,
                allow_redirects=False,
            ) as answer:
                if answer.status != 200:
                    raise self._refused(answer.status, await self._bounded(answer, MAX_REFUSAL_BYTES))
                yield answer
        except aiohttp.ClientConnectorCertificateError as error:
            raise HostUnreachable(
                f"{self.address} is not {self.host_name}: {error.certificate_error}",
                hint="the address belongs to another host, or its certificate is of another cloud",
            ) from error
        except (aiohttp.ClientSSLError, ssl.SSLError) as error:
            raise HostUnreachable(
                f"{self.host_name} at {self.address} and this operator do not trust each other: {error}",
                hint="the host and the operator must have certificates of the same cloud (`lowcloud host add`)",
            ) from error
        except TimeoutError as error:
            limit_s = timeout_s or stalled_s
            waited = f" within {limit_s:.0f} s" if limit_s else ""
            raise HostUnreachable(f"{self.host_name} at {self.address} did not answer{waited}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise HostUnreachable(f"{self.host_name} at {self.address} cannot be reached: {_plain(error)}") from error

    def _refused(self, status: int, data: bytes) -> AgentError:
        try:
            return CallRefused(msgspec.msgpack.decode(data, type=Refusal), self.host_name)
        except msgspec.MsgspecError:
            return BadAnswer(f"{self.host_name} at {self.address} answered {status} without saying why")

    def _decoded(self, data: bytes, kind: type[T]) -> T:
        try:
            return msgspec.msgpack.decode(data, type=kind)
        except (msgspec.MsgspecError, ValueError) as error:
            raise BadAnswer(f"{self.host_name} sent an answer that is not of this API: {error}") from error

    async def _bounded(self, answer: aiohttp.ClientResponse, limit: int, moved: Moved | None = None) -> bytes:
        pieces: list[bytes] = []
        size = 0
        async for piece in answer.content.iter_any():
            if moved is not None:
                moved.taken(len(piece))
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise BadAnswer(f"{self.host_name} sent more than {limit} bytes where no answer is so large")
        return b"".join(pieces)  # Appending to one array would copy a large answer again and again.


async def _deflated(body: bytes) -> bytes:
    return zlib.compress(body) if len(body) <= AT_ONCE_BYTES else await asyncio.to_thread(zlib.compress, body)


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


async def _telling(chunks: AsyncIterable[bytes | memoryview], moved: Moved) -> AsyncIterator[bytes | memoryview]:
    async for chunk in chunks:
        moved.given(len(chunk))
        yield chunk


def refused_because(error: BaseException, *reasons: Reason) -> bool:
    """Is this a refusal for one of these reasons?"""
    return isinstance(error, CallRefused) and error.refusal.reason in reasons


def _plain(error: BaseException) -> str:
    """Without what aiohttp adds to the system's words."""
    if isinstance(error, aiohttp.ClientConnectorError) and error.errno:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
