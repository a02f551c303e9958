"""Hosts that have a pulse and do nothing: what is sent to them ends all the same. Hosts that have none: what is still
on its way to them ends with the question."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from agent import pulse, tls
from agent.api.blobs import BlobReceipt
from agent.api.routes import Routes
from agent.client.client import AgentClient
from agent.client.errors import HostSilent
from tests.agent.service.support import HOST, OPERATOR, WAIT_S, authority

PIECE = bytes(64 << 10)
PIECES = 64
LEAST_IN_S = 0.9
BORNE_S = 5.0

Taking = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "QUIET_S", 0.1)
    monkeypatch.setattr(pulse, "LEAST_BYTES", 2 * len(PIECE))
    monkeypatch.setattr(pulse, "LEAST_IN_S", LEAST_IN_S)
    monkeypatch.setattr(pulse, "KEPT_BYTES_S", 100 * PIECES * len(PIECE))


@asynccontextmanager
async def taking(tmp: Path, take: Taking) -> AsyncIterator[AgentClient]:
    """A host with a real certificate that takes blobs in this way, and who sends them."""
    application = web.Application(client_max_size=2 * PIECES * len(PIECE))
    application.router.add_post(Routes.BLOBS, take)
    runner = web.AppRunner(application, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    context = tls.server_context(authority().issue(tmp / "host", f"host:{HOST}", host=HOST))
    try:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, len(PIECE))  # what is not taken is not acknowledged
        await web.SockSite(runner, listener, ssl_context=context).start()
        address = f"127.0.0.1:{runner.addresses[0][1]}"
        async with AgentClient(HOST, address, authority().issue(tmp / "operator", OPERATOR)) as client:
            yield client
    finally:
        await runner.cleanup()


async def does_not_answer(request: web.Request) -> web.StreamResponse:
    async for _ in request.content.iter_any():
        pass
    await asyncio.Event().wait()
    raise AssertionError


async def does_not_take(_: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def takes_a_byte_at_a_time(request: web.Request) -> web.StreamResponse:
    for _ in range(PIECES * len(PIECE)):
        await request.content.read(1)
        await asyncio.sleep(0.01)
    raise AssertionError


async def answers_a_byte_at_a_time(request: web.Request) -> web.StreamResponse:
    await request.read()
    answer = web.StreamResponse()
    await answer.prepare(request)
    while True:
        await answer.write(b" ")
        await asyncio.sleep(0.01)


async def refuses_a_byte_at_a_time(request: web.Request) -> web.StreamResponse:
    await request.read()
    answer = web.StreamResponse(status=400)
    await answer.prepare(request)
    while True:
        await answer.write(b" ")
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "take",
    [
        does_not_answer,
        does_not_take,
        takes_a_byte_at_a_time,
        answers_a_byte_at_a_time,
        refuses_a_byte_at_a_time,
    ],
)
def test_who_does_nothing_with_what_it_is_sent_is_given_up(tmp_path: Path, take: Taking) -> None:
    async def work() -> None:
        async with taking(tmp_path, take) as client, asyncio.timeout(WAIT_S):
            with pytest.raises(HostSilent, match="has a pulse, but has hardly taken anything"):
                await client.send_blobs(PIECE for _ in range(PIECES))

    asyncio.run(work())


def test_who_is_slow_and_gets_on_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than nothing at all would be borne, which here is so long that no busy machine lets it pass."""
    monkeypatch.setattr(pulse, "LEAST_IN_S", BORNE_S)
    receipt = BlobReceipt(1, PIECES * len(PIECE), 1)

    async def slowly(request: web.Request) -> web.StreamResponse:
        left = PIECES
        while left:
            await request.content.readexactly(len(PIECE))
            left -= 1
            await asyncio.sleep(1.2 * BORNE_S / PIECES)
        return web.Response(body=msgspec.msgpack.encode(receipt))

    async def work() -> None:
        async with taking(tmp_path, slowly) as client, asyncio.timeout(WAIT_S):
            assert await client.send_blobs(PIECE for _ in range(PIECES)) == receipt

    asyncio.run(work())


def test_what_a_silent_host_has_not_taken_does_not_reach_it_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A border may be cut for longer than anybody waits; what was asked before must not be done when it has healed."""
    monkeypatch.setattr(pulse, "HANDSHAKE_S", 0.2)
    context = tls.server_context(authority().issue(tmp_path / "host", f"host:{HOST}", host=HOST))

    def accept(listener: socket.socket) -> ssl.SSLSocket:
        accepted, _ = listener.accept()
        return context.wrap_socket(accepted, server_side=True, suppress_ragged_eofs=False)

    def take_all(connection: ssl.SSLSocket) -> int:
        """Raises ConnectionResetError or SSLEOFError where it is cut off."""
        taken = 0
        while piece := connection.recv(1 << 20):
            taken += len(piece)
        return taken

    async def work() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, len(PIECE))
            address = f"127.0.0.1:{listener.getsockname()[1]}"
            async with AgentClient(HOST, address, authority().issue(tmp_path / "operator", OPERATOR)) as client:
                accepting = asyncio.create_task(asyncio.to_thread(accept, listener))
                with pytest.raises(HostSilent, match="no sign of life"):
                    await client.send_blobs([bytes(PIECES * len(PIECE))])
                with await accepting as connection, pytest.raises((ConnectionResetError, ssl.SSLEOFError)):
                    await asyncio.to_thread(take_all, connection)

    asyncio.run(work())
