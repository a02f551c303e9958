"""One host in a region brings what hundreds wait for: who waits must not make that worse."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cas.digest import Digest
from cas.manifest import PIECE_BYTES
from cas.swarm.blob import Blob, Want
from cas.swarm.fetching import Fetch
from cas.swarm.late import Late
from cas.swarm.limits import Limits
from cas.swarm.messages import Arrived, Ask, Busy, Event, Failed, Get, Over, Request, Tick, Told, Wrong, everything
from cas.swarm.patience import Pace
from cas.swarm.peer import FIRST_BACKOFF_S, Peer
from cas.swarm.pieces import LEAST_PIECES, Picker
from tests.simulation.network import Model
from tests.simulation.test_fetching import MB, assert_all_have, run, start, swarm_of, world_with
from tests.simulation.world import World, item

LARGE = item("large", 64 * MB)
SLOW_HOSTS = Model(host_bytes_per_s=12.5e6, border_bytes_per_s=12.5e6)


def bringer_of(world: World, region: str, place: int = 0) -> str:
    return world.swarm.ranking(region, LARGE.whole.digest)[place]


def test_a_bringer_with_a_hundred_neighbours_behind_it_is_neither_stormed_nor_replaced() -> None:
    world = world_with([LARGE], swarm_of(2, 100), model=SLOW_HOSTS)
    start(world, [LARGE])
    run(world)
    assert_all_have(world, [LARGE])
    assert world.crossings("r1") <= 1.05 * LARGE.whole.size
    assert world.network.up[bringer_of(world, "r1")].bytes < 3 * LARGE.whole.size


def test_what_a_silent_host_should_have_taken_from_the_bringer_others_take_while_the_rest_still_comes() -> None:
    lines = Model(border_bytes_per_s=4e6)
    world = world_with([LARGE], swarm_of(2, 40), model=lines)
    bringer, silent = bringer_of(world, "r1"), bringer_of(world, "r1", 1)
    world.hosts[silent].break_down("stalling")
    start(world, [LARGE])
    form, soon_s = LARGE.whole.digest, LARGE.whole.size / lines.border_bytes_per_s / 2
    lacking: list[int] = []

    def look() -> None:
        arrived = world.hosts[bringer].held[form]
        others = [world.hosts[name] for name in world.swarm.regions["r1"] if name not in (bringer, silent)]
        lacking.extend((arrived & ~host.held.get(form, 0)).bit_count() for host in others)

    world.network.at(soon_s, look)
    run(world)
    assert_all_have(world, [LARGE])
    assert max(lacking) < Limits().run_pieces


class Talk:
    """A `Fetch` that asks, and is told what the test says."""

    def __init__(self, me: str, wants: list[Want]) -> None:
        self.fetch = Fetch(me)
        self.now_s = 0.0
        self.asked: dict[str, Ask] = {}
        self.gets: list[Get] = []
        self._take(self.fetch.want(wants, 0.0))

    def _take(self, requests: list[Request]) -> None:
        for request in requests:
            if isinstance(request, Ask):
                self.asked[request.peer] = request
            elif isinstance(request, Get):
                self.gets.append(request)

    def told(self, peer: str, held: dict[Digest, int]) -> None:
        self._take(self.fetch.take(Told(self.asked.pop(peer).id, held), self.now_s))

    def take(self, event: Event) -> None:
        self._take(self.fetch.take(event, self.now_s))

    def wait(self, seconds: float) -> None:
        until_s = self.now_s + seconds
        while (wake_s := self.fetch.wake_s) is not None and wake_s <= until_s:
            self.now_s = max(self.now_s, wake_s)
            self.take(Tick())
        self.now_s = until_s


def test_a_busy_neighbour_is_asked_again_for_the_same_and_nobody_goes_outside_because_of_it() -> None:
    swarm = swarm_of(2, 3)
    bringer, me, _ = swarm.ranking("r0", LARGE.whole.digest)
    talk = Talk(me, [Want(LARGE, swarm)])
    talk.told(bringer, {LARGE.whole.digest: everything(256)})
    (first,) = talk.gets
    talk.take(Busy(first.id, 1.0))
    talk.wait(0.9)
    assert talk.gets == [first]
    talk.wait(0.7)
    assert [get.peer for get in talk.gets] == [bringer, bringer]
    assert all(peer in swarm.regions["r0"] for peer in talk.asked)
    assert not any(source.failures or source.reason for source in talk.fetch.sources())


def test_who_sent_a_wrong_piece_of_one_blob_is_not_believed_to_have_another() -> None:
    swarm = swarm_of(2, 2)
    blobs = [item(f"{number}", 8 * MB) for number in range(40)]
    liar, me = swarm.ranking("r0", blobs[0].whole.digest)
    mine = next(one for one in blobs if swarm.ranking("r0", one.whole.digest)[0] == me)
    talk = Talk(me, [Want(blobs[0], swarm), Want(mine, swarm)])
    talk.told(liar, {one.whole.digest: everything(32) for one in (blobs[0], mine)})
    talk.wait(1.0)
    get = next(get for get in talk.gets if get.parts[0].form == blobs[0].whole.digest)
    talk.take(Wrong(get.id, blobs[0].whole.digest, get.parts[0].first))
    outside = swarm.ranking("r1", mine.whole.digest)[0]
    before = len(talk.gets)
    talk.told(outside, {mine.whole.digest: everything(32)})
    assert any(get.peer == outside for get in talk.gets[before:])


def test_what_a_suspect_host_owes_is_asked_of_the_first_other_one_that_has_it() -> None:
    swarm = swarm_of(1, 3)
    bringer, me, other = swarm.ranking("r0", LARGE.whole.digest)
    talk = Talk(me, [Want(LARGE, swarm)])
    talk.told(bringer, {LARGE.whole.digest: 1})
    talk.take(Over(talk.gets[0].id))  # It told of a piece, and has sent none.
    talk.wait(4.0)
    talk.told(bringer, {LARGE.whole.digest: 1})
    assert [get.peer for get in talk.gets] == [bringer, bringer]
    talk.wait(0.1)
    talk.told(other, {LARGE.whole.digest: 1})
    talk.wait(0.6)
    assert [get.peer for get in talk.gets] == [bringer, bringer, other]


def test_who_is_busy_again_and_again_moves_nothing_so_more_than_a_share_is_asked_for() -> None:
    swarm = swarm_of(1, 40)
    bringer, me, *_ = swarm.ranking("r0", LARGE.whole.digest)
    talk = Talk(me, [Want(LARGE, swarm)])
    talk.told(bringer, {LARGE.whole.digest: everything(256)})
    runs = set()
    for _ in range(12):
        get = talk.gets[-1]
        runs.add(get.parts[0].first // Limits().run_pieces)
        talk.take(Busy(get.id, 0.5))
        talk.wait(1.0)
    assert len(runs) > 2  # Each of 39 has one share of 16 runs, and the first in the ranking no more than that.


def test_who_failed_brings_nothing_before_it_has_answered() -> None:
    swarm = swarm_of(2, 3)
    bringer, me, _ = swarm.ranking("r0", LARGE.whole.digest)
    outside = swarm.ranking("r1", LARGE.whole.digest)[0]
    talk = Talk(me, [Want(LARGE, swarm)])
    talk.take(Failed(talk.asked.pop(bringer).id, "no connection"))
    talk.wait(FIRST_BACKOFF_S * 2 + 1.0)  # It may be asked again, and is, but has said nothing yet.
    assert bringer in talk.asked
    talk.told(outside, {LARGE.whole.digest: everything(256)})
    assert [get.peer for get in talk.gets] == [outside]


def test_who_brings_in_place_of_a_silent_bringer_brings_also_what_only_that_one_told_of() -> None:
    swarm = swarm_of(2, 3)
    bringer, me, other = swarm.ranking("r0", LARGE.whole.digest)
    outside = swarm.ranking("r1", LARGE.whole.digest)[0]
    talk = Talk(me, [Want(LARGE, swarm)])
    talk.told(bringer, {LARGE.whole.digest: everything(256)})
    talk.told(other, {LARGE.whole.digest: everything(16)})
    talk.wait(Limits().takeover_s + 1.0)  # No longer than silence is borne where nothing was measured.
    assert {get.peer for get in talk.gets} == {bringer, other}
    talk.told(outside, {LARGE.whole.digest: everything(256)})
    taken = [get for get in talk.gets if get.peer == outside]
    assert taken
    assert all(get.parts[0].first >= 16 for get in taken)


def test_what_neighbours_have_by_now_is_not_waited_for_from_another_region() -> None:
    swarm = swarm_of(2, 3)
    me, neighbour, _ = swarm.ranking("r0", LARGE.whole.digest)
    outside = swarm.ranking("r1", LARGE.whole.digest)[0]
    talk = Talk(me, [Want(LARGE, swarm)])
    form = LARGE.whole.digest
    talk.told(neighbour, {form: 1 << 255})
    talk.take(Arrived(talk.gets[0].id, form, 255, 1, PIECE_BYTES))
    talk.told(outside, {form: 0b11})
    talk.wait(0.5)
    talk.told(neighbour, {form: 0b11})
    talk.wait(Limits().least_patience_s + Limits().tick_s)
    assert [(get.peer, get.parts[0].first) for get in talk.gets] == [(neighbour, 255), (outside, 0), (neighbour, 0)]
    assert not any(source.failures or source.reason for source in talk.fetch.sources())


def test_where_a_bringer_of_another_region_tells_of_nothing_the_next_one_there_is_asked() -> None:
    swarm = swarm_of(3, 3)
    form = LARGE.whole.digest
    me, source = swarm.ranking("r0", form)[0], swarm.ranking("r1", form)[0]
    silent, successor, _ = swarm.ranking("r2", form)
    talk = Talk(me, [Want(LARGE, swarm)])
    pieces = iter(range(256))

    def told_until(enough: Callable[[], bool]) -> float:
        """There is news from the other region all the time."""
        while not enough() and talk.now_s < 2 * Limits().takeover_s:
            if source in talk.asked:
                talk.told(source, {form: everything(next(pieces) + 1)})
            for get in talk.gets:
                talk.take(Arrived(get.id, form, get.parts[0].first, get.parts[0].count, PIECE_BYTES))
            talk.wait(0.5)
        return talk.now_s

    assert told_until(lambda: successor in talk.asked) >= Limits().least_takeover_s
    assert form in talk.asked[successor].forms
    assert silent in talk.asked


def test_with_the_last_piece_neighbours_are_asked_soon_and_one_that_has_it_is_taken() -> None:
    swarm = swarm_of(1, 3)
    small = item("small", 3 * PIECE_BYTES)
    form = small.whole.digest
    bringer, me, other = swarm.ranking("r0", form)
    talk = Talk(me, [Want(small, swarm)])
    talk.told(bringer, {form: 0b100})
    talk.take(Arrived(talk.gets[0].id, form, 2, 1, PIECE_BYTES))
    talk.wait(0.5)
    talk.told(bringer, {form: 0b111})
    talk.told(other, {form: 0b110})
    talk.take(Arrived(talk.gets[2].id, form, 1, 1, PIECE_BYTES))
    talk.wait(Limits().tick_s)
    assert talk.asked[other].forms == {form: 0b001}
    talk.told(other, {form: 0b111})
    assert [get.peer for get in talk.gets] == [bringer, bringer, other]
    talk.wait(Limits().tick_s)
    assert [get.peer for get in talk.gets] == [bringer, bringer, other, other]
    assert 2 * Limits().tick_s < Limits().least_patience_s


def test_who_brings_one_blob_is_not_waited_for_with_another_for_ever() -> None:
    swarm = swarm_of(2, 4)
    blobs = [item(f"{number}", 64 * MB) for number in range(200)]
    bringer, me, *others = swarm.ranking("r0", blobs[0].whole.digest)
    second = next(one for one in blobs[1:] if swarm.ranking("r0", one.whole.digest)[:2] == (bringer, others[0]))
    kept, moving = blobs[0].whole.digest, second.whole.digest
    talk = Talk(me, [Want(blobs[0], swarm), Want(second, swarm)])
    outside = swarm.ranking("r1", kept)[0]
    pieces = iter(range(256))
    talk.told(others[0], {kept: 1})
    talk.wait(0.5)
    while outside not in talk.asked and talk.now_s < Limits().wait_s:
        for neighbour in others:
            if neighbour in talk.asked:
                talk.told(neighbour, {moving: everything(next(pieces) + 1)})
        for get in talk.gets:
            talk.take(Arrived(get.id, get.parts[0].form, get.parts[0].first, get.parts[0].count, PIECE_BYTES))
        talk.wait(0.5)
    assert kept in talk.asked[outside].forms
    assert moving not in talk.asked[outside].forms
    assert talk.now_s >= 2 * Limits().least_takeover_s


def test_of_small_blobs_no_more_is_asked_for_at_once_than_of_a_large_one() -> None:
    swarm = swarm_of(1, 2)
    small = {one.whole.digest: one for one in (item(f"{number}", PIECE_BYTES) for number in range(60))}
    me, source = swarm.regions["r0"]
    talk = Talk(me, [Want(one, swarm) for one in small.values()])
    talk.told(source, dict.fromkeys(talk.asked[source].forms, 1))
    (first,) = talk.gets
    assert len(first.parts) == Limits().first_pieces
    for part in first.parts:
        talk.wait(1.0)
        talk.take(Arrived(first.id, part.form, 0, 1, PIECE_BYTES))
    assert len(talk.gets[-1].parts) == LEAST_PIECES


@pytest.mark.parametrize("fault", ["dead", "stalling", "lying"])
def test_the_last_pieces_are_not_left_to_those_that_failed(fault: str) -> None:
    world = world_with([LARGE], swarm_of(6, 5))
    start(world, [LARGE])
    run(world)
    sound_s = _last_s(world)
    world = world_with([LARGE], swarm_of(6, 5))
    world.hosts[bringer_of(world, "r1")].break_down(fault)
    start(world, [LARGE])
    run(world)
    assert_all_have(world, [LARGE])
    assert _last_s(world) < sound_s + Limits().stall_s + 5.0


def _last_s(world: World) -> float:
    return max(host.done_s for host in world.sound() if host.done_s is not None)


def _late_after(looks: int, others: Callable[[int], int], apart_s: float = 100.0) -> list[int]:
    """What is late after so many looks, where others have so much at each. Neighbours send at once, and that is known
    from the second look on."""
    swarm = swarm_of(1, 3)
    root, me, other = swarm.ranking("r0", LARGE.whole.digest)
    form = LARGE.whole.digest
    fetch = Fetch(me)
    fetch.want([Want(LARGE, swarm)], 0.0)
    blob = fetch._wanted.open[form]
    blob.use(form)
    blob.root = root
    peers = {name: Peer(name, near=True) for name in (root, other)}
    peers[root].known[form] = 0b1111
    pace = Pace()
    late = Late(Limits(), peers, pace, Pace())
    for number in range(looks):
        peers[other].known[form] = others(number)
        late.look([blob], number * apart_s)
        pace.waited(0.1)
    return blob.late_inside


def test_late_is_what_was_the_source_s_alone_at_look_after_look() -> None:
    assert _late_after(3, lambda _: 0) == [0b1111, 0b1111, 0b1111]
    assert _late_after(3, lambda look: 0b0011 << look & 0b1111) == [0b0011, 0b0001]
    assert _late_after(2, lambda _: 0b1111) == []


def test_how_soon_the_next_look_is_follows_what_was_measured_since_the_last_one() -> None:
    assert len(_late_after(3, lambda _: 0, apart_s=1.1 * Limits().relief_s)) == 3
    assert len(_late_after(3, lambda _: 0, apart_s=0.9 * Limits().relief_s)) == 2


def test_over_a_border_nothing_is_late_as_long_as_there_is_news_of_the_blob() -> None:
    swarm = swarm_of(2, 2)
    form = LARGE.whole.digest
    me, source = swarm.ranking("r0", form)[0], swarm.ranking("r1", form)[0]
    blob = Blob(Want(LARGE, swarm), [LARGE.whole], {}, me, 0.0)
    blob.use(form)
    blob.outside = True
    blob.sources.add("r1")
    peers = {source: Peer(source, near=False)}
    peers[source].known[form] = 0b11
    late = Late(Limits(), peers, Pace(), Pace())
    for now_s in (100.0, 200.0, 300.0):
        blob.heard_s = now_s - 1.0
        late.look([blob], now_s)
        assert blob.late_outside == []
    for now_s in (400.0, 500.0):
        late.look([blob], now_s)
    assert blob.late_outside == [0b11, 0b11]


def test_only_who_has_nothing_of_a_blob_in_flight_takes_what_is_late() -> None:
    swarm = swarm_of(1, 40)
    form = LARGE.whole.digest
    root, _, _, me, *_ = swarm.ranking("r0", form)
    blob = Blob(Want(LARGE, swarm), [LARGE.whole], {}, me, 0.0)
    blob.use(form)
    blob.root = root
    picker = Picker(me, Limits())
    share = picker.share_inside(blob, form)
    blob.late_inside = [everything(256)] * 3
    with_late = picker.share_inside(blob, form)
    assert with_late & ~share
    blob.asked_for(1, 0.0, near=True)
    assert picker.share_inside(blob, form) == share
    blob.doubtful = 1
    assert picker.share_inside(blob, form) == with_late
