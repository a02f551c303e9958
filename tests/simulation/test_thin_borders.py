"""Many bring blobs in over one thin border: who waits in its queue is not slow, and asks for no more than comes."""

from __future__ import annotations

import pytest

from cas.digest import Digest
from cas.inventory import Item
from cas.swarm.blob import Want
from cas.swarm.inflow import INFLOW_S, LEAST_GETS
from cas.swarm.limits import Limits
from cas.swarm.messages import Arrived, Get
from tests.simulation.network import Model
from tests.simulation.test_fetching import assert_all_have, run, start, swarm_of, world_with
from tests.simulation.test_large_regions import Talk
from tests.simulation.world import World, item

THIN = Model(border_bytes_per_s=2.5e6)
SMALL_BYTES = 128 << 10


def many(count: int, size: int = SMALL_BYTES) -> list[Item]:
    return [item(f"small {number}", size) for number in range(count)]


def times_of_one_copy(world: World, items: list[Item]) -> float:
    """How much longer it took than one copy of all takes over one border."""
    last_s = max(host.done_s for host in world.sound() if host.done_s is not None)
    return last_s * world.network.model.border_bytes_per_s / sum(one.whole.size for one in items)


@pytest.mark.parametrize(("count", "size"), [(200, SMALL_BYTES), (20, 10 * SMALL_BYTES)])
def test_many_blobs_that_several_bring_in_cross_a_thin_border_once(count: int, size: int) -> None:
    items = many(count, size)
    world = world_with(items, swarm_of(3, 4), model=THIN)
    start(world, items)
    run(world)
    assert_all_have(world, items)
    total = sum(one.whole.size for one in items)
    assert world.crossings("r0") == 0
    assert max(world.crossings("r1"), world.crossings("r2")) <= 1.1 * total
    assert times_of_one_copy(world, items) < 1.3


@pytest.mark.parametrize("fault", ["dead", "stalling"])
def test_a_bringer_that_fails_costs_little_more_than_what_it_was_to_bring(fault: str) -> None:
    items = many(100)
    world = world_with(items, swarm_of(3, 4), model=THIN)
    world.hosts["r1h1"].break_down(fault)
    start(world, items)
    run(world)
    assert_all_have(world, items)
    assert world.crossings("r1") < 1.4 * sum(one.whole.size for one in items)


class _Outside:
    """A host that brings many small blobs in, and hosts of other regions that all have them."""

    def __init__(self, peers: int) -> None:
        swarm = swarm_of(peers + 1, 1)
        self.items = many(100)
        self.talk = Talk("r0h0", [Want(one, swarm) for one in self.items])
        self.left: list[tuple[Get, list[Digest]]] = []
        self._seen = 0
        for peer in list(self.talk.asked):
            self.talk.told(peer, dict.fromkeys(self.talk.asked[peer].forms, 1))
        self._look()

    def _look(self) -> None:
        """What was asked for since."""
        fresh = self.talk.gets[self._seen :]
        self._seen += len(fresh)
        self.left += [(get, [part.form for part in get.parts]) for get in fresh]

    @property
    def awaited_bytes(self) -> int:
        return SMALL_BYTES * sum(len(forms) for _, forms in self.left)

    def sends(self, but: str = "") -> str:
        """One more blob comes, of whoever was asked first; from whom."""
        get, forms = next((get, forms) for get, forms in self.left if get.peer != but)
        self.talk.take(Arrived(get.id, forms.pop(0), 0, 1, SMALL_BYTES))
        self.left = [(one, rest) for one, rest in self.left if rest]
        self._look()
        return get.peer


def test_a_host_asks_for_what_lately_came_in_a_while_however_many_have_something_for_it() -> None:
    outside = _Outside(8)
    assert len(outside.left) == LEAST_GETS
    most = []
    for _ in range(40):
        outside.talk.wait(0.05)
        outside.sends()
        most.append(outside.awaited_bytes)
    came_bytes = SMALL_BYTES / 0.05 * INFLOW_S
    assert 0.7 * came_bytes < min(most[5:]) <= max(most[5:]) < 1.3 * came_bytes + LEAST_GETS * SMALL_BYTES


def test_who_is_silent_while_others_send_holds_up_nobody() -> None:
    outside = _Outside(8)
    silent = outside.left[0][0].peer
    senders = set()
    while outside.talk.now_s < Limits().least_patience_s:
        outside.talk.wait(0.1)
        senders.add(outside.sends(but=silent))
    assert len(senders) > LEAST_GETS


def test_where_nothing_comes_at_all_one_more_is_asked_each_second() -> None:
    outside = _Outside(8)
    outside.talk.wait(3 * Limits().relief_s + Limits().tick_s)
    outside._look()
    assert len({get.peer for get, _ in outside.left}) == LEAST_GETS + 3
