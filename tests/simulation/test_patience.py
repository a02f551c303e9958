"""What those cost that fail, and what a network costs that only seems to: times are of the virtual clock."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas.inventory import Item
from cas.swarm.limits import Limits
from cas.swarm.patience import Pace, Wait, patience
from tests.simulation.network import Model
from tests.simulation.test_fetching import MB, assert_all_have, run, start, swarm_of, world_with
from tests.simulation.world import World, item

ITEMS = [item(f"blob {number}", 24 * MB) for number in range(8)]
LINES = Model(host_bytes_per_s=125e6, border_bytes_per_s=20e6, far_delay_s=0.04)
ALONE_S = 8 * 24 * MB / LINES.border_bytes_per_s


def world_of(items: list[Item], model: Model = LINES) -> World:
    return world_with(items, swarm_of(3, 8), model=model)


def bringers(world: World) -> list[str]:
    """Of the second region, who brings the most first."""
    ranked = [world.swarm.ranking("r1", one.whole.digest)[0] for one in ITEMS]
    return sorted(set(ranked), key=lambda name: (-ranked.count(name), name))


def last_s(world: World) -> float:
    return max(host.done_s for host in world.sound() if host.done_s is not None)


def copies(world: World, region: str) -> float:
    return world.crossings(region) / sum(one.whole.size for one in ITEMS)


@pytest.mark.parametrize("fault", ["dead", "stalling", "slow", "lying"])
def test_a_bringer_that_fails_costs_a_part_of_the_time_that_the_blobs_need_anyway(fault: str) -> None:
    world = world_of(ITEMS)
    start(world, ITEMS)
    run(world)
    sound_s = last_s(world)

    world = world_of(ITEMS)
    world.network.at(ALONE_S / 3, partial(world.hosts[bringers(world)[0]].break_down, fault))
    start(world, ITEMS)
    run(world)
    assert_all_have(world, ITEMS)
    assert last_s(world) < 2 * sound_s
    assert copies(world, "r1") < 1.5
    assert copies(world, "r2") < 1.1


def test_a_border_that_is_cut_and_heals_costs_its_time_and_a_small_part_of_a_copy() -> None:
    world = world_of(ITEMS)
    world.network.at(ALONE_S / 3, partial(world.network.cut, "r1", 10.0))
    start(world, ITEMS)
    run(world)
    assert_all_have(world, ITEMS)
    assert last_s(world) < 2 * ALONE_S + 10.0
    assert copies(world, "r1") < 1.25
    assert copies(world, "r2") < 1.1


def test_long_thin_lines_raise_no_alarm() -> None:
    module = [item("module", 11 * MB)]
    world = world_of(module, Model(host_bytes_per_s=125e6, border_bytes_per_s=2.5e6, far_delay_s=0.04))
    start(world, module)
    run(world)
    assert not [source for host in world.hosts.values() for source in host.fetch.sources() if source.reason]
    assert world.crossings("r1") == world.crossings("r2") == 11 * MB


def test_nobody_is_left_before_anything_was_measured_until_the_longest_wait_is_over() -> None:
    limits = Limits()
    assert patience(limits.stall_s - 0.1, Pace(), limits) is Wait.NORMAL
    assert patience(limits.stall_s, Pace(), limits) is Wait.OVER


def test_a_silence_of_a_few_usual_waits_is_long() -> None:
    limits, pace = Limits(), Pace()
    for _ in range(50):
        pace.waited(0.8)
    assert patience(0.9, pace, limits) is Wait.NORMAL
    assert patience(2.4, pace, limits) is Wait.LONG


@given(st.floats(0.001, 10.0), st.lists(st.floats(0.5, 1.0), min_size=1, max_size=200))
def test_waits_that_are_alike_are_never_long(scale_s: float, shares: list[float]) -> None:
    limits, pace = Limits(), Pace()
    for share in shares:
        wait_s = share * scale_s
        assert patience(wait_s, pace, limits) is Wait.NORMAL
        pace.waited(wait_s)
