"""The HTTP side of the exchange between hosts: four routes for hosts, and six for operators."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from typing import Final

from aiohttp import web

from agent import tls
from agent.api.answers import Reason
from agent.api.fetching import Fetch, HaveQuery, PiecesOffer, PiecesQuery
from agent.api.neighbours import Acquaint, Acquainted, Meet
from agent.api.routes import Routes
from agent.api.words import SignedWord, WordsQuery
from agent.daemon.intake import Intake
from agent.daemon.peering.service import Peering
from agent.daemon.refusal import Refused
from agent.daemon.server import MAX_QUERY_BYTES, Route, answer, caller_of, decode, has_left, read_body
from agent.daemon.uploads import Uploads
from agent.sockets import acknowledged_bytes
from cas.digest import is_digest

MAX_PEER_QUERY_BYTES: Final = 4 << 20
MAX_WORDS_QUERY_BYTES: Final = 64 << 10
_LENGTH_BYTES: Final = 4
TAKEN_WITHIN_S: Final = 30.0
TAKEN_BYTES: Final = 16 << 10
"""A receiver that takes less in this time is left."""
LOOK_S: Final = 5.0


class PeerRoutes:
    """The routes of one host's peering."""

    def __init__(self, peering: Peering) -> None:
        self._peering = peering
        self._uploads = Uploads()

    def table(self) -> tuple[Route, ...]:
        both = (tls.OPERATOR, tls.HOST)
        return (
            ("GET", Routes.PEERS, self._peers, (tls.OPERATOR,)),
            ("POST", Routes.PEERS, self._meet, (tls.OPERATOR,)),
            ("POST", Routes.ACQUAINT, self._acquaint, (tls.OPERATOR,)),
            ("POST", Routes.WORD, self._word, (tls.OPERATOR,)),
            ("POST", Routes.FETCH, self._fetch, (tls.OPERATOR,)),
            ("POST", Routes.PIECES, self._take_pieces, (tls.OPERATOR,)),
            ("POST", Routes.PEER_HAVE, self._have, both),
            ("POST", Routes.PEER_PIECES, self._pieces, both),
            ("GET", Routes.PEER_BLOB, self._blob, both),
            ("POST", Routes.PEER_WORDS, self._words, both),
        )

    async def _peers(self, _: web.Request) -> web.Response:
        return answer(await self._peering.status())

    async def _meet(self, request: web.Request) -> web.Response:
        await self._peering.meet(decode(await read_body(request, MAX_QUERY_BYTES), Meet))
        return answer(await self._peering.status())

    async def _acquaint(self, request: web.Request) -> web.Response:
        known = await self._peering.acquaint(decode(await read_body(request, MAX_WORDS_QUERY_BYTES), Acquaint))
        return answer(Acquainted(known))

    async def _word(self, request: web.Request) -> web.Response:
        word = decode(await read_body(request, MAX_WORDS_QUERY_BYTES), SignedWord)
        return answer(await self._peering.heeding.hear(word))

    async def _words(self, request: web.Request) -> web.Response:
        query = decode(await read_body(request, MAX_WORDS_QUERY_BYTES), WordsQuery)
        return answer(await self._peering.heeding.answer(peer_of(request), query))

    async def _fetch(self, request: web.Request) -> web.Response:
        return answer(await self._peering.fetch(decode(await read_body(request, MAX_QUERY_BYTES), Fetch)))

    async def _take_pieces(self, request: web.Request) -> web.Response:
        read = partial(self._uploads.next_piece, request.content.readany)
        async with self._uploads.place(), Intake(read, part_bytes=1) as intake:
            parts = intake.pieces()
            head = bytearray()
            while len(head) < _LENGTH_BYTES or len(head) < _LENGTH_BYTES + _length(head):
                if not (part := await anext(parts, b"")):
                    raise Refused(Reason.BAD_REQUEST, "the body ended before it said what it brings")
                head += part
            end = _LENGTH_BYTES + _length(head)
            offer = decode(bytes(head[_LENGTH_BYTES:end]), PiecesOffer)
            return answer(await self._peering.take_pieces(offer, _from(bytes(head[end:]), parts)))

    async def _have(self, request: web.Request) -> web.Response:
        query = decode(await read_body(request, MAX_PEER_QUERY_BYTES), HaveQuery)
        return answer(await self._peering.giving.have(peer_of(request), query))

    async def _pieces(self, request: web.Request) -> web.StreamResponse:
        query = decode(await read_body(request, MAX_PEER_QUERY_BYTES), PiecesQuery)
        return await stream(request, self._peering.giving.pieces(peer_of(request), query))

    async def _blob(self, request: web.Request) -> web.StreamResponse:
        digest = request.match_info["digest"]
        if not is_digest(digest):
            raise Refused(Reason.BAD_REQUEST, f"{digest[:100]!r} is not a digest", hint="b3: and 64 hex digits")
        return await stream(request, self._peering.giving.blob(peer_of(request), digest))


def _length(head: bytearray) -> int:
    """How long the offer is. Raises Refused(TOO_LARGE)."""
    length = int.from_bytes(head[:_LENGTH_BYTES], "little")
    if length > MAX_PEER_QUERY_BYTES:
        raise Refused(
            Reason.TOO_LARGE, f"an offer of more than {MAX_PEER_QUERY_BYTES} bytes", hint="offer less at once"
        )
    return length


async def _from(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    if first:
        yield first
    async for part in rest:
        yield part


def peer_of(request: web.Request) -> str:
    """A host by its name, as the neighbours are called; anybody else as the certificate says."""
    return caller_of(request).removeprefix(f"{tls.HOST}:")


async def stream(request: web.Request, pieces: AsyncGenerator[bytes | memoryview, None]) -> web.StreamResponse:
    """What comes, as the body of an answer. An error before the first piece is told; one after it cuts the answer off,
    so that it is not taken for whole."""
    async with aclosing(pieces) as coming:
        first, taken = await anext(coming, b""), _taken_from(request)
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        await response.prepare(request)
        try:
            if first:
                await write(response, first, taken)
            async for piece in coming:
                await write(response, piece, taken)
        except Exception:
            if request.transport is not None and not has_left(request):
                request.transport.abort()
            raise
        await response.write_eof()
    return response


async def write(response: web.StreamResponse, piece: bytes | memoryview, taken: Callable[[], int | None]) -> None:
    """`taken`: the bytes that the receiver's system has acknowledged, or None where nobody knows. Raises TimeoutError
    where it takes next to nothing for a while: over a thin line a piece takes minutes."""
    async with asyncio.timeout(TAKEN_WITHIN_S) as limit:
        look = _Look(limit, taken)
        try:
            await response.write(piece)
        finally:
            look.end()


class _Look:
    """Puts a time limit off as long as enough is taken."""

    def __init__(self, limit: asyncio.Timeout, taken: Callable[[], int | None]) -> None:
        self._limit = limit
        self._taken = taken
        self._counted = taken()
        self._loop = asyncio.get_running_loop()
        self._next = self._loop.call_later(LOOK_S, self._look)

    def end(self) -> None:
        self._next.cancel()

    def _look(self) -> None:
        now = self._taken()
        if now is not None and self._counted is not None and now - self._counted >= TAKEN_BYTES:
            self._counted = now
            self._limit.reschedule(self._loop.time() + TAKEN_WITHIN_S)
        self._next = self._loop.call_later(LOOK_S, self._look)


def _taken_from(request: web.Request) -> Callable[[], int | None]:
    made = None if request.transport is None else request.transport.get_extra_info("socket")
    return lambda: None if made is None else acknowledged_bytes(made)
