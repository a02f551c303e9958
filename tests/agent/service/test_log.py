"""What the agent logs of expected events: a line, never a traceback."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from pathlib import Path

import pytest

from agent import tls
from agent.api.answers import Reason
from agent.api.calls import Replace, Start
from agent.api.routes import Routes
from agent.client.errors import CallRefused
from agent.runtime import GuestOrder, RuntimeUnavailable
from agent.supervisor.client import SupervisorClient
from cas import wire
from tests.agent.service.support import HOST, Cloud, host, put, run, spec_digest, until, wasm, web


@pytest.fixture(autouse=True)
def nothing_of_tests_before() -> None:
    """What they have left is not logged in the middle of one of these."""
    gc.collect()


async def leave_in_the_middle(cloud: Cloud, head: str, body: bytes, *, answered: bool) -> None:
    """Send the beginning of a request, and cut the connection."""
    context = tls.client_context(cloud.state_dir.parent / "operator")
    address, port = cloud.client.address.split(":")
    reader, writer = await asyncio.open_connection(
        address, int(port), ssl=context, server_hostname=tls.server_name(HOST)
    )
    writer.write(f"{head} HTTP/1.1\r\nHost: x\r\n".encode() + body)
    await writer.drain()
    if answered:
        await reader.readuntil(b"\r\n\r\n")
    else:
        await until(lambda: cloud.agent.service._uploads._places._value < 16)
    writer.transport.abort()


def test_a_caller_that_leaves_in_the_middle_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm())
        async with host(tmp / "state") as cloud:
            await cloud.ask(Start(web(one)))
            follow = f"GET {Routes.OUTPUT.format(process='web')}?follow=1"
            await leave_in_the_middle(cloud, follow, b"\r\n", answered=True)
            head = wire.preamble()
            chunk = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(head), head)
            await leave_in_the_middle(cloud, f"POST {Routes.BLOBS}", chunk, answered=False)
            service = cloud.agent.service
            await until(lambda: service._uploads._places._value == 16 and service._followers == 0)
            await cloud.client.processes()

    with caplog.at_level(logging.INFO):
        run(work)
        gc.collect()
    assert [(r.name, r.getMessage()) for r in caplog.records if r.levelno > logging.INFO or r.exc_info] == []
    assert sum("has left" in r.getMessage() for r in caplog.records) <= 2


def test_a_lost_supervisor_is_a_warning_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async def work(tmp: Path) -> None:
        one, two = put(tmp / "state", wasm("one"), wasm("two"))
        async with host(tmp / "state") as cloud:
            await cloud.ask(Start(web(one)))
            go = cloud.runtime.stop_at("ready")
            asking = asyncio.create_task(cloud.ask(Replace(web(two), expect=spec_digest(web(one)))))
            await cloud.runtime.reached["ready"].wait()
            cloud.runtime.links[-1].sever()
            go.set()
            with pytest.raises(CallRefused) as caught:
                await asking
            assert caught.value.refusal.reason is Reason.INTERNAL

    with caplog.at_level(logging.INFO):
        run(work)
        gc.collect()
    assert [r.getMessage() for r in caplog.records if r.levelno > logging.WARNING or r.exc_info] == []
    assert any("supervisor cannot be reached" in r.getMessage() for r in caplog.records)


def test_a_supervisor_that_goes_while_it_is_being_asked_leaves_no_error_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def work() -> None:
        ours, theirs = socket.socketpair()
        client = SupervisorClient(*await asyncio.open_unix_connection(sock=ours), 0)
        order = GuestOrder("web-1", "web", "", "core", (), {"LARGE": "x" * (4 << 20)}, (), {}, {}, 65536, (), "")
        asking = asyncio.create_task(client.spawn(order))
        await until(lambda: client._pending)
        theirs.close()
        with pytest.raises(RuntimeUnavailable):
            await asking
        await client.close()

    asyncio.run(work())
    gc.collect()
    assert [record.getMessage() for record in caplog.records] == []
