"""Streams of blobs: however many senders stall or leave, one that sends gets its turn, and the log stays readable."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from agent.api.answers import Reason
from agent.client.client import AgentClient
from agent.client.errors import CallRefused
from agent.daemon.intake import Intake
from agent.daemon.refusal import Refused
from agent.daemon.uploads import MANY, PLACES, Uploads
from cas import wire
from cas.exchange import frames
from cas.store import Store
from tests.agent.service.support import HOST, WAIT_S, host, put, run, until

STALLED = 40


async def stalls(after: asyncio.Event) -> AsyncIterator[bytes]:
    """Once it has begun, and again after this event."""
    preamble = wire.preamble()
    yield preamble[:1]
    await after.wait()
    yield preamble[1:]
    await asyncio.Event().wait()


async def send_nothing_more(client: AgentClient, after: asyncio.Event) -> None:
    with suppress(CallRefused):
        await client.send_blobs(stalls(after))


def test_an_upload_gets_through_although_all_places_are_taken_by_senders_that_stall() -> None:
    async def work(tmp: Path) -> None:
        wanted = put(tmp / "mine", b"a blob")
        async with host(tmp / "state") as cloud:
            uploads = cloud.agent.service._uploads = Uploads(stalled_s=WAIT_S, wait_s=WAIT_S)
            others = [AgentClient(HOST, cloud.client.address, tmp / "operator") for _ in range(STALLED // 16 + 1)]
            clients = [await other.__aenter__() for other in others]
            all_there = asyncio.Event()
            stalled = [
                asyncio.create_task(send_nothing_more(clients[i % len(clients)], all_there)) for i in range(STALLED)
            ]
            await until(lambda: uploads._places.locked() and uploads._waiting >= STALLED - PLACES)
            uploads._stalled_s = 0.2
            all_there.set()
            with Store.open(tmp / "mine" / "store") as store:
                async with asyncio.timeout(WAIT_S):
                    assert (await cloud.client.send_blobs(frames(store, wanted))).blobs == 1
            for task in stalled:
                task.cancel()
            await asyncio.gather(*stalled, return_exceptions=True)
            for client in clients:
                await client.__aexit__(None, None, None)

    run(work)


def test_what_came_by_a_stream_that_broke_off_is_not_in_memory_any_more() -> None:
    def streams() -> int:
        return sum(isinstance(one, Intake) for one in gc.get_objects())

    async def work(tmp: Path) -> None:
        async with host(tmp / "state") as cloud, AgentClient(HOST, cloud.client.address, tmp / "operator") as other:
            gc.collect()  # those of tests before
            sending = asyncio.create_task(send_nothing_more(other, asyncio.Event()))
            await until(lambda: streams() == 1)
            gc.disable()  # it may take its time, and counts objects, not bytes
            try:
                sending.cancel()
                await until(lambda: streams() == 0)
            finally:
                gc.enable()

    run(work)


def test_who_gets_no_place_in_time_or_finds_too_many_waiting_is_told_busy() -> None:
    async def work() -> None:
        uploads = Uploads(places=1, max_waiting=1, wait_s=WAIT_S, stalled_s=0.01, idle_s=0.05)
        async with uploads.place():
            waiting = asyncio.create_task(enter(uploads))
            await asyncio.sleep(0)
            assert (await enter(uploads)).reason is Reason.BUSY
            with pytest.raises(Refused) as caught:
                await uploads.next_piece(never)
            assert caught.value.reason is Reason.BUSY
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            uploads._wait_s = 0.01
            assert (await enter(uploads)).reason is Reason.BUSY
            with pytest.raises(Refused) as caught:
                await uploads.next_piece(never)
            assert caught.value.reason is Reason.BAD_REQUEST

    asyncio.run(work())


async def never() -> bytes:
    return await asyncio.Future()


async def enter(uploads: Uploads) -> Refused:
    with pytest.raises(Refused) as caught:
        async with uploads.place():
            pass
    return caught.value


def test_many_streams_at_once_are_noticed_when_the_last_one_ends_and_once() -> None:
    async def work() -> None:
        uploads = Uploads()
        for count, many in ((MANY, True), (MANY - 1, False)):
            async with AsyncExitStack() as stack:
                for _ in range(count):
                    await stack.enter_async_context(uploads.place())
                assert not uploads.were_many()
            assert [uploads.were_many(), uploads.were_many()] == [many, False]

    asyncio.run(work())
