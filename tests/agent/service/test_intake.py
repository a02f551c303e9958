"""What a sender has sent is taken in at once, within bounds, and none of it is lost where the connection breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import pytest

from agent.daemon.intake import HELD_BYTES, HELD_PIECES, PART_BYTES, Intake

PIECE = bytes(PART_BYTES // 2)


def giving(pieces: Iterable[bytes], then: Exception | None = None) -> Callable[[], Awaitable[bytes]]:
    """What a connection gives: these pieces at once, and then its end, or an error."""
    coming = iter(pieces)

    async def read() -> bytes:
        piece = next(coming, b"")
        if not piece and then is not None:
            raise then
        return piece

    return read


def test_what_came_before_a_break_is_handed_over_before_the_break_is_told() -> None:
    async def work() -> None:
        async with Intake(giving([b"a", b"b"], ConnectionResetError("gone"))) as intake:
            assert await intake.part() == [b"a", b"b"]
            for _ in range(2):
                with pytest.raises(ConnectionResetError):
                    await intake.part()

    asyncio.run(work())


def test_a_stream_ends_once_all_of_it_was_handed_over() -> None:
    async def work() -> None:
        async with Intake(giving([PIECE] * 9)) as intake:
            parts = []
            while part := await intake.part():
                parts.append(part)
            assert [piece for part in parts for piece in part] == [PIECE] * 9
            assert all(sum(map(len, part)) >= PART_BYTES for part in parts[:-1])
            assert await intake.part() == []

    asyncio.run(work())


@pytest.mark.parametrize("piece", [PIECE, b"."])
def test_who_sends_faster_than_is_taken_waits(piece: bytes) -> None:
    async def work() -> None:
        given = 0

        async def read() -> bytes:
            nonlocal given
            given += 1
            return piece

        async with Intake(read) as intake:
            for _ in range(3 * HELD_PIECES):
                await asyncio.sleep(0)
            assert given == min(HELD_BYTES // len(piece), HELD_PIECES)
            assert len(await intake.part()) == given
            await intake.part()
            assert given <= 3 * min(HELD_BYTES // len(piece), HELD_PIECES)

    asyncio.run(work())


def test_nothing_is_read_any_more_once_it_is_left() -> None:
    async def work() -> None:
        async def never() -> bytes:
            return await asyncio.Future()

        async with Intake(never):
            await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(work())
