"""A host whose own line is a hundred times thinner than all others' gets everything, and does not fill it with talk."""

from __future__ import annotations

from cas.manifest import PIECE_BYTES
from cas.swarm.blob import Want
from cas.swarm.limits import Limits
from cas.swarm.messages import Arrived, Busy, Failed, Flowing, Get, everything
from tests.simulation.test_fetching import MB, swarm_of
from tests.simulation.test_large_regions import Talk
from tests.simulation.world import item

LIMITS = Limits()
MODULE = item("module", 4 * MB)
FORM = MODULE.whole.digest
ALL = {FORM: everything(16)}
SWARM = swarm_of(2, 4)
ME, *NEAR = SWARM.ranking("r0", FORM)
"""This host is to bring the module in."""
FAR = SWARM.regions["r1"]


def module(swarm_size: int = 4) -> list[Want]:
    return [Want(MODULE, swarm_of(2, swarm_size))]


def test_who_is_to_bring_a_blob_in_asks_no_other_region_once_its_own_has_it() -> None:
    talk = Talk(ME, module())
    talk.told(NEAR[0], ALL)
    talk.wait(LIMITS.tick_s)
    for host in [host for host in FAR if host in talk.asked]:
        talk.take(Failed(talk.asked.pop(host).id, "no connection"))
    talk.wait(8 * LIMITS.relief_s)  # They may be asked again, and nothing has come for so long.
    assert not [host for host in FAR if host in talk.asked]
    talk.wait(LIMITS.stall_s)  # Who has it owes what was asked for, and is believed no more.
    assert [host for host in FAR if host in talk.asked]


def test_nothing_is_asked_of_other_regions_as_long_as_that_is_said() -> None:
    talk = Talk(ME, [])
    talk.fetch.stay_inside(True, 0.0)
    talk._take(talk.fetch.want(module(), 0.0))
    talk.wait(5.0)
    assert {*talk.asked} == {*NEAR}
    talk.fetch.stay_inside(False, talk.now_s)
    talk.wait(LIMITS.tick_s)
    assert [host for host in FAR if host in talk.asked]


def test_who_is_not_to_bring_it_in_waits_for_that_from_when_it_may_ask_outside() -> None:
    talk = Talk(NEAR[0], [])
    talk.fetch.stay_inside(True, 0.0)
    talk._take(talk.fetch.want(module(), 0.0))

    def wait(seconds: float) -> list[str]:
        """Who is asked outside; neighbours have no news."""
        until_s = talk.now_s + seconds
        while talk.now_s < until_s:
            for host in [host for host in [*NEAR, ME] if host in talk.asked]:
                talk.told(host, {})
            talk.wait(1.0)
        return [host for host in FAR if host in talk.asked]

    assert not wait(4 * LIMITS.takeover_s)
    talk.fetch.stay_inside(False, talk.now_s)
    assert not wait(LIMITS.takeover_s - 1.0)
    assert wait(2.0)


def test_whom_nobody_answers_asks_fewer_at_a_time_and_more_again_once_somebody_does() -> None:
    me = swarm_of(2, 40).ranking("r0", FORM)[7]
    talk = Talk(me, module(40))
    near = {host for host in talk.asked if host in swarm_of(2, 40).regions["r0"]}
    assert len(near) >= LIMITS.neighbours
    talk.now_s = 10.0
    asks, talk.asked = list(talk.asked.values()), {}
    for ask in asks:
        talk.take(Failed(ask.id, "timed out"))
    for ask in list(talk.asked.values()):
        talk.take(Failed(talk.asked.pop(ask.peer).id, "timed out"))
    talk.wait(LIMITS.tick_s)
    counts = [len(talk.asked)]
    for _ in range(3):
        talk.told(next(iter(talk.asked)), {})
        talk.wait(4 * LIMITS.tick_s)
        counts.append(len(talk.asked))
    assert counts[0] <= 2  # one, and the bringer of the region
    assert counts == sorted({*counts})
    assert counts[-1] >= 8


def test_where_others_answer_a_dead_host_makes_nobody_ask_fewer() -> None:
    me = swarm_of(2, 40).ranking("r0", FORM)[7]
    talk = Talk(me, module(40))
    first = list(talk.asked)
    talk.now_s = 3.0
    talk.told(first[0], {})
    for host in first[1:]:
        talk.take(Failed(talk.asked.pop(host).id, "no connection"))
    talk.wait(4 * LIMITS.tick_s)
    assert len({*talk.asked} - {*first}) >= LIMITS.neighbours - 1


def test_who_sends_pieces_and_does_not_answer_a_question_is_not_left_and_asked_nothing_meanwhile() -> None:
    talk = Talk(ME, module())
    talk.told(NEAR[0], {FORM: 1})
    (get,) = talk.gets
    talk.wait(LIMITS.tick_s)
    question = talk.asked.pop(NEAR[0])
    talk.wait(5.0)
    talk.take(Flowing(get.id))
    talk.take(Failed(question.id, "did not answer"))
    assert not any(source.failures for source in talk.fetch.sources())
    talk.wait(5.0)
    assert NEAR[0] not in talk.asked
    talk.take(Arrived(get.id, FORM, 0, 1, PIECE_BYTES))
    talk.wait(LIMITS.tick_s)
    assert NEAR[0] in talk.asked


def test_who_is_too_busy_for_a_question_while_it_sends_is_asked_nothing_before_its_pieces_have_come() -> None:
    talk = Talk(ME, module())
    talk.told(NEAR[0], {FORM: 1})
    (get,) = talk.gets
    talk.wait(LIMITS.tick_s)
    talk.take(Busy(talk.asked.pop(NEAR[0]).id, 0.5))
    talk.wait(5.0)
    assert NEAR[0] not in talk.asked
    talk.take(Arrived(get.id, FORM, 0, 1, PIECE_BYTES))
    talk.wait(LIMITS.tick_s)
    assert NEAR[0] in talk.asked


def _starving() -> tuple[Talk, Get, Get]:
    """Two neighbours have been asked for pieces; bytes come of the first only."""
    talk = Talk(ME, module())
    talk.told(NEAR[0], ALL)
    talk.told(NEAR[1], ALL)
    flowing, starved = talk.gets
    while talk.now_s < LIMITS.stall_s + 2.0:
        for host in list(talk.asked):
            talk.told(host, {})
        talk.wait(2.0)
        talk.take(Flowing(flowing.id))
    return talk, flowing, starved


def test_an_answer_that_others_starve_is_waited_for_and_no_further_one_is_asked_for() -> None:
    talk, flowing, _ = _starving()
    assert not any(source.failures or source.reason for source in talk.fetch.sources())
    talk.told(NEAR[2], ALL)
    assert len(talk.gets) == 2
    part = flowing.parts[0]
    talk.take(Arrived(flowing.id, FORM, part.first, 1, PIECE_BYTES))
    assert len(talk.gets) == 2
    talk.take(Arrived(flowing.id, FORM, part.first + 1, 1, PIECE_BYTES))
    assert len(talk.gets) > 2


def test_in_place_of_an_answer_that_is_over_one_is_asked_for_although_a_starved_one_does_not_come_again() -> None:
    talk, flowing, _ = _starving()
    (part,) = flowing.parts
    for index in range(part.first, part.first + part.count):
        for _ in range(4):
            for host in list(talk.asked):
                talk.told(host, {})
            talk.wait(5.0)
            talk.take(Flowing(flowing.id))
        assert len(talk.gets) == 2
        talk.take(Arrived(flowing.id, FORM, index, 1, PIECE_BYTES))
    assert len(talk.gets) == 3


def test_who_stays_silent_once_the_line_has_room_for_it_is_left() -> None:
    talk, flowing, starved = _starving()
    for part in flowing.parts:
        talk.take(Arrived(flowing.id, FORM, part.first, part.count, part.count * PIECE_BYTES))
    room_s = talk.now_s
    while not any(source.failures for source in talk.fetch.sources() if source.peer == starved.peer):
        for get in talk.gets[2:]:
            talk.take(Arrived(get.id, FORM, get.parts[0].first, get.parts[0].count, PIECE_BYTES))
        talk.wait(LIMITS.tick_s)
    assert LIMITS.starved_s - LIMITS.tick_s <= talk.now_s - room_s <= LIMITS.starved_s + LIMITS.tick_s


def test_where_nothing_comes_of_anybody_silence_is_silence() -> None:
    talk = Talk(ME, module())
    talk.told(NEAR[0], ALL)
    talk.told(NEAR[1], ALL)
    talk.wait(LIMITS.stall_s + LIMITS.tick_s)
    assert {source.peer for source in talk.fetch.sources() if source.failures} >= {NEAR[0], NEAR[1]}


def test_a_blob_whose_pieces_take_minutes_is_not_given_up_as_long_as_bytes_come() -> None:
    talk = Talk(ME, module())
    talk.told(NEAR[0], ALL)
    (get,) = talk.gets
    while talk.now_s < 2 * LIMITS.patience_s:
        for host in list(talk.asked):
            talk.told(host, ALL if host == NEAR[0] else {})
        talk.wait(5.0)
        talk.take(Flowing(get.id))
    assert talk.fetch.wanted == {MODULE.whole.digest}
    talk.wait(2 * LIMITS.patience_s)
    assert not talk.fetch.wanted
