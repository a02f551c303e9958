"""When a host that brings blobs into its region is replaced: by what it has acknowledged."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deployer.applying.slowness import BEARABLE_S, JUDGED_AFTER_S, LOOK_S, SLOWER, Pace

MB = 1_000_000
KB = 1_000
LONG_S = 30.0


def looked_at(bytes_s: float, until_s: float, *, before: int = 0) -> Pace:
    """A host that takes so much in a second."""
    pace = Pace()
    for look in range(round(until_s / LOOK_S) + 1):
        pace.arrived(before + round(bytes_s * look * LOOK_S), look * LOOK_S)
    return pace


def test_a_host_that_takes_a_hundredth_of_what_others_take_is_replaced_once_it_can_be_judged() -> None:
    assert not looked_at(25 * KB, JUDGED_AFTER_S - LOOK_S).is_behind(3 * MB, [2.5 * MB])
    assert looked_at(25 * KB, JUDGED_AFTER_S).is_behind(3 * MB, [2.5 * MB])


def test_who_has_the_rest_soon_goes_on_however_fast_others_are() -> None:
    rate = 100 * KB
    left = round(rate * BEARABLE_S)
    sent = round(rate * JUDGED_AFTER_S)
    assert not looked_at(rate, JUDGED_AFTER_S).is_behind(sent + left - KB, [1000 * MB])
    assert looked_at(rate, JUDGED_AFTER_S).is_behind(sent + left + KB, [1000 * MB])


def test_where_all_are_slow_nobody_is_replaced() -> None:
    assert not looked_at(25 * KB, LONG_S).is_behind(1000 * MB, [25 * KB, 25 * KB * (SLOWER - 1)])


def test_who_has_its_share_of_a_border_that_others_use_too_goes_on_also_when_it_has_little_at_times() -> None:
    near_by = [20 * MB]
    others = [looked_at(share, LONG_S) for share in (900 * KB, 600 * KB, 400 * KB)]
    pace = looked_at(600 * KB, LONG_S - 2)
    for look in range(1, 21):
        pace.arrived(round(600 * KB * (LONG_S - 2)) + 10 * KB * look, LONG_S - 2 + look * LOOK_S)
    assert pace.is_behind(1000 * MB, near_by)
    assert not pace.is_behind(1000 * MB, near_by, others)
    assert looked_at(6 * KB, LONG_S).is_behind(1000 * MB, near_by, others)


def test_where_nobody_else_brings_anything_a_slow_one_is_tried_against_the_next() -> None:
    assert looked_at(25 * KB, LONG_S).is_behind(1000 * MB, [])


def test_a_host_that_takes_nothing_at_all_is_not_slow_but_cut_off_or_dead() -> None:
    assert not looked_at(0, LONG_S).is_behind(1000 * MB, [MB])


def test_a_border_that_is_cut_and_heals_makes_nobody_slow() -> None:
    pace, now_s, taken = looked_at(2 * MB, 5.0), 5.0, 10 * MB
    while now_s < 15.0:
        now_s += LOOK_S
        pace.arrived(taken, now_s)
        assert not pace.is_behind(1000 * MB, [MB])
    while now_s < 15.0 + JUDGED_AFTER_S:  # it begins slowly again
        now_s += LOOK_S
        taken += KB
        pace.arrived(taken, now_s)
        assert not pace.is_behind(1000 * MB, [MB])
    for _ in range(2):
        now_s += LOOK_S
        taken += KB
        pace.arrived(taken, now_s)
    assert pace.is_behind(1000 * MB, [MB])


def test_a_host_whose_packets_come_seconds_apart_is_slow_all_the_same() -> None:
    """So a line of 20 kbit/s looks that is sent 14 KB at once: what is lost is sent again after up to 4 s."""
    pace, moves = Pace(), (0.1, 0.3, 0.9, 4.8)
    for look in range(50):
        now_s = look * LOOK_S
        pace.arrived(1500 * sum(at_s <= now_s for at_s in moves), now_s)
        if pace.is_behind(3 * MB, [250 * KB]):
            break
    assert JUDGED_AFTER_S - LOOK_S < now_s < 2 * JUDGED_AFTER_S


def test_a_lull_makes_nobody_slow() -> None:
    pace, now_s = looked_at(250 * KB, 2.0), 2.0
    while now_s < 5.5:
        now_s += LOOK_S
        pace.arrived(500 * KB, now_s)
        assert not pace.is_behind(3 * MB, [250 * KB])
    for look in range(1, 30):
        pace.arrived(500 * KB + 25 * KB * look, now_s + look * LOOK_S)
        assert not pace.is_behind(3 * MB, [250 * KB])


def test_a_connection_that_ends_beside_the_one_that_brings_makes_nobody_slow() -> None:
    pace = looked_at(2 * MB, 5.0, before=MB)
    for look in range(1, 20):
        pace.arrived(round(2 * MB * (5.0 + look * LOOK_S)), 5.0 + look * LOOK_S)
        assert not pace.is_behind(1000 * MB, [5 * MB])
    assert 13 * MB < pace.bytes < 14 * MB


@given(st.integers(0, 1 << 40))
def test_what_was_sent_before_does_not_count(before: int) -> None:
    pace = looked_at(25 * KB, LONG_S, before=before)
    assert pace.bytes == round(25 * KB * LONG_S)
    assert abs(pace.best_bytes_s - 25 * KB) < 2
