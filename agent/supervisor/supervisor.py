"""The supervisor: the part of a host that outlives the agent, and holds what must not be lost.

One thread, one loop (`agent.supervisor.main` starts it). It is the subreaper of the zygote and of all guests.

What survives what:

- The agent dies: nothing changes here. Output is kept, ends of guests wait until an agent asks and forgets them.
- The zygote dies: another one is started; running guests do not notice.
- A guest dies: its serving listener stays open with the connections that wait in it, and goes to the next guest.
- The supervisor itself is killed: its guests go on serving what they have. The agent notices (its connection closes)
  and starts another one, which takes them over (`agent.supervisor.succession`): listeners, questions and output are
  copied out of the guests themselves. Guests that did not serve yet, or only finished what they had, are ended.

Here requests of agents are answered, and children that have ended are collected. What is kept of guests, and until
when, is in `agent.supervisor.guests`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from agent.api.processes import Ready
from agent.build import build
from agent.runtime import EndpointTaken, GuestFailed, GuestId, GuestOrder, GuestState
from agent.supervisor.agent_link import AgentLink
from agent.supervisor.draining import drained
from agent.supervisor.event_loop import Loop, Task, Wait
from agent.supervisor.guest_record import Guest
from agent.supervisor.guests import KILL_DEADLINE_S, Guests
from agent.supervisor.readiness import Step, wait_until_listening, wait_until_proven
from agent.supervisor.resizing import set_memory
from agent.supervisor.starting import see_that_it_may_start, started
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
    Request,
    SetCpus,
    SetMemory,
    ShutDown,
    Spawn,
    WaitReady,
)
from agent.supervisor.zygote_link import ZygoteLink

SPAWN_DEADLINE_S: Final = 30.0
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
        self._guests = Guests(state_dir, loop, log, self._guest_exited)
        self._zygote = ZygoteLink(loop, dict(os.environ), log)
        self._stopping = False
        self._build = build()
        listener.setblocking(False)
        loop.watch(listener.fileno(), self._accept)

    def start(self) -> None:
        self._guests.take_over()
        self._guests.save()
        self._zygote.start()

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
            for guest in self._guests:
                if guest.ended:
                    agent.send(Exited(self._guests.state(guest)))

    def _agent_gone(self, agent: AgentLink) -> None:
        self._agents.remove(agent)

    def _guest_exited(self, state: GuestState) -> None:
        for agent in list(self._agents):
            agent.send(Exited(state))

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
                return Answer(number, guests=tuple(self._guests.state(guest) for guest in self._guests))
            case Forget():
                self._guests.forget(action.guest)
            case SetCpus():
                self._guests.living(action.guest).set_cpus(action.cpus)
            case SetMemory():
                self._set_memory(self._guests.living(action.guest), action.memory_bytes)
            case Flip():
                self._guests.flip(action.guest)
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

    # --- requests ---------------------------------------------------------------------------------------------------

    def _spawn(self, number: int, order: GuestOrder) -> Task[Answer]:
        see_that_it_may_start(self._guests, order)
        self._guests.endpoints.acquire(order.guest, order.process, order.listen.values())
        try:
            deadline = self._loop.clock() + SPAWN_DEADLINE_S
            guest = yield from started(self._loop, self._guests, self._zygote, order, deadline)
        except (GuestFailed, OSError):
            self._guests.endpoints.release(order.guest)
            raise
        if not guest.sandboxed:
            reason = guest.exit_reason or f"it did not start within {SPAWN_DEADLINE_S:g} s"
            self._guests.drop(guest)
            raise GuestFailed(f"{order.process} could not be started: {reason}", state=self._guests.state(guest))
        return Answer(number, state=self._guests.state(guest))

    def _check(self, number: int, order: GuestOrder, deadline_s: float) -> Task[Answer]:
        """Run a check to its end. It goes with the guest that it checks, too (`Guests` sees to that)."""
        see_that_it_may_start(self._guests, order)
        checked = self._guests.living(order.checked.guest if order.checked else "")
        deadline = self._loop.clock() + deadline_s
        guest = yield from started(self._loop, self._guests, self._zygote, order, deadline)
        while not guest.ended and self._loop.clock() < deadline:
            yield Wait(deadline, signal=guest.changed)
        if guest.pid:
            yield from self._guests.end(guest)
        guest.note_exit(128 + signal.SIGKILL)
        self._guests.drop(guest)
        if checked.ended:
            raise GuestFailed(checked.how_it_ended(), state=self._guests.state(checked))
        if guest.exit_reason and not guest.sandboxed:
            raise GuestFailed(guest.exit_reason, state=self._guests.state(guest))
        return Answer(number, state=self._guests.state(guest))

    def _wait_ready(self, number: int, action: WaitReady) -> Task[Answer]:
        guest = self._guests.known(action.guest)
        deadline = self._loop.clock() + action.deadline_s
        problem = yield from self._prove(guest, action.ready, deadline)
        if guest.ended and not (guest.running and not guest.order.listen):
            problem = guest.how_it_ended()
        if problem:
            raise GuestFailed(f"{guest.order.process} is not ready: {problem}", state=self._guests.state(guest))
        return Answer(number)

    def _prove(self, guest: Guest, ready: Ready | None, deadline: float) -> Step:
        while not (guest.running or guest.ended):
            if self._loop.clock() >= deadline:
                return "it did not begin to run in time"
            yield Wait(deadline, signal=guest.changed)
        groups = self._guests.groups(guest)
        problem = yield from wait_until_listening(self._loop, guest, groups, deadline)
        if problem or ready is None or guest.ended:
            return problem
        if ready.tcp not in groups:
            return f"its definition has no listener {ready.tcp}, which readiness asks for"
        return (yield from wait_until_proven(self._loop, guest, groups[ready.tcp], ready, deadline))

    def _drain(self, number: int, action: Drain) -> Task[Answer]:
        guest = self._guests.known(action.guest)
        groups = self._guests.groups(guest)
        for group in groups.values():
            if group.serving is not None and group.serving.guest == guest.name:
                if action.hands_over:
                    group.keep()
                else:
                    group.turn_away(self._loop)
        deadline = self._loop.clock() + action.deadline_s
        return Answer(number, drained=(yield from drained(self._loop, guest, list(groups.values()), deadline)))

    def _kill(self, number: int, name: GuestId) -> Task[Answer]:
        return Answer(number, state=(yield from self._guests.kill(name)))

    def _set_memory(self, guest: Guest, memory_bytes: int) -> None:
        set_memory(guest, memory_bytes)
        guest.order = msgspec.structs.replace(guest.order, memory_bytes=memory_bytes)
        self._guests.save()

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
            if not any(guest.pid == pid for guest in self._guests):
                for guest in self._guests:
                    guest.read_messages()
            status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
            if status is not None:
                self._note_exit(pid, exit_code_of(status))

    def _note_exit(self, pid: int, exit_code: int) -> None:
        if pid == self._zygote.pid:
            self._zygote.note_exit()
            return
        for guest in self._guests:
            if guest.pid == pid and not guest.ended:
                guest.note_exit(exit_code)
                return

    # --- the end ----------------------------------------------------------------------------------------------------

    def _shut_down(self) -> None:
        """End every guest and the zygote, then this process."""
        if self._stopping:
            return
        self._stopping = True
        for guest in self._guests:
            guest.killed = True
            guest.kill()
        self._zygote.stop()
        self._finish_when_empty(self._loop.clock() + KILL_DEADLINE_S)

    def _finish_when_empty(self, deadline: float) -> None:
        alive = any(not guest.ended and guest.pid for guest in self._guests)
        if alive and self._loop.clock() < deadline:
            self._loop.after(0.005, lambda: self._finish_when_empty(deadline))
            return
        self._guests.close()
        for name in (SOCKET_NAME, STATE_NAME):
            (self._state_dir / name).unlink(missing_ok=True)
        self._loop.stop()


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
