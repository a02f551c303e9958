"""How a guest begins: the zygote forks it, and its sandbox is closed before anything of its program runs.

A zygote that dies on the way takes an order along that it had not carried out; the order is given again to the next.
"""

from __future__ import annotations

from typing import Final

from agent.runtime import GuestFailed, GuestOrder
from agent.supervisor.event_loop import Loop, Task, Wait
from agent.supervisor.guest_record import Guest
from agent.supervisor.guests import Guests
from agent.supervisor.zygote_link import ZygoteAway, ZygoteLink, ZygoteUnusable

ZYGOTE_RETRY_S: Final = 0.02
LINK_POLL_S: Final = 0.001
MAX_GUESTS: Final = 4096


def see_that_it_may_start(guests: Guests, order: GuestOrder) -> None:
    """Before anything is done for the order. Raises GuestFailed where it may not."""
    there = guests.get(order.guest)
    if there is not None:
        raise GuestFailed(f"there is a guest {order.guest} already", state=guests.state(there))
    if len(guests) >= MAX_GUESTS:
        raise GuestFailed(f"this host has {MAX_GUESTS} guests; forget some that have ended")
    if order.code_kind == "core" and (order.listen or order.connect):
        raise GuestFailed(
            f"{order.process} is a core module, and those have no sockets: make it a component (WASI 0.2), or take "
            "its listeners and connections out of the definition"
        )


def started(loop: Loop, guests: Guests, zygote: ZygoteLink, order: GuestOrder, deadline: float) -> Task[Guest]:
    """Have the guest forked, and wait until its sandbox is closed or it has failed, or for the deadline. A zygote that
    dies on the way is no reason to fail. Raises GuestFailed, OSError."""
    while True:
        guest = guests.new(order)
        try:
            zygote.fork(order, guest.far_descriptors())
        except ZygoteUnusable as error:
            guest.note_exit(1, str(error))
            return guest
        except ZygoteAway as error:
            guest.note_exit(1, str(error))
        guest.close_far_descriptors()
        while not (guest.sandboxed or guest.ended) and loop.clock() < deadline:
            yield Wait(deadline, signal=guest.changed)
        while guest.namespace is not None and not guest.namespace.is_up() and loop.clock() < deadline:
            yield Wait(loop.clock() + LINK_POLL_S)
        zygote_died = guest.ended and not guest.pid
        if not zygote_died or loop.clock() >= deadline:
            return guest
        yield Wait(loop.clock() + ZYGOTE_RETRY_S)
