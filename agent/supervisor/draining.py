"""When has a guest that no longer serves finished? A decision from what the kernel says, asked again and again.

A listener that the selector left may still get connections for a moment: handshakes that were under way belong to it.
Closing it while something waits in it would reset that. So it is finished when, at least a grace period after the flip,
nobody who was in a handshake then still is, nothing waits to be accepted, and its process holds no connection of its
ports.
"""

from __future__ import annotations

from typing import Final

from agent.supervisor import sockdiag
from agent.supervisor.event_loop import Loop, Task, Wait
from agent.supervisor.group import Group
from agent.supervisor.guest_record import Guest
from agent.supervisor.listener import Listener
from agent.supervisor.notify import sockets_of

GRACE_S: Final = 0.1
FIRST_POLL_S: Final = 0.01
LAST_POLL_S: Final = 0.1


def drained(loop: Loop, guest: Guest, groups: list[Group], deadline: float) -> Task[bool]:
    """Wait until the guest has finished; False when the deadline came first."""
    poll_s = FIRST_POLL_S
    while not guest.ended and not is_finished(guest, groups, loop.clock()):
        now = loop.clock()
        if now >= deadline:
            return False
        yield Wait(min(deadline, now + poll_s), signal=guest.changed)
        poll_s = min(2 * poll_s, LAST_POLL_S)
    return True


def is_finished(guest: Guest, groups: list[Group], now: float) -> bool:
    """Can the guest end without anybody losing a connection?"""
    streams: list[Listener] = []
    for group in groups:
        listener = group.listener_of(guest.name)
        if listener is None:
            continue
        if listener.flipped_at is not None and now - listener.flipped_at < GRACE_S:
            return False
        if group.is_stream:
            streams.append(listener)
            still_open = listener.half_open and listener.half_open_peers()
            if still_open and not listener.half_open.isdisjoint(still_open):
                return False
        if listener.waiting():
            return False
    held = sockets_of(guest.pid) if streams else set()
    return not any(sockdiag.connections_of(held, one.sock.family, one.port, one.place) for one in streams)
