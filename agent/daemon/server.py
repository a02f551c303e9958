"""The agent's HTTP service: who may ask, how large a question may be, and how an answer travels. No decisions.

Every request arrives over TLS 1.3 with a verified certificate; its common name gives the role. Operators may call and
read everything, hosts only what is meant for hosts (`agent.daemon.peering.routes`). A body is bounded before it is read
and read before it is decoded. Whatever goes wrong becomes a `Refusal` with the status of its reason; only what nobody
foresaw is logged with its traceback. A caller that leaves in the middle is no error.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import re
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from aiohttp import web
from msgspec import UNSET

from agent import tls
from agent.api.answers import STATUS_OF_REASON, Reason, Refusal
from agent.api.blobs import (
    BegunAnswer,
    BegunQuery,
    BlobAnswer,
    BlobBegun,
    BlobQuery,
    BlobReceipt,
    CodeAnswer,
    CodeQuery,
)
from agent.api.calls import MAX_CALL_BYTES, Envelope
from agent.api.facts import HostFacts, HostReport
from agent.api.neighbours import Acquaint
from agent.api.routes import Routes
from agent.daemon import allocator
from agent.daemon.handlers import Handlers
from agent.daemon.intake import Intake
from agent.daemon.journal import MAX_PAGE_ENTRIES, Journal, JournalUnreadable, JournalUnwritable
from agent.daemon.metrics import CONTENT_TYPE, exposition
from agent.daemon.output import MAX_TAIL_BYTES, OutputFiles
from agent.daemon.processes import Processes
from agent.daemon.reconciling import Reconciling
from agent.daemon.refusal import Refused
from agent.daemon.uploads import Uploads
from cas.digest import Digest, is_digest
from cas.errors import (
    BlobDamaged,
    BlobMissing,
    BlobTooLarge,
    CasError,
    DigestMismatch,
    ExchangeError,
    StoreBusy,
    StoreFull,
)
from cas.interface import ExchangeStore
from cas.reconcile import MAX_QUESTION_BYTES

if TYPE_CHECKING:
    from cas.exchange import Received

MAX_QUERY_BYTES: Final = 16 << 20
BODY_WITHIN_S: Final = 60.0
"""A call's body must have arrived by then."""
PIECE_BYTES: Final = 256 << 10
MAX_FOLLOWERS: Final = 64
LEASE_OWNER: Final = "incoming"
DEFAULT_TAIL_BYTES: Final = 64 << 10
NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)
_PROCESS = re.compile(r"[a-z][a-z0-9-]{0,62}")

_log = logging.getLogger(__name__)
T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Route = tuple[str, str, Handler, tuple[str, ...]]
"""Method, path, handler, and the roles that may ask."""


class Service:
    """The routes of one host."""

    def __init__(
        self,
        handlers: Handlers,
        processes: Processes,
        journal: Journal,
        output: OutputFiles,
        store: ExchangeStore,
        facts: Callable[[], HostFacts],
        shut_down: Callable[[bool, str], None],
        ended: asyncio.Event,
        *,
        more: Iterable[Route] = (),
        arrived: Callable[[int], Awaitable[None]] | None = None,
        acquainted: Callable[[Acquaint], Awaitable[tuple[Digest, ...]]] | None = None,
        closing: Callable[[], None] = lambda: None,
    ) -> None:
        self._handlers = handlers
        self._processes = processes
        self._journal = journal
        self._output = output
        self._store = store
        self._facts = facts
        self._shut_down = shut_down
        self._ended = ended
        self._more = tuple(more)
        self._arrived = arrived
        """Is told how many bytes a sender of blobs has brought."""
        self._acquainted = acquainted
        """Is told of the neighbours; returns the forms that are arriving."""
        self._closing = closing
        """Is told that answers which wait for something should end."""
        self._arriving = 0
        """Calls whose bodies are being read."""
        self._followers = 0
        self._uploads = Uploads()
        self._reconciling = Reconciling(store)

    def application(self) -> web.Application:
        application = web.Application(middlewares=[answer_refusals], client_max_size=MAX_QUERY_BYTES)
        for method, path, handler, roles in (
            ("POST", Routes.CALL, self._call, (tls.OPERATOR,)),
            ("GET", Routes.HOST, self._host, (tls.OPERATOR, tls.READER)),
            ("GET", Routes.PROCESSES, self._list_processes, (tls.OPERATOR, tls.READER)),
            ("GET", Routes.REPORT, self._report, (tls.OPERATOR, tls.READER)),
            ("GET", Routes.USAGE, self._usage, (tls.OPERATOR, tls.READER)),
            ("GET", Routes.METRICS, self._metrics, (tls.OPERATOR, tls.READER)),
            ("GET", Routes.OUTPUT, self._read_output, (tls.OPERATOR,)),
            ("GET", Routes.JOURNAL, self._read_journal, (tls.OPERATOR,)),
            ("POST", Routes.BLOBS_QUERY, self._query_blobs, (tls.OPERATOR,)),
            ("POST", Routes.BLOBS_BEGUN, self._tell_begun, (tls.OPERATOR,)),
            ("POST", Routes.CODE_QUERY, self._query_code, (tls.OPERATOR,)),
            ("POST", Routes.BLOBS, self._receive_blobs, (tls.OPERATOR,)),
            ("POST", Routes.RECONCILE, self._reconcile, (tls.OPERATOR,)),
            ("GET", Routes.BLOB, self._send_blob, (tls.OPERATOR,)),
            ("POST", Routes.SHUTDOWN, self._end, (tls.OPERATOR,)),
            *self._more,
        ):
            application.router.add_route(method, path, allow(handler, roles))
        application.on_response_prepare.append(say_little)
        application.on_shutdown.append(self._shutting_down)
        return application

    async def _shutting_down(self, _: web.Application) -> None:
        self._closing()

    # --- calls -------------------------------------------------------------------------------------------------------

    async def _call(self, request: web.Request) -> web.Response:
        self._arriving += 1
        try:
            body = await read_body(request, MAX_CALL_BYTES)
        finally:
            self._arriving -= 1
        # From here to where the handlers count it nothing else gets its turn.
        return answer(await self._handlers.call(decode(body, Envelope), by=caller_of(request)))

    async def _end(self, request: web.Request) -> web.Response:
        guests = request.query.get("guests") == "1"
        self._shut_down(guests, caller_of(request))
        return answer({"guests": guests})

    # --- facts -------------------------------------------------------------------------------------------------------

    async def _host(self, _: web.Request) -> web.Response:
        return answer(await asyncio.to_thread(self._facts))

    async def _list_processes(self, _: web.Request) -> web.Response:
        return answer(await asyncio.to_thread(self._processes.statuses))

    async def _report(self, _: web.Request) -> web.Response:
        undecided = self._undecided()  # first: a call that is decided meanwhile is looked at once too often, not never
        return answer(
            await asyncio.to_thread(
                lambda: HostReport(self._facts(), self._processes.statuses(), undecided=undecided or UNSET)
            )
        )

    def _undecided(self) -> tuple[str, ...]:
        return (*self._handlers.deciding(), *(("a call that is arriving",) if self._arriving else ()))

    async def _usage(self, _: web.Request) -> web.Response:
        return answer(await asyncio.to_thread(self._processes.usage))

    async def _metrics(self, _: web.Request) -> web.Response:
        def text() -> str:
            return exposition(self._facts(), self._processes.statuses(), self._processes.usage())

        body = (await asyncio.to_thread(text)).encode()
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    async def _read_journal(self, request: web.Request) -> web.Response:
        after = number_in(request, "after", -1, lowest=-1, highest=1 << 62)
        limit = number_in(request, "limit", MAX_PAGE_ENTRIES, lowest=1, highest=1 << 31)
        return answer(await asyncio.to_thread(self._journal.read, after, limit))

    async def _read_output(self, request: web.Request) -> web.StreamResponse:
        process = request.match_info["process"]
        if not _PROCESS.fullmatch(process) or not await asyncio.to_thread(self._output.known, process):
            raise Refused(Reason.NOT_FOUND, f"nothing that {process!r} printed is on this host")
        limit = number_in(request, "tail_bytes", DEFAULT_TAIL_BYTES, lowest=0, highest=MAX_TAIL_BYTES)
        follow = request.query.get("follow") == "1"
        if follow and self._followers >= MAX_FOLLOWERS:
            raise Refused(Reason.BUSY, f"{MAX_FOLLOWERS} readers follow output on this host, the most it serves")
        data = await asyncio.to_thread(self._output.tail, process, limit)
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        await response.prepare(request)
        if data:
            await response.write(data)
        if follow:
            await self._follow(process, request, response)
        await response.write_eof()
        return response

    async def _follow(self, process: str, request: web.Request, response: web.StreamResponse) -> None:
        self._followers += 1
        try:
            async with aclosing(self._output.follow(process)) as pieces:
                async for piece in pieces:
                    if self._ended.is_set() or has_left(request):
                        return
                    if piece:
                        await response.write(piece)
        except ConnectionError:
            return  # the reader has gone, as readers that follow do
        finally:
            self._followers -= 1

    # --- blobs -------------------------------------------------------------------------------------------------------

    async def _query_blobs(self, request: web.Request) -> web.Response:
        query = decode(await read_body(request, MAX_QUERY_BYTES), BlobQuery)
        told = await asyncio.to_thread(self._look_for, query)
        if query.acquaint is not UNSET and self._acquainted is not None:
            told = msgspec.structs.replace(told, arriving=await self._acquainted(query.acquaint))
        return answer(told)

    def _look_for(self, query: BlobQuery) -> BlobAnswer:
        # Leased first: what is here now must not be collected before it is used.
        self._store.lease(query.want, owner=LEASE_OWNER, ttl_s=query.lease_s)
        lacking = set(self._store.missing(query.bases))
        bases = tuple(base for base in query.bases if base not in lacking)
        self._store.lease(bases, owner=LEASE_OWNER, ttl_s=query.lease_s)
        return BlobAnswer(missing=tuple(self._store.missing(query.want)), bases=bases)

    async def _tell_begun(self, request: web.Request) -> web.Response:
        query = decode(await read_body(request, MAX_QUERY_BYTES), BegunQuery)
        begun = await asyncio.to_thread(self._store.begun, query.blobs)
        return answer(BegunAnswer(tuple(BlobBegun(one.digest, one.encoding, one.bytes) for one in begun)))

    async def _query_code(self, request: web.Request) -> web.Response:
        query = decode(await read_body(request, MAX_QUERY_BYTES), CodeQuery)
        return answer(CodeAnswer(await self._handlers.uncompiled(query.binaries)))

    async def _receive_blobs(self, request: web.Request) -> web.Response:
        try:
            received = await self._take_in(request)
        finally:
            if self._uploads.were_many():
                await asyncio.to_thread(allocator.give_back)
        return answer(BlobReceipt(received.blobs, received.wire_bytes, received.raw_bytes))

    async def _take_in(self, request: web.Request) -> Received:
        from cas.exchange import Receiver

        read = partial(self._uploads.next_piece, request.content.readany)
        async with self._uploads.place(), Intake(read) as intake:
            receiver = Receiver(self._store)
            try:
                while part := await intake.part():
                    await asyncio.to_thread(receiver.feed, *part)
                return await asyncio.to_thread(receiver.finish)
            finally:
                await asyncio.to_thread(receiver.close)
                if self._arrived is not None:
                    await self._arrived(receiver.wire_bytes)

    async def _reconcile(self, request: web.Request) -> web.Response:
        question = await read_body(request, MAX_QUESTION_BYTES)
        return answer(await self._reconciling.answer(question))

    async def _send_blob(self, request: web.Request) -> web.StreamResponse:
        digest = request.match_info["digest"]
        if not is_digest(digest):
            raise Refused(Reason.BAD_REQUEST, f"{digest[:100]!r} is not a digest", hint="b3: and 64 hex digits")
        size = (await asyncio.to_thread(self._store.stat, digest)).size
        pieces = self._store.stream(digest)
        first = await asyncio.to_thread(next, pieces, b"")
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        response.content_length = size
        await response.prepare(request)
        piece = first
        while piece:
            for start in range(0, len(piece), PIECE_BYTES):
                await response.write(piece[start : start + PIECE_BYTES])
            piece = await asyncio.to_thread(next, pieces, b"")
        await response.write_eof()
        return response


# --- requests and answers --------------------------------------------------------------------------------------------


def allow(handler: Handler, roles: tuple[str, ...]) -> Handler:
    """The handler, for callers of these roles only."""

    async def guarded(request: web.Request) -> web.StreamResponse:
        caller = caller_of(request)
        if tls.role_of(caller) not in roles:
            raise Refused(
                Reason.FORBIDDEN,
                f"{caller or 'a caller without a name'} may not ask this of a host",
                hint="use an operator's certificate",
            )
        return await handler(request)

    return guarded


def caller_of(request: web.Request) -> str:
    """The common name of the caller's verified certificate."""
    if request.transport is None:
        return ""
    return tls.common_name(request.transport.get_extra_info("peercert"))


async def read_body(request: web.Request, limit: int) -> bytes:
    """The whole body. Raises Refused(TOO_LARGE) as soon as it is known to be."""
    announced = request.content_length
    too_large = Refused(Reason.TOO_LARGE, f"the body is larger than {limit} bytes", hint="ask in smaller parts")
    if announced is not None and announced > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            while piece := await request.content.readany():
                body += piece
                if len(body) > limit:
                    raise too_large
    except TimeoutError as error:
        raise Refused(Reason.BAD_REQUEST, f"the body did not arrive within {BODY_WITHIN_S:.0f} s") from error
    return bytes(body)


def decode(body: bytes, kind: type[T]) -> T:
    """Raises Refused(BAD_REQUEST) with the place that is wrong."""
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Refused(
            Reason.BAD_REQUEST, f"the body is no {kind.__name__} of this API version: {error}", hint="upgrade one side"
        ) from error


def number_in(request: web.Request, name: str, default: int, *, lowest: int, highest: int) -> int:
    text = request.query.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"-?\d{1,19}", text) or not lowest <= int(text) <= highest:
        raise Refused(Reason.BAD_REQUEST, f"{name}={text[:40]!r} is no number from {lowest} to {highest}")
    return int(text)


def answer(result: Any, *, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.msgpack.encode(result), status=status, content_type="application/msgpack")


async def say_little(_: web.Request, response: web.StreamResponse) -> None:
    """Without the heads that no client of an agent reads."""
    for head in ("Server", "Date"):
        response.headers.popall(head, None)


@web.middleware
async def answer_refusals(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever goes wrong into a refusal."""
    try:
        return await handler(request)
    except asyncio.CancelledError:
        raise
    except Exception as error:
        refusal = refusal_of(error)
        if isinstance(error, OSError) and has_left(request):
            _log.info("%s %s: the caller has left: %s", request.method, request.path, error)
        elif isinstance(error, Refused) and refusal.reason is Reason.INTERNAL:
            _log.warning("%s %s by %s: %s", request.method, request.path, caller_of(request), error)
        elif refusal.reason is Reason.INTERNAL:
            _log.exception("%s %s by %s", request.method, request.path, caller_of(request))
        # The connection keeps the error, and that its frames, with what had arrived, until garbage is collected.
        error.__traceback__ = None
        # Where the caller has left, nobody reads it, which the server finds out without a word.
        return answer(refusal, status=STATUS_OF_REASON[refusal.reason])


def has_left(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def refusal_of(error: Exception) -> Refusal:
    """How an error is told to a caller."""
    hint = str(getattr(error, "hint", ""))
    match error:
        case Refused():
            return error.refusal
        case web.HTTPNotFound() | web.HTTPMethodNotAllowed():
            return Refusal(Reason.NOT_FOUND, "this host has no such route", "upgrade one side")
        case web.HTTPException():
            return Refusal(Reason.BAD_REQUEST, error.reason)
        case BlobMissing():
            return Refusal(Reason.NOT_FOUND, str(error), hint, missing=(error.digest,))
        case BlobDamaged() | DigestMismatch() | ExchangeError():
            return Refusal(Reason.BAD_BLOB, str(error), hint)
        case BlobTooLarge():
            return Refusal(Reason.TOO_LARGE, str(error), hint)
        case StoreFull():
            return Refusal(Reason.NO_ROOM, str(error), hint)
        case StoreBusy():
            return Refusal(Reason.BUSY, str(error), hint)
        case OSError() if error.errno in NO_SPACE:
            return Refusal(Reason.NO_ROOM, f"this host's disk is full: {error}", "free space, then ask again")
        case JournalUnwritable():
            full = isinstance(error.__cause__, OSError) and error.__cause__.errno in NO_SPACE
            return Refusal(Reason.NO_ROOM if full else Reason.INTERNAL, str(error), hint)
        case JournalUnreadable() | CasError():
            return Refusal(Reason.INTERNAL, str(error), hint)
        case _:
            return Refusal(Reason.INTERNAL, f"internal error: {type(error).__name__}: {error}", "see the agent's log")
