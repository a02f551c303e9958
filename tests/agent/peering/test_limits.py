"""Limits of the exchange: by a clock that the test moves."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.api.answers import Reason
from agent.daemon.peering.limits import BURST_S, Bucket, Places
from agent.daemon.refusal import Refused


@settings(max_examples=50)
@given(
    rate=st.integers(1, 10**9),
    takes=st.lists(st.tuples(st.integers(1, 1 << 20), st.floats(0, 10)), min_size=1, max_size=50),
)
def test_no_more_passes_than_the_rate_and_a_quarter_of_a_second_allow(
    rate: int, takes: list[tuple[int, float]]
) -> None:
    now_s = 0.0
    bucket = Bucket(rate, lambda: now_s)
    passed = 0
    for count, pause_s in takes:
        now_s += pause_s
        now_s += bucket.wait_s(count)
        passed += count
        assert passed <= rate * (now_s + BURST_S) * 1.001 + 1


def test_without_a_limit_nobody_waits() -> None:
    assert Bucket(None, lambda: 0.0).wait_s(1 << 40) == 0.0


def test_places_are_bounded_for_each_and_for_all() -> None:
    async def work() -> None:
        places = Places(3, 2)
        async with places.place("a"), places.place("a"):
            with pytest.raises(Refused) as caught:
                await places.place("a").__aenter__()
            assert caught.value.reason is Reason.BUSY
            async with places.place("b"):
                with pytest.raises(Refused):
                    await places.place("c").__aenter__()
            async with places.place("c"):
                pass

    asyncio.run(work())
