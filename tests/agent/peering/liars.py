"""A host that has a real certificate and does not keep to the rules."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from aiohttp import web

from agent import tls
from agent.api.fetching import HaveAnswer, HaveQuery, PiecesQuery
from agent.api.routes import Routes
from cas.digest import Digest
from cas.manifest import PIECE_BYTES, pieces_in
from cas.swarm.messages import everything, pack_pieces
from tests.agent.peering.neighbourhood import Neighbourhood, neighbourhood

ENOUGH = 64 << 20
"""What an endless answer stops at, where nobody has cut it off."""

Answer = Callable[[web.StreamResponse, bytes], Awaitable[None]]


class Liar:
    """Says that it has everything it is asked for, and gives `answer` for the pieces; what it sent is counted."""

    def __init__(self, data: bytes, answer: Answer | None) -> None:
        self.data = data
        self.asked = asyncio.Event()
        self.sent_bytes = 0
        self._answer = answer or _truth

    @asynccontextmanager
    async def listening(self, credentials: Path) -> AsyncIterator[str]:
        application = web.Application(client_max_size=1 << 24)
        application.router.add_post(Routes.PEER_HAVE, self.have)
        application.router.add_post(Routes.PEER_PIECES, self.pieces)
        application.router.add_get(Routes.PEER_BLOB, self.blob)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls.server_context(credentials)).start()
            yield f"127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    @asynccontextmanager
    async def among(self, tmp: Path, *names: str) -> AsyncIterator[tuple[Neighbourhood, Digest]]:
        """Hosts that take it for their neighbour fra1, and the blob that it lies about."""
        async with neighbourhood(tmp, *names) as hood, self.listening(hood.credentials("fra1")) as address:
            hood.addresses["fra1"] = address
            await hood.meet()
            yield hood, hood.source.put(self.data).digest

    async def have(self, request: web.Request) -> web.StreamResponse:
        query = msgspec.msgpack.decode(await request.read(), type=HaveQuery)
        counts = [pieces_in(asked.size) for asked in query.forms]
        answer = HaveAnswer({n: pack_pieces(everything(count), count) for n, count in enumerate(counts)})
        return web.Response(body=msgspec.msgpack.encode(answer))

    async def pieces(self, request: web.Request) -> web.StreamResponse:
        query = msgspec.msgpack.decode(await request.read(), type=PiecesQuery)
        part = query.parts[0]
        return await self._send(request, self.data[part.first * PIECE_BYTES :][: part.count * PIECE_BYTES])

    async def blob(self, request: web.Request) -> web.StreamResponse:
        return await self._send(request, self.data)

    async def _send(self, request: web.Request, data: bytes, *, status: int = 200) -> web.StreamResponse:
        self.asked.set()
        response = web.StreamResponse(status=status)
        await response.prepare(request)
        write = response.write

        async def counted(piece: bytes) -> None:
            await asyncio.sleep(0)  # a broken connection is seen in the next turn of the loop
            if request.transport is None or request.transport.is_closing():
                raise ConnectionResetError("cut off")  # what is written from here on goes nowhere, at any speed
            await write(piece)
            self.sent_bytes += len(piece)

        response.write = counted  # type: ignore[assignment, method-assign]
        await self._answer(response, data)
        await response.write_eof()
        return response


async def _truth(response: web.StreamResponse, data: bytes) -> None:
    await response.write(data)


async def flips(response: web.StreamResponse, data: bytes) -> None:
    await response.write(data[:-1] + bytes([data[-1] ^ 1]))


async def truncates(response: web.StreamResponse, data: bytes) -> None:
    await response.write(data[: len(data) // 2 + 1])


async def stalls(response: web.StreamResponse, data: bytes) -> None:
    await response.write(data[:1000])
    await asyncio.Event().wait()


async def goes_on(response: web.StreamResponse, data: bytes) -> None:
    """Right at first, and then without end."""
    await response.write(data)
    for _ in range(ENOUGH // PIECE_BYTES):
        await response.write(bytes(PIECE_BYTES))


async def says_nothing_that_makes_sense(response: web.StreamResponse, data: bytes) -> None:
    for _ in range(ENOUGH // PIECE_BYTES):
        await response.write(data[:1] * PIECE_BYTES)
