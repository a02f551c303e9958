"""When a peer that was asked for pieces is left: it sends nothing, or another one would have been done long ago."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cas.swarm.in_flight import PendingGet
from cas.swarm.limits import Limits
from cas.swarm.peer import Peer

SLOWER = 4.0
"""A peer is left where another one would be so many times faster."""


def why_leave(
    get: PendingGet,
    peers: Iterable[Peer],
    limits: Limits,
    now_s: float,
    *,
    could_send: Callable[[Peer, PendingGet], bool],
) -> str | None:
    """The reason for leaving the peer of this get; None where there is none. `could_send`: whether a peer has
    something of what it was asked for."""
    silent_s = now_s - get.last_s
    if silent_s >= limits.stall_s:
        return f"sent nothing for {silent_s:.0f} s"
    if silent_s < limits.slow_s:
        return None
    rate = get.bytes / silent_s
    for peer in peers:
        if peer is get.peer or not peer.is_well(now_s) or peer.gets >= limits.gets_per_peer:
            continue
        quick = silent_s >= limits.stall_s / 2 if peer.rate is None else peer.rate > SLOWER * rate
        if quick and could_send(peer, get):
            get.peer.rate = rate
            return f"slow: less than {rate:.0f} bytes in a second"
    return None
