"""What `cas.swarm` promises, in small worlds with a virtual clock and in conversations with hostile peers."""

from __future__ import annotations

import random
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas.digest import Digest
from cas.inventory import Item
from cas.manifest import PIECE_BYTES, pieces_in
from cas.swarm.blob import Blob, Want
from cas.swarm.bringers import Bringers
from cas.swarm.fetching import Fetch
from cas.swarm.limits import Limits
from cas.swarm.messages import (
    Arrived,
    Ask,
    Busy,
    Ended,
    Event,
    Failed,
    Get,
    Keep,
    Kept,
    Over,
    Request,
    Tick,
    Told,
    Wrong,
    everything,
)
from cas.swarm.pieces import Picker
from cas.swarm.ranking import Swarm
from tests.simulation.network import Model, Network
from tests.simulation.world import FAULTS, World, break_some, item, make_world

MB = 1 << 20
LIMITS = Limits(patience_s=40.0)


def swarm_of(regions: int, hosts: int) -> Swarm:
    return Swarm({f"r{r}": [f"r{r}h{h}" for h in range(hosts)] for r in range(regions)})


def world_with(items: list[Item], swarm: Swarm, *, model: Model | None = None) -> World:
    """The first region's bringer of each blob has it; all want all."""
    world = make_world(swarm, Network(swarm.region_of, model or Model()), LIMITS)
    for one in items:
        world.hold(swarm.ranking("r0", one.whole.digest)[0], [one])
    return world


def start(world: World, items: list[Item], *, bases: frozenset[Digest] = frozenset()) -> None:
    for host in world.hosts.values():
        wants = [Want(one, world.swarm, bases) for one in items if one.whole.digest not in host.held]
        world.network.at(0.0, partial(host.want, wants))


def run(world: World, until_s: float = 600.0) -> None:
    world.network.run(until_s=until_s, is_done=world.is_done)
    unfinished = [host.name for host in world.sound() if host.fetch.wanted]
    assert not unfinished


def assert_all_have(world: World, items: list[Item]) -> None:
    for host in world.sound():
        for one in items:
            assert one.whole.digest in host.held or host.ended[one.whole.digest].ok
        assert all(ended.ok for ended in host.ended.values()), host.ended


def test_each_blob_crosses_each_border_once_and_no_piece_comes_twice() -> None:
    items = [item("large", 40 * MB), item("middle", 3 * MB + 17), item("small", 900), item("empty", 0)]
    world = world_with(items, swarm_of(4, 6))
    start(world, items)
    run(world)
    assert_all_have(world, items)
    total = sum(one.whole.size for one in items)
    assert [world.crossings(region) for region in world.swarm.regions] == [0, total, total, total]
    assert all(times == 1 for host in world.hosts.values() for times in host.came.values())


def test_a_swarm_of_three_regions_takes_less_than_twice_as_long_as_one_copy_over_one_link() -> None:
    model = Model(host_bytes_per_s=125e6, border_bytes_per_s=2.5e6, far_delay_s=0.04)
    items = [item("module", 11 * MB)]
    world = world_with(items, swarm_of(3, 4), model=model)
    start(world, items)
    run(world)
    last_s = max(host.done_s for host in world.hosts.values() if host.done_s is not None)
    assert last_s < 2.0 * 11 * MB / model.border_bytes_per_s
    assert world.crossings("r1") == world.crossings("r2") == 11 * MB


def test_a_delta_is_taken_where_its_base_is_held_and_the_whole_elsewhere() -> None:
    old = item("old", 8 * MB)
    new = item("new", 8 * MB, deltas=[(old.whole.digest, 300_000)])
    world = world_with([new], swarm_of(2, 3))
    start(world, [new], bases=frozenset([old.whole.digest]))
    run(world)
    assert_all_have(world, [new])
    assert world.crossings("r1") == 300_000

    world = world_with([new], swarm_of(2, 3))
    start(world, [new])
    run(world)
    assert world.crossings("r1") == 8 * MB


def test_a_delta_waits_for_a_base_that_is_wanted_too() -> None:
    old = item("old", 2 * MB)
    new = item("new", 2 * MB, deltas=[(old.whole.digest, 1000)])
    world = world_with([old, new], swarm_of(2, 2))
    start(world, [new, old])
    run(world)
    assert_all_have(world, [old, new])
    assert world.crossings("r1") == 2 * MB + 1000


def test_blobs_whose_deltas_need_each_other_are_had_all_the_same() -> None:
    plain = {name: item(name, 2 * MB).whole.digest for name in "ab"}
    items = [item("a", 2 * MB, deltas=[(plain["b"], 1000)]), item("b", 2 * MB, deltas=[(plain["a"], 1000)])]
    world = world_with(items, swarm_of(2, 2))
    start(world, items)
    run(world)
    assert_all_have(world, items)


def test_what_was_verified_before_a_restart_is_not_fetched_again() -> None:
    items = [item("large", 60 * MB)]
    world = world_with(items, swarm_of(2, 4))
    start(world, items)
    killed = [host for host in world.hosts.values() if not host.held]
    for number, host in enumerate(killed):
        wants = [Want(one, world.swarm) for one in items]
        world.network.at(0.2 + number * 0.02, partial(host.restart, wants, LIMITS))
    run(world)
    assert_all_have(world, items)
    assert all(times == 1 for host in world.hosts.values() for times in host.came.values())


def test_a_bringer_that_dies_in_the_middle_is_replaced() -> None:
    items = [item("large", 60 * MB)]
    swarm = swarm_of(2, 5)
    world = world_with(items, swarm)
    bringer = swarm.ranking("r1", items[0].whole.digest)[0]
    world.network.at(0.3, partial(world.hosts[bringer].break_down, "dead"))
    start(world, items)
    run(world)
    assert_all_have(world, items)
    assert world.crossings("r1") < 2 * 60 * MB


def test_a_liar_costs_a_piece_and_is_asked_for_nothing_more_of_the_blob() -> None:
    items = [item("large", 40 * MB)]
    swarm = swarm_of(1, 6)
    world = world_with(items, swarm)
    liar = swarm.ranking("r0", items[0].whole.digest)[1]
    world.hold(liar, items)
    world.hosts[liar].break_down("lying")
    start(world, items)
    run(world)
    assert_all_have(world, items)
    for host in world.sound():
        assert sum(times for times in host.came.values()) <= 160
        assert all(len(source.banned) == (source.peer == liar) for source in host.fetch.sources() if source.banned)
    assert world.network.up[liar].bytes <= PIECE_BYTES * (len(world.hosts) - 2)


def test_a_blob_that_nobody_has_is_reported() -> None:
    items = [item("nowhere", 5 * MB), item("here", 5 * MB)]
    world = world_with(items[1:], swarm_of(2, 3))
    start(world, items)
    run(world)
    for host in world.hosts.values():
        ended = host.ended[items[0].whole.digest]
        assert not ended.ok
        assert "no host" in ended.reason


def test_a_holder_that_is_no_bringer_is_found() -> None:
    items = [item("odd place", 5 * MB)]
    swarm = swarm_of(3, 8)
    world = make_world(swarm, Network(swarm.region_of, Model()), LIMITS)
    world.hold(swarm.ranking("r0", items[0].whole.digest)[5], items)
    for region in ("r1", "r2"):
        for name in swarm.regions[region]:
            world.network.at(0.0, partial(world.hosts[name].want, [Want(items[0], swarm)]))
    for host in world.hosts.values():
        host.started = True
    world.network.run(until_s=100.0, is_done=lambda: world.network.now_s > 1 and world.is_done())
    assert all(world.hosts[n].ended[items[0].whole.digest].ok for r in ("r1", "r2") for n in swarm.regions[r])


@settings(max_examples=12)
@given(st.integers(0, 1 << 30), st.sampled_from([0.1, 0.3]), st.integers(1, 3), st.integers(3, 6))
def test_whoever_fails_in_whatever_way_the_others_get_everything(
    seed: int, share: float, regions: int, hosts: int
) -> None:
    chance = random.Random(seed)
    items = [item(f"{seed} {n}", chance.choice([0, 1, 70_000, 5 * MB, 30 * MB])) for n in range(4)]
    world = world_with(items, swarm_of(regions, hosts))
    holders = {host.name for host in world.hosts.values() if host.held}
    break_some(world, share, chance, within_s=1.0, spare=holders)
    start(world, items)
    run(world)
    assert_all_have(world, items)
    assert all(times == 1 for host in world.sound() for times in host.came.values())


class Conversation:
    """A `Fetch` between peers that say whatever a test draws; it checks what must hold of every request."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        base = item("base", MB)
        self.items = [
            item("one", 9 * MB, deltas=[(base.whole.digest, MB)]),
            item("two", 100),
            item("three", 1 * MB, deltas=[(item("two", 100).whole.digest, 20)]),
        ]
        self.sizes = {form.digest: form.size for one in self.items for form in (one.whole, *one.others)}
        self.limits = Limits(patience_s=30.0, in_flight_bytes=8 * MB, gets=4)
        self.fetch = Fetch("r0h0", limits=self.limits)
        self.swarm = swarm_of(2, 3)
        self.bases = frozenset([base.whole.digest])
        self.open: dict[int, Ask | Get] = {}
        self.left: dict[int, set[tuple[Digest, int]]] = {}
        self.keeping: dict[Digest, Keep] = {}
        self.ended: dict[Digest, Ended] = {}
        self.now_s = 0.0

    def begin(self) -> None:
        self.take(self.fetch.want([Want(one, self.swarm, self.bases) for one in self.items], 0.0))

    def take(self, requests: list[Request]) -> None:
        for request in requests:
            if isinstance(request, Ask):
                self.open[request.id] = request
            elif isinstance(request, Get):
                asked = {(p.form, i) for p in request.parts for i in range(p.first, p.first + p.count)}
                assert not any(asked & other for other in self.left.values()), "a piece is in flight twice"
                self.open[request.id], self.left[request.id] = request, asked
            elif isinstance(request, Keep):
                self.keeping[request.blob] = request
            elif isinstance(request, Ended):
                assert request.blob not in self.ended
                self.ended[request.blob] = request
            else:
                self.close(request.id)
        assert len(self.left) <= self.limits.gets
        peers = [self.open[number].peer for number in self.left]
        assert len(peers) == len(set(peers)), "more gets of one peer than it may have"
        assert sum(map(len, self.left.values())) * PIECE_BYTES <= self.limits.in_flight_bytes + 16 * PIECE_BYTES
        assert len(self.open) - len(self.left) <= self.limits.asks
        assert len(requests) < 100

    def close(self, number: int) -> None:
        self.open.pop(number, None)
        self.left.pop(number, None)

    def something(self) -> Event:
        draw = self.data.draw
        if self.keeping and draw(st.integers(0, 1)) == 1:
            keep = self.keeping.pop(draw(st.sampled_from(sorted(self.keeping))))
            return Kept(keep.blob, ok=draw(st.integers(0, 1)) == 1, reason="drawn")
        if not self.open or draw(st.integers(0, 4)) == 0:
            idle: list[Event] = [Tick(), Over(99999), Failed(0, ""), Arrived(77777, "b3:", 0, 1, 1)]
            return draw(st.sampled_from(idle))
        number = draw(st.sampled_from(sorted(self.open)))
        request = self.open[number]
        if draw(st.integers(0, 9)) == 0:
            self.close(number)
            over: list[Event] = [Failed(number, "drawn"), Busy(number, 1e9), Over(number)]
            return draw(st.sampled_from(over))
        if isinstance(request, Ask):
            self.close(number)
            pieces = st.integers(0, 1 << 40) | st.just(everything(64))
            return Told(number, {form: draw(pieces) for form in self.sizes})
        form, index = draw(st.sampled_from(sorted(self.left[number])))
        if draw(st.integers(0, 9)) == 0:
            self.close(number)
            return Wrong(number, form, index)
        self.left[number].discard((form, index))
        if not self.left[number]:
            self.close(number)
        return Arrived(number, form, index, 1, draw(st.integers(0, PIECE_BYTES)))


@settings(max_examples=25)
@given(st.data())
def test_whatever_peers_say_no_piece_is_in_flight_twice_and_everything_ends(data: st.DataObject) -> None:
    talk = Conversation(data)
    talk.begin()
    for _ in range(data.draw(st.integers(0, 120))):
        talk.now_s += data.draw(st.sampled_from([0.0, 0.01, 0.6, 5.0]))
        talk.take(talk.fetch.take(talk.something(), talk.now_s))
    for _ in range(400):  # From now on nobody says anything.
        if talk.fetch.wake_s is None:
            break
        for keep in list(talk.keeping.values()):
            del talk.keeping[keep.blob]
            talk.take(talk.fetch.take(Kept(keep.blob, ok=True), talk.now_s))
        if talk.fetch.wake_s is not None:
            talk.now_s = max(talk.now_s, talk.fetch.wake_s)
            talk.take(talk.fetch.take(Tick(), talk.now_s))
    assert talk.fetch.wake_s is None
    assert set(talk.ended) == {one.whole.digest for one in talk.items}


def test_a_peer_that_tells_of_more_while_it_is_sending_is_not_asked_for_it_yet() -> None:
    large = item("large", 60 * MB)
    fetch = Fetch("r0h0")
    out = fetch.want([Want(large, swarm_of(1, 2))], 0.0)
    form = large.whole.digest
    for held in (0xFF, 0xFFFF):
        ask = next(request for request in out if isinstance(request, Ask))
        out = fetch.take(Told(ask.id, {form: held}), 1.0)
        gets = [request for request in out if isinstance(request, Get)]
        assert len(gets) == (held == 0xFF)
        out += fetch.take(Tick(), 1.4)


@pytest.mark.parametrize("is_near", [True, False])
def test_who_is_always_busy_keeps_nobody_from_getting_it_elsewhere(is_near: bool) -> None:
    large, swarm = item("large", 4 * MB), swarm_of(2, 4)
    form = large.whole.digest
    inside, outside = swarm.ranking("r0", form), swarm.ranking("r1", form)
    busy, me = (inside[0], inside[1]) if is_near else (outside[0], inside[0])
    fetch = Fetch(me)
    out, now_s = fetch.want([Want(large, swarm)], 0.0), 0.0
    ended: list[Ended] = []
    while out or fetch.wake_s is not None:
        while out:
            match out.pop():
                case Ask(number, peer, forms) if peer in (busy, *outside):
                    out += fetch.take(Told(number, forms), now_s)
                case Get(number, peer) if peer == busy:
                    out += fetch.take(Busy(number, 0.5), now_s)
                case Get(number, _, parts):
                    for index in [part.first + at for part in parts for at in range(part.count)]:
                        out += fetch.take(Arrived(number, form, index, 1, PIECE_BYTES), now_s)
                case Keep(blob):
                    out += fetch.take(Kept(blob, ok=True), now_s)
                case Ended() as end:
                    ended.append(end)
        now_s = max(now_s, fetch.wake_s or 0.0)
        out += fetch.take(Tick(), now_s)
    assert ended == [Ended(form, ok=True)]
    assert now_s < 3 * fetch.limits.stall_s


@pytest.mark.parametrize("ended", [True, False])
def test_a_blob_that_was_given_up_makes_nobody_slow_who_was_to_bring_it(ended: bool) -> None:
    swarm, bringers = swarm_of(1, 4), Bringers()
    roots = ("r0h1", "r0h2", "r0h3")
    for root in roots:
        one = item(root, 2000 * MB)
        blob = Blob(Want(one, swarm), [one.whole], {}, "r0h0", 0.0)
        blob.ended = ended and root == roots[-1]
        bringers.begin(root, blob, 0.0)
    for now_s in range(30):
        bringers.look(float(now_s))
        for root in roots[:-1]:
            bringers.brought(root, 50, float(now_s))
    assert bringers.behind == (frozenset() if ended else {roots[-1]})


def test_in_a_small_region_what_would_be_dealt_to_the_dead_is_dealt_to_the_others() -> None:
    one, swarm = item("large", 20 * MB), swarm_of(1, 4)
    form = one.whole
    root, dead, *others = swarm.ranking("r0", form.digest)

    def share(me: str, absent: frozenset[str]) -> int:
        blob = Blob(Want(one, swarm), [form], {}, me, 0.0)
        blob.root, blob.absent = root, absent
        return Picker(me, Limits()).share_inside(blob, form.digest)

    whole = everything(pieces_in(form.size))
    assert share(others[0], frozenset()) | share(others[1], frozenset()) < whole
    assert share(others[0], frozenset({dead})) ^ share(others[1], frozenset({dead})) == whole


def test_a_get_of_many_small_blobs_goes_on_when_the_first_of_them_is_kept() -> None:
    small = [item(f"small {number}", 5000) for number in range(5)]
    fetch = Fetch("r0h0")
    ask = next(one for one in fetch.want([Want(one, swarm_of(1, 2)) for one in small], 0.0) if isinstance(one, Ask))
    (get,) = [one for one in fetch.take(Told(ask.id, dict.fromkeys(ask.forms, 1)), 0.01) if isinstance(one, Get)]
    assert len(get.parts) == len(small)
    first = get.parts[0].form
    (keep,) = fetch.take(Arrived(get.id, first, 0, 1, 5000), 0.02)
    assert isinstance(keep, Keep)
    (ended,) = fetch.take(Kept(keep.blob, ok=True), 0.03)
    assert isinstance(ended, Ended)


def test_who_waits_for_nothing_asks_again_as_soon_as_it_may_and_not_at_the_next_tick() -> None:
    large = item("large", 60 * MB)
    fetch = Fetch("r0h0")
    ask = next(request for request in fetch.want([Want(large, swarm_of(1, 2))], 0.0) if isinstance(request, Ask))
    (get,) = (one for one in fetch.take(Told(ask.id, {large.whole.digest: 1}), 0.01) if isinstance(one, Get))
    assert fetch.wake_s == fetch.limits.tick_s
    out = fetch.take(Arrived(get.id, large.whole.digest, 0, 1, PIECE_BYTES), 0.015)
    assert not out and fetch.wake_s is not None and fetch.wake_s <= 0.01 + fetch.limits.ask_gap_s
    again = [one for one in fetch.take(Tick(), fetch.wake_s) if isinstance(one, Ask)]
    assert [one.peer for one in again] == [ask.peer]


def test_the_same_seed_gives_the_same_run() -> None:
    def messages() -> list[int]:
        items = [item("x", 20 * MB)]
        world = world_with(items, swarm_of(2, 6))
        break_some(world, 0.2, random.Random(3), within_s=1.0, spare={h.name for h in world.hosts.values() if h.held})
        start(world, items)
        run(world)
        return [host.messages for host in world.hosts.values()]

    assert messages() == messages()


def test_the_faults_that_are_tried_are_the_ones_that_are_promised() -> None:
    assert set(FAULTS) == {"dead", "stalling", "slow", "lying"}
