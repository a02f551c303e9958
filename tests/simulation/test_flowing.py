"""A peer whose bytes come is not silent, however long a piece takes; one whose bytes do not come any more is left."""

from __future__ import annotations

from cas.manifest import PIECE_BYTES
from cas.swarm.blob import Want
from cas.swarm.fetching import Fetch
from cas.swarm.limits import Limits
from cas.swarm.messages import Ask, Cancel, Flowing, Get, Request, Tick, Told
from cas.swarm.ranking import Swarm
from tests.simulation.world import item

LIMITS = Limits()
LONG_S = 4 * LIMITS.stall_s


def asked_for_pieces() -> tuple[Fetch, int]:
    """A host that waits for pieces of its only neighbour, and the number of its request."""
    one = item("module", 8 * PIECE_BYTES)
    fetch = Fetch("a1", limits=LIMITS)
    (ask,) = [
        request for request in fetch.want([Want(one, Swarm({"a": ["a1", "a2"]}))], 0.0) if isinstance(request, Ask)
    ]
    requests = fetch.take(Told(ask.id, {one.whole.digest: (1 << 8) - 1}), 0.0)
    if not any(isinstance(request, Get) for request in requests):  # once it is clear that no smaller form comes
        requests = fetch.take(Tick(), 1.0)
    (get,) = [request for request in requests if isinstance(request, Get)]
    return fetch, get.id


def wait(fetch: Fetch, get: int, since_s: int, until_s: int, *, flows: bool) -> list[Request]:
    said: list[Request] = []
    for now_s in range(since_s, until_s):
        said += fetch.take(Flowing(get) if flows and now_s % 5 == 0 else Tick(), float(now_s))
    return said


def test_a_piece_may_take_long_as_long_as_its_bytes_come() -> None:
    fetch, get = asked_for_pieces()
    assert Cancel(get) not in wait(fetch, get, 2, round(LONG_S), flows=True)


def test_a_peer_whose_bytes_end_is_left() -> None:
    fetch, get = asked_for_pieces()
    wait(fetch, get, 2, round(LONG_S), flows=True)
    assert Cancel(get) in wait(fetch, get, round(LONG_S), round(LONG_S + 2 * LIMITS.stall_s), flows=False)


def test_bytes_of_a_request_that_is_over_mean_nothing() -> None:
    fetch, get = asked_for_pieces()
    assert fetch.take(Flowing(get + 1), 2.0) == []
