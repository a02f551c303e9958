"""The guests that the supervisor keeps: what each of them has, when it is forgotten, and what a successor knows of it.

A guest has its listeners in the groups of its endpoints, perhaps a network namespace, and the answers to its system
calls. When it has ended it stays, with the connections that wait in its serving listeners: until an agent forgets it,
or, where one has had it killed, until these listeners are another guest's or nobody's.

The state file names the guests that live, each with its order, and says which of them serve. It is written whenever
that changes. A supervisor that starts takes over those that serve by it, and ends the others.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent.runtime import GuestFailed, GuestId, GuestOrder, GuestState, kernel_name
from agent.sandbox import linux
from agent.supervisor import orphans
from agent.supervisor.checking import Reaching
from agent.supervisor.endpoints import Endpoints
from agent.supervisor.event_loop import Loop, Task, Wait
from agent.supervisor.group import Group, Moves
from agent.supervisor.guest_record import Guest
from agent.supervisor.notify import Notifications
from agent.supervisor.succession import NotTaken, take
from agent.supervisor.wire import STATE_NAME, LivingGuest

if TYPE_CHECKING:
    from agent.supervisor.network.namespace import Namespace
    from agent.supervisor.network.networks import Networks

KILL_DEADLINE_S: Final = 10.0
MAX_KILLED_REMEMBERED: Final = 256


class Guests:
    """See the module's head. `on_exited` is told of ends that nobody asked for."""

    def __init__(
        self, state_dir: Path, loop: Loop, log: Callable[[str], None], on_exited: Callable[[GuestState], None]
    ) -> None:
        self._state_dir = state_dir
        self._loop = loop
        self._log = log
        self._on_exited = on_exited
        self._guests: dict[GuestId, Guest] = {}
        self._killed: collections.OrderedDict[GuestId, GuestState] = collections.OrderedDict()
        """How the last guests that were killed ended, for whoever asks a second time."""
        self._notifications: dict[GuestId, Notifications] = {}
        self._networks: Networks | None = None
        """Made with the first guest that is to have a network namespace."""
        self._block: int | None = None
        """Which block of addresses a supervisor before had."""
        self.endpoints = Endpoints(self._move)

    def __len__(self) -> int:
        return len(self._guests)

    def __iter__(self) -> Iterator[Guest]:
        """Those that are here now, whatever becomes of them meanwhile."""
        return iter(list(self._guests.values()))

    def get(self, name: GuestId) -> Guest | None:
        return self._guests.get(name)

    def known(self, name: GuestId) -> Guest:
        """Raises GuestFailed where there is none."""
        guest = self._guests.get(name)
        if guest is None:
            raise GuestFailed(f"there is no guest {name}")
        return guest

    def living(self, name: GuestId) -> Guest:
        """Raises GuestFailed where there is none, or it has ended."""
        guest = self.known(name)
        if guest.ended:
            raise GuestFailed(f"{guest.order.process}: {guest.how_it_ended()}", state=self.state(guest))
        return guest

    def state(self, guest: Guest) -> GuestState:
        groups = self.groups(guest).values()
        listening = not guest.ended and all(group.is_open(guest.name) for group in groups)
        serves = all(g.serving is not None and g.serving.guest == guest.name and not g.serving.dead for g in groups)
        serving = listening and serves and not guest.checks
        return guest.state(listening=listening, serving=serving)

    def groups(self, guest: Guest) -> dict[str, Group]:
        """The groups of its listeners, by the listeners' names."""
        found = {name: self.endpoints.get(endpoint) for name, endpoint in guest.order.listen.items()}
        return {name: group for name, group in found.items() if group is not None}

    # --- one begins -------------------------------------------------------------------------------------------------

    def new(self, order: GuestOrder) -> Guest:
        """One that is to be forked, with its network namespace if it has one. Raises GuestFailed, OSError."""
        namespace = self._namespace_for(order)
        try:
            return self._add(order, namespace)
        except OSError:
            if namespace is not None:
                namespace.hold().let_go()
            raise

    def _add(self, order: GuestOrder, namespace: Namespace | None) -> Guest:
        guest = Guest(order, self._loop, on_sandboxed=self._sandboxed, on_ended=self._ended, namespace=namespace)
        self._guests[order.guest] = guest
        return guest

    def _namespace_for(self, order: GuestOrder) -> Namespace | None:
        """A new one; for a check that of the guest that it checks. Raises GuestFailed."""
        if order.checked is not None:
            return self.living(order.checked.guest).namespace
        return self._network().make(order) if order.network == "namespace" else None

    def _network(self) -> Networks:
        """Loaded only where a guest is to have a namespace: other hosts pay nothing for it."""
        if self._networks is None:
            from agent.supervisor.network.networks import Networks

            self._networks = Networks(kernel_name(self._state_dir), self._loop, self._log, self._block)
        return self._networks

    def _move(self, changes: Moves) -> None:
        if self._networks is not None:
            self._networks.move(changes)

    def _sandboxed(self, guest: Guest, notifications: int | None) -> None:
        if notifications is not None:
            self._ask(guest, notifications)
        self.save()

    def _ask(self, guest: Guest, questions: int) -> Notifications:
        checked = guest.order.checked
        answers = Notifications(
            guest,
            questions,
            self.endpoints,
            on_listening=lambda: self._listening(guest),
            reaching=Reaching(self._loop, self.endpoints, guest, checked) if checked else None,
        )
        self._notifications[guest.name] = answers
        self._loop.watch(questions, lambda: self._answer(guest))
        return answers

    def _answer(self, guest: Guest) -> None:
        """One question per turn, so that a guest that asks without end is in nobody's way."""
        answers = self._notifications.get(guest.name)
        if answers is not None and not answers.answer_one():
            self._close_notifications(guest)

    def _close_notifications(self, guest: Guest) -> None:
        answers = self._notifications.pop(guest.name, None)
        if answers is not None:
            self._loop.unwatch(answers.descriptor)
            answers.close()

    def _listening(self, guest: Guest) -> None:
        """It has opened a listener, perhaps that of a guest that ended and is not needed any more now."""
        self._forget_what_was_killed()
        self.save()
        guest.changed.notify()

    def flip(self, name: GuestId) -> None:
        """It gets what is new from here on, at all its endpoints. Raises GuestFailed, OSError."""
        guest = self.living(name)
        groups = self.groups(guest)
        if not all(group.is_open(name) for group in groups.values()):
            raise GuestFailed(f"{guest.order.process} does not listen yet", state=self.state(guest))
        self.save(flipping=guest)
        self.endpoints.flip(groups.values(), name)
        self._forget_what_was_killed()

    # --- one ends ---------------------------------------------------------------------------------------------------

    def _ended(self, guest: Guest) -> None:
        self._close_notifications(guest)
        self.endpoints.retire(guest.name)
        for check in [one for one in self._guests.values() if one.checks == guest.name]:
            check.kill()
        self.save()
        if guest.sandboxed and not guest.killed and not guest.checks:
            self._on_exited(self.state(guest))

    def kill(self, name: GuestId) -> Task[GuestState]:
        """How it ended, also for who asks again. Raises GuestFailed."""
        if name in self._killed and name not in self._guests:
            return self._killed[name]
        guest = self.known(name)
        yield from self.end(guest)
        self._killed[name] = self.state(guest)
        if len(self._killed) > MAX_KILLED_REMEMBERED:
            self._killed.popitem(last=False)
        self._forget_what_was_killed()
        return self._killed[name]

    def end(self, guest: Guest) -> Task[None]:
        """Returns when it has ended. Raises GuestFailed."""
        guest.killed = True
        guest.kill()
        deadline = self._loop.clock() + KILL_DEADLINE_S
        while not guest.ended:
            if self._loop.clock() >= deadline:
                raise GuestFailed(f"{guest.order.process} does not end (process {guest.pid})", state=self.state(guest))
            yield Wait(deadline, signal=guest.changed)

    def drop(self, guest: Guest) -> None:
        """End a guest that never came to be; its process, if any, is reaped as a stranger."""
        guest.killed = True
        guest.kill()
        guest.note_exit(1, guest.exit_reason)
        self.forget(guest.name)

    def forget(self, name: GuestId) -> None:
        """Raises GuestFailed where it still runs."""
        guest = self._guests.get(name)
        if guest is None:
            return
        if not guest.ended:
            raise GuestFailed(f"{guest.order.process} still runs; it cannot be forgotten", state=self.state(guest))
        del self._guests[name]
        self.endpoints.release(name)

    def _forget_what_was_killed(self) -> None:
        """Guests that were ended on request, but for those whose listener still holds what the next one will get."""
        for guest in list(self._guests.values()):
            if guest.killed and guest.ended and not self.endpoints.serves(guest.name):
                self.forget(guest.name)

    def close(self) -> None:
        """Nobody needs anything of them any more."""
        self.endpoints.close()
        if self._networks is not None:
            self._networks.close()

    # --- the state file ---------------------------------------------------------------------------------------------

    def save(self, *, flipping: Guest | None = None) -> None:
        """Best effort: a full disk must not cost a guest its supervisor. What is written next is complete again. A flip
        is written before it is done: that guest has been proven, and the one before may be ended."""
        living = [self._saved(guest, flipping) for guest in self._guests.values() if guest.pid and not guest.ended]
        try:
            block = self._networks.block if self._networks is not None else None
            orphans.save(self._state_dir / STATE_NAME, [one for one in living if one.start_ticks], block)
        except OSError as error:
            self._log(f"{STATE_NAME} is out of date: {error}")

    def _saved(self, guest: Guest, flipping: Guest | None) -> LivingGuest:
        serving = self.state(guest).serving and guest.sandboxed
        if flipping is not None and flipping.order.process == guest.order.process:
            serving = guest is flipping
        return LivingGuest(
            guest=guest.name,
            pid=guest.pid,
            start_ticks=linux.process_start_ticks(guest.pid) or 0,
            order=guest.order,
            started_unix=guest.started_unix,
            serving=serving and not guest.killed,
            limit_address=guest.limit_address,
        )

    def take_over(self) -> None:
        """Take over the guests that serve, and end the others: what they were to become, the agent begins anew."""
        before = orphans.load(self._state_dir / STATE_NAME)
        left, self._block = before.living, before.block
        for one in left:
            if not one.serving:
                orphans.end(one)
        with self._network().at_once() if self._block is not None else contextlib.nullcontext():
            for one in left:
                if one.serving and not self._adopt(one):
                    orphans.end(one)
        if self._networks is not None:
            self._networks.sweep()
        if left:
            self._log(f"took {len(self._guests)} of {len(left)} guests over from the supervisor before")

    def _adopt(self, one: LivingGuest) -> bool:
        if one.order is None:
            return False
        try:
            taken = take(one.order, one.pid, one.start_ticks, self._networks)
        except (NotTaken, OSError) as error:
            self._log(f"{one.guest} is not taken over: {error}")
            return False
        try:
            guest = self._add(one.order, taken.namespace)
        except OSError as error:
            taken.close()
            self._log(f"{one.guest} is not taken over: {error}")
            return False
        guest.adopt(one.pid, taken.pidfd, taken.output, one.started_unix)
        guest.limit_address = one.limit_address
        try:
            listeners = {
                endpoint: self.endpoints.adopt(guest.name, guest.order.process, endpoint, sock, namespace)
                for endpoint, (sock, namespace) in taken.listeners.items()
            }
            if taken.questions is not None:
                self._ask(guest, taken.questions).adopt(listeners, taken.datagrams)
        except (GuestFailed, OSError) as error:
            self._log(f"{one.guest} is not taken over: {error}")
            self.drop(guest)
            return False
        return True
