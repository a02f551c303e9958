"""The supervisor: the part of a host that outlives the agent, and holds what must not be lost.

One thread, one loop (`agent.supervisor.main` starts it). It is the subreaper of the zygote and of all guests.

What survives what:

- The agent dies: nothing changes here. Output is kept, ends of guests wait until an agent asks and forgets them.
- The zygote dies: another one is started; running guests do not notice.
- A guest dies: its serving listener stays open with the connections that wait in it, and goes to the next guest.
- The supervisor itself is killed: its guests go on serving what they have. The agent notices (its connection closes)
  and starts another one, which takes them over (`agent.supervisor.succession`): listeners, questions and output are
  copied out of the guests themselves. Guests that did not serve yet, or only finished what they had, are ended.
"""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from agent.api.processes import Ready
from agent.build import build
from agent.runtime import EndpointTaken, GuestFailed, GuestId, GuestOrder, GuestState, kernel_name
from agent.sandbox import linux
from agent.supervisor import orphans
from agent.supervisor.agent_link import AgentLink
from agent.supervisor.checking import Reaching
from agent.supervisor.draining import drained
from agent.supervisor.endpoints import Endpoints
from agent.supervisor.event_loop import Loop, Task, Wait
from agent.supervisor.group import Group, Moves
from agent.supervisor.guest_record import Guest
from agent.supervisor.notify import Notifications
from agent.supervisor.readiness import Step, wait_until_listening, wait_until_proven
from agent.supervisor.resizing import set_memory
from agent.supervisor.succession import NotTaken, take
from agent.supervisor.wire import (
    SOCKET_NAME,
    STATE_NAME,
    WIRE_VERSION,
    Action,
    Answer,
    Check,
    Drain,
    Exited,
    Failure,
    Flip,
    Forget,
    Hello,
    Kill,
    ListGuests,
    LivingGuest,
    Request,
    SetCpus,
    SetMemory,
    ShutDown,
    Spawn,
    WaitReady,
)
from agent.supervisor.zygote_link import ZygoteAway, ZygoteLink, ZygoteUnusable

if TYPE_CHECKING:
    from agent.supervisor.network.namespace import Namespace
    from agent.supervisor.network.networks import Networks

SPAWN_DEADLINE_S: Final = 30.0
KILL_DEADLINE_S: Final = 10.0
ZYGOTE_RETRY_S: Final = 0.02
LINK_POLL_S: Final = 0.001
MAX_GUESTS: Final = 4096
MAX_KILLED_REMEMBERED: Final = 256
MAX_AGENTS: Final = 8
"""Connections at once: an agent, the one before that is not quite gone, somebody who looks."""


class Supervisor:
    """The loop's state: agents, zygote, guests."""

    def __init__(self, state_dir: Path, loop: Loop, listener: socket.socket, log: Callable[[str], None]) -> None:
        self._state_dir = state_dir
        self._loop = loop
        self._listener = listener
        self._log = log
        self._agents: list[AgentLink] = []
        self._guests: dict[GuestId, Guest] = {}
        self._killed: collections.OrderedDict[GuestId, GuestState] = collections.OrderedDict()
        """How the last guests that were killed ended, for whoever asks a second time."""
        self._notifications: dict[GuestId, Notifications] = {}
        self._networks: Networks | None = None
        """Made with the first guest that is to have a network namespace."""
        self._block: int | None = None
        """Which block of addresses a supervisor before had."""
        self._endpoints = Endpoints(self._move)
        self._zygote = ZygoteLink(loop, dict(os.environ), log)
        self._stopping = False
        self._build = build()
        listener.setblocking(False)
        loop.watch(listener.fileno(), self._accept)

    def start(self) -> None:
        self._succeed()
        self._save()
        self._zygote.start()

    # --- the guests of a supervisor before --------------------------------------------------------------------------

    def _succeed(self) -> None:
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
        guest = self._new_guest(one.order, taken.namespace)
        self._guests[one.guest] = guest
        guest.adopt(one.pid, taken.pidfd, taken.output, one.started_unix)
        guest.limit_address = one.limit_address
        try:
            listeners = {
                endpoint: self._endpoints.adopt(guest.name, guest.order.process, endpoint, sock, namespace)
                for endpoint, (sock, namespace) in taken.listeners.items()
            }
            if taken.questions is not None:
                self._ask(guest, taken.questions).adopt(listeners, taken.datagrams)
        except (GuestFailed, OSError) as error:
            self._log(f"{one.guest} is not taken over: {error}")
            self._drop(guest)
            return False
        return True

    # --- agents -----------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            connection, _ = self._listener.accept()
            if len(self._agents) >= MAX_AGENTS:
                connection.close()
                return
            agent = AgentLink(connection, self._loop, on_request=self._request, on_close=self._agent_gone)
            self._agents.append(agent)
            agent.send(Hello(WIRE_VERSION, os.getpid(), self._build))
            for guest in self._guests.values():
                if guest.ended:
                    agent.send(Exited(self._state(guest)))

    def _agent_gone(self, agent: AgentLink) -> None:
        self._agents.remove(agent)

    def _request(self, agent: AgentLink, request: Request) -> None:
        def failed(error: Exception) -> None:
            agent.send(failure_of(request.number, error))
            if not isinstance(error, GuestFailed | ValueError):
                self._log("".join(traceback.format_exception(error)))

        try:
            answer = self._answer_now(request.number, request.action)
            if answer is not None:
                agent.send(answer)
                return
            task = self._task_of(request.number, request.action)
        except Exception as error:
            failed(error)
            return
        self._loop.start(task, done=agent.send, failed=failed)

    def _answer_now(self, number: int, action: Action) -> Answer | None:
        """Do what takes no time; None for what does."""
        match action:
            case ListGuests():
                return Answer(number, guests=tuple(self._state(guest) for guest in self._guests.values()))
            case Forget():
                self._forget(action.guest)
            case SetCpus():
                self._living(action.guest).set_cpus(action.cpus)
            case SetMemory():
                self._set_memory(self._living(action.guest), action.memory_bytes)
            case Flip():
                self._flip(action.guest)
            case ShutDown():
                self._shut_down()
            case _:
                return None
        return Answer(number)

    def _task_of(self, number: int, action: Action) -> Task[Answer]:
        match action:
            case Spawn():
                return self._spawn(number, action.order)
            case WaitReady():
                return self._wait_ready(number, action)
            case Check():
                return self._check(number, action.order, action.deadline_s)
            case Drain():
                return self._drain(number, action)
            case Kill():
                return self._kill(number, action.guest)
            case _:
                raise ValueError(f"unknown action {action!r}")

    # --- guests -----------------------------------------------------------------------------------------------------

    def _spawn(self, number: int, order: GuestOrder) -> Task[Answer]:
        self._see_that_it_may_start(order)
        self._endpoints.acquire(order.guest, order.process, order.listen.values())
        try:
            guest = yield from self._start(order, self._loop.clock() + SPAWN_DEADLINE_S)
        except (GuestFailed, OSError):
            self._endpoints.release(order.guest)
            raise
        if not guest.sandboxed:
            reason = guest.exit_reason or f"it did not start within {SPAWN_DEADLINE_S:g} s"
            self._drop(guest)
            raise GuestFailed(f"{order.process} could not be started: {reason}", state=self._state(guest))
        return Answer(number, state=self._state(guest))

    def _check(self, number: int, order: GuestOrder, deadline_s: float) -> Task[Answer]:
        """Run a check to its end. It goes with the guest that it checks, too (`_guest_ended`)."""
        self._see_that_it_may_start(order)
        checked = self._living(order.checked.guest if order.checked else "")
        deadline = self._loop.clock() + deadline_s
        guest = yield from self._start(order, deadline)
        while not guest.ended and self._loop.clock() < deadline:
            yield Wait(deadline, signal=guest.changed)
        if guest.pid:
            yield from self._end(guest)
        guest.note_exit(128 + signal.SIGKILL)
        self._drop(guest)
        if checked.ended:
            raise GuestFailed(how_it_ended(checked), state=self._state(checked))
        if guest.exit_reason and not guest.sandboxed:
            raise GuestFailed(guest.exit_reason, state=self._state(guest))
        return Answer(number, state=self._state(guest))

    def _see_that_it_may_start(self, order: GuestOrder) -> None:
        if order.guest in self._guests:
            raise GuestFailed(f"there is a guest {order.guest} already", state=self._state(self._guests[order.guest]))
        if len(self._guests) >= MAX_GUESTS:
            raise GuestFailed(f"this host has {MAX_GUESTS} guests; forget some that have ended")
        if order.code_kind == "core" and (order.listen or order.connect):
            raise GuestFailed(
                f"{order.process} is a core module, and those have no sockets: make it a component (WASI 0.2), or take "
                "its listeners and connections out of the definition"
            )

    def _start(self, order: GuestOrder, deadline: float) -> Task[Guest]:
        """Have the guest forked, and wait until its sandbox is closed or it has failed. A zygote that dies on the way
        is no reason to fail."""
        while True:
            namespace = self._namespace_for(order)
            try:
                guest = self._new_guest(order, namespace)
            except OSError:
                if namespace is not None:
                    namespace.hold().let_go()
                raise
            self._guests[order.guest] = guest
            try:
                self._zygote.fork(order, guest.far_descriptors())
            except ZygoteUnusable as error:
                guest.note_exit(1, str(error))
                return guest
            except ZygoteAway as error:
                guest.note_exit(1, str(error))
            guest.close_far_descriptors()
            while not (guest.sandboxed or guest.ended) and self._loop.clock() < deadline:
                yield Wait(deadline, signal=guest.changed)
            while guest.namespace is not None and not guest.namespace.is_up() and self._loop.clock() < deadline:
                yield Wait(self._loop.clock() + LINK_POLL_S)
            zygote_died = guest.ended and not guest.pid
            if not zygote_died or self._loop.clock() >= deadline:
                return guest
            yield Wait(self._loop.clock() + ZYGOTE_RETRY_S)

    def _new_guest(self, order: GuestOrder, namespace: Namespace | None) -> Guest:
        return Guest(order, self._loop, on_sandboxed=self._sandboxed, on_ended=self._guest_ended, namespace=namespace)

    def _sandboxed(self, guest: Guest, notifications: int | None) -> None:
        if notifications is not None:
            self._ask(guest, notifications)
        self._save()

    def _ask(self, guest: Guest, questions: int) -> Notifications:
        checked = guest.order.checked
        answers = Notifications(
            guest,
            questions,
            self._endpoints,
            on_listening=lambda: self._listening(guest),
            reaching=Reaching(self._loop, self._endpoints, guest, checked) if checked else None,
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
        self._save()
        guest.changed.notify()

    def _guest_ended(self, guest: Guest) -> None:
        self._close_notifications(guest)
        self._endpoints.retire(guest.name)
        for check in [one for one in self._guests.values() if one.checks == guest.name]:
            check.kill()
        self._save()
        if guest.sandboxed and not guest.killed and not guest.checks:
            for agent in list(self._agents):
                agent.send(Exited(self._state(guest)))

    def _wait_ready(self, number: int, action: WaitReady) -> Task[Answer]:
        guest = self._known(action.guest)
        deadline = self._loop.clock() + action.deadline_s
        problem = yield from self._prove(guest, action.ready, deadline)
        if guest.ended and not (guest.running and not guest.order.listen):
            problem = how_it_ended(guest)
        if problem:
            raise GuestFailed(f"{guest.order.process} is not ready: {problem}", state=self._state(guest))
        return Answer(number)

    def _prove(self, guest: Guest, ready: Ready | None, deadline: float) -> Step:
        while not (guest.running or guest.ended):
            if self._loop.clock() >= deadline:
                return "it did not begin to run in time"
            yield Wait(deadline, signal=guest.changed)
        groups = self._groups(guest)
        problem = yield from wait_until_listening(self._loop, guest, groups, deadline)
        if problem or ready is None or guest.ended:
            return problem
        if ready.tcp not in groups:
            return f"its definition has no listener {ready.tcp}, which readiness asks for"
        return (yield from wait_until_proven(self._loop, guest, groups[ready.tcp], ready, deadline))

    def _drain(self, number: int, action: Drain) -> Task[Answer]:
        guest = self._known(action.guest)
        groups = self._groups(guest)
        for group in groups.values():
            if group.serving is not None and group.serving.guest == guest.name:
                if action.hands_over:
                    group.keep()
                else:
                    group.turn_away(self._loop)
        deadline = self._loop.clock() + action.deadline_s
        return Answer(number, drained=(yield from drained(self._loop, guest, list(groups.values()), deadline)))

    def _flip(self, name: GuestId) -> None:
        guest = self._living(name)
        groups = self._groups(guest)
        if not all(group.is_open(name) for group in groups.values()):
            raise GuestFailed(f"{guest.order.process} does not listen yet", state=self._state(guest))
        self._save(flipping=guest)
        self._endpoints.flip(groups.values(), name)
        self._forget_what_was_killed()

    def _set_memory(self, guest: Guest, memory_bytes: int) -> None:
        set_memory(guest, memory_bytes)
        guest.order = msgspec.structs.replace(guest.order, memory_bytes=memory_bytes)
        self._save()

    def _kill(self, number: int, name: GuestId) -> Task[Answer]:
        if name in self._killed and name not in self._guests:
            return Answer(number, state=self._killed[name])
        guest = self._known(name)
        yield from self._end(guest)
        self._killed[name] = self._state(guest)
        if len(self._killed) > MAX_KILLED_REMEMBERED:
            self._killed.popitem(last=False)
        self._forget_what_was_killed()
        return Answer(number, state=self._killed[name])

    def _end(self, guest: Guest) -> Task[None]:
        """Returns when it has ended. Raises GuestFailed."""
        guest.killed = True
        guest.kill()
        deadline = self._loop.clock() + KILL_DEADLINE_S
        while not guest.ended:
            if self._loop.clock() >= deadline:
                raise GuestFailed(f"{guest.order.process} does not end (process {guest.pid})", state=self._state(guest))
            yield Wait(deadline, signal=guest.changed)

    def _forget_what_was_killed(self) -> None:
        """Guests that were ended on request, but for those whose listener still holds what the next one will get."""
        for guest in list(self._guests.values()):
            if guest.killed and guest.ended and not self._endpoints.serves(guest.name):
                self._forget(guest.name)

    def _drop(self, guest: Guest) -> None:
        """End a guest that never came to be; its process, if any, is reaped as a stranger."""
        guest.killed = True
        guest.kill()
        guest.note_exit(1, guest.exit_reason)
        self._forget(guest.name)

    def _forget(self, name: GuestId) -> None:
        guest = self._guests.get(name)
        if guest is None:
            return
        if not guest.ended:
            raise GuestFailed(f"{guest.order.process} still runs; it cannot be forgotten", state=self._state(guest))
        del self._guests[name]
        self._endpoints.release(name)

    def _known(self, name: GuestId) -> Guest:
        guest = self._guests.get(name)
        if guest is None:
            raise GuestFailed(f"there is no guest {name}")
        return guest

    def _living(self, name: GuestId) -> Guest:
        guest = self._known(name)
        if guest.ended:
            raise GuestFailed(f"{guest.order.process}: {how_it_ended(guest)}", state=self._state(guest))
        return guest

    def _state(self, guest: Guest) -> GuestState:
        groups = self._groups(guest).values()
        listening = not guest.ended and all(group.is_open(guest.name) for group in groups)
        serves = all(g.serving is not None and g.serving.guest == guest.name and not g.serving.dead for g in groups)
        serving = listening and serves and not guest.checks
        return guest.state(listening=listening, serving=serving)

    def _groups(self, guest: Guest) -> dict[str, Group]:
        """The groups of its listeners, by the listeners' names."""
        found = {name: self._endpoints.get(endpoint) for name, endpoint in guest.order.listen.items()}
        return {name: group for name, group in found.items() if group is not None}

    # --- network namespaces -----------------------------------------------------------------------------------------

    def _namespace_for(self, order: GuestOrder) -> Namespace | None:
        """A new one; for a check that of the guest that it checks. Raises GuestFailed."""
        if order.checked is not None:
            return self._living(order.checked.guest).namespace
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

    # --- processes that end -----------------------------------------------------------------------------------------

    def reap(self) -> None:
        """Collect every child that has ended. A guest's first message is read before its status is taken, so that its
        pid is known by then."""
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            pid = found.si_pid
            if not any(guest.pid == pid for guest in self._guests.values()):
                for guest in list(self._guests.values()):
                    guest.read_messages()
            status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
            if status is not None:
                self._note_exit(pid, exit_code_of(status))

    def _note_exit(self, pid: int, exit_code: int) -> None:
        if pid == self._zygote.pid:
            self._zygote.note_exit()
            return
        for guest in self._guests.values():
            if guest.pid == pid and not guest.ended:
                guest.note_exit(exit_code)
                return

    # --- the end ----------------------------------------------------------------------------------------------------

    def _shut_down(self) -> None:
        """End every guest and the zygote, then this process."""
        if self._stopping:
            return
        self._stopping = True
        for guest in self._guests.values():
            guest.killed = True
            guest.kill()
        self._zygote.stop()
        self._finish_when_empty(self._loop.clock() + KILL_DEADLINE_S)

    def _finish_when_empty(self, deadline: float) -> None:
        alive = any(not guest.ended and guest.pid for guest in self._guests.values())
        if alive and self._loop.clock() < deadline:
            self._loop.after(0.005, lambda: self._finish_when_empty(deadline))
            return
        self._endpoints.close()
        if self._networks is not None:
            self._networks.close()
        for name in (SOCKET_NAME, STATE_NAME):
            (self._state_dir / name).unlink(missing_ok=True)
        self._loop.stop()

    def _save(self, *, flipping: Guest | None = None) -> None:
        """Best effort: a full disk must not cost a guest its supervisor. What is written next is complete again. A flip
        is written before it is done: that guest has been proven, and the one before may be ended."""
        living = [self._saved(guest, flipping) for guest in self._guests.values() if guest.pid and not guest.ended]
        try:
            block = self._networks.block if self._networks is not None else None
            orphans.save(self._state_dir / STATE_NAME, [one for one in living if one.start_ticks], block)
        except OSError as error:
            self._log(f"{STATE_NAME} is out of date: {error}")

    def _saved(self, guest: Guest, flipping: Guest | None) -> LivingGuest:
        serving = self._state(guest).serving and guest.sandboxed
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


def how_it_ended(guest: Guest) -> str:
    """A sentence about it."""
    reason = f": {guest.exit_reason}" if guest.exit_reason else ""
    refused = f"; {guest.refusals[-1]}" if guest.refusals else ""
    return f"it exited with code {guest.exit_code}{reason}{refused}"


def exit_code_of(status: os.waitid_result) -> int:
    """What a shell would say: the code, or 128 + the signal."""
    return status.si_status if status.si_code == os.CLD_EXITED else 128 + status.si_status


def failure_of(number: int, error: Exception) -> Failure:
    match error:
        case EndpointTaken():
            return Failure(number, "endpoint-taken", str(error), error.state)
        case GuestFailed():
            return Failure(number, "guest-failed", str(error), error.state)
        case _:
            return Failure(number, "internal", f"{type(error).__name__}: {error}")
