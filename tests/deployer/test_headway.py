"""What a host that fetches is believed of how far it has come."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deployer.applying.headway import LEAST_BYTES, STUCK_S, TIMES, Headway, Line

MB = 1_000_000
ASKED_EVERY_S = 5.0


def test_who_receives_something_in_time_gets_on_however_slowly() -> None:
    headway = Headway(1, MB, 0.0)
    for look in range(1, MB // LEAST_BYTES + 1):
        now_s = look * STUCK_S
        headway.told(0, look * LEAST_BYTES, 0, now_s)
        assert not headway.is_stuck(now_s + STUCK_S)
        assert headway.is_stuck(now_s + STUCK_S + 1)


def test_blobs_that_become_whole_and_what_the_region_is_sent_are_headway() -> None:
    headway = Headway(2, MB, 0.0)
    headway.told(1, 0, 0, STUCK_S)
    headway.told(1, 0, 7, 2 * STUCK_S)
    assert not headway.is_stuck(3 * STUCK_S)


def test_a_try_that_begins_anew_gets_on_too() -> None:
    headway = Headway(1, 10 * MB, 0.0)
    headway.told(0, 5 * MB, 0, 1.0)
    headway.told(0, MB, 0, STUCK_S)
    assert not headway.is_stuck(STUCK_S + 2)


def test_what_has_to_wait_for_other_blobs_of_the_same_host_is_not_stuck() -> None:
    line = Line()
    small, large = line.begin(1, LEAST_BYTES // 2, 0.0), line.begin(1, MB, 0.0)
    small.told(0, LEAST_BYTES // 4, 0, STUCK_S)
    large.told(0, LEAST_BYTES, 0, STUCK_S)
    assert small.is_stuck(2 * STUCK_S)
    assert not line.is_stuck(2 * STUCK_S)
    assert line.is_stuck(2 * STUCK_S + 1)


@given(st.lists(st.tuples(st.integers(), st.integers()), min_size=1, max_size=50))
def test_whatever_a_host_says_it_is_stuck_in_the_end(said: list[tuple[int, int]]) -> None:
    blobs, size_bytes = 3, 10 * LEAST_BYTES
    most = 1 + blobs + TIMES * size_bytes // LEAST_BYTES
    headway, now_s, moved = Headway(blobs, size_bytes, 0.0), 0.0, 0
    for told in said * (2 * most):
        now_s += STUCK_S + 1
        headway.told(*told, 0, now_s)
        moved += not headway.is_stuck(now_s)
    assert moved <= most
