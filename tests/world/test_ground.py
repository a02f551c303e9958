"""A line between two regions is as long and as narrow as it was asked for, whatever makes it."""

from __future__ import annotations

import pytest

from tests.world import ground
from tests.world.copying import bare_copy_s

pytestmark = pytest.mark.skipif(ground.why_not() is not None, reason=str(ground.why_not()))

REGIONS = {"fra": ("fra1",), "ams": ("ams1",)}
BORDER = ground.Border(mbit=16.0, delay_ms=30.0)
SLOW_MBIT = 2.0
SIZE_BYTES = 100_000


def least_s(mbit: float) -> float:
    """A greeting there and back, then the bytes there and an answer back; a bucket is full when it begins."""
    return 4 * BORDER.delay_ms / 1000 + 0.9 * SIZE_BYTES / (mbit * 125_000)


def test_a_line_has_its_delay_and_its_rate_also_while_it_is_slow_and_after() -> None:
    """No copy can be faster than the line, and a busy machine only makes it slower."""
    for netem in {False, ground.has_netem()}:
        with ground.world(REGIONS, BORDER, netem=netem).standing() as world:
            assert bare_copy_s(world, "fra1", "ams1", SIZE_BYTES) >= least_s(BORDER.mbit)
            world.slow_border("ams", SLOW_MBIT)
            assert bare_copy_s(world, "fra1", "ams1", SIZE_BYTES) >= least_s(SLOW_MBIT)
            world.unslow_border("ams")
            before = world.border_bytes()
            assert bare_copy_s(world, "ams1", "fra1", SIZE_BYTES) >= least_s(BORDER.mbit)
            crossed = world.border_bytes()["fra"] - before["fra"]
            assert SIZE_BYTES < crossed < 1.5 * SIZE_BYTES
