"""A `Runtime` in memory: no processes, no sockets, the same rules. Lifecycle tests run over it and over the real one.

What a guest does is said in its environment, so that the same specification means the same to both:

| variable | value | meaning |
|---|---|---|
| `ACT` | `exit:N` | end at once with code N |
| | `silent` | never open the listeners |
| | `fail` | cannot be started |
| | anything else | run until it is killed |

A check does what its first argument says: `exit:N`, or anything else: run until its time is over.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from agent.api.processes import Ready
from agent.runtime import EndpointTaken, GuestExited, GuestFailed, GuestId, GuestOrder, GuestState, RuntimeUnavailable

_pids = itertools.count(1 << 22)
"""Above every real process's number."""


class MemoryRuntime:
    """Outlives the agents that use it, as the supervisor does. `connect` gives a link, which `sever` breaks."""

    def __init__(self) -> None:
        self.orders: dict[GuestId, GuestOrder] = {}
        self.states: dict[GuestId, GuestState] = {}
        self.flips: list[GuestId] = []
        self.checks: list[GuestOrder] = []
        self.failing_checks = False
        self.fixed_memory = False
        """A guest that runs cannot be given more."""
        self.failing = False
        """No guest can be started."""
        self.hold: dict[str, asyncio.Event] = {}
        """By act (`spawn`, `ready`, `flip`, `drain`): wait for this event first."""
        self.reached: dict[str, asyncio.Event] = {}
        self._changed = asyncio.Event()
        self._exits: list[GuestExited] = []
        self.links: list[MemoryLink] = []

    async def connect(self) -> MemoryLink:
        link = MemoryLink(self)
        self.links.append(link)
        return link

    def stop_at(self, act: str) -> asyncio.Event:
        """Let every guest's next `act` wait until the event that is returned is set."""
        self.hold[act] = asyncio.Event()
        self.reached[act] = asyncio.Event()
        return self.hold[act]

    def ends(self, guest: GuestId, exit_code: int) -> None:
        """The guest's program ends by itself."""
        state = self.states[guest]
        if state.exit_code is None:
            self.states[guest] = msgspec.structs.replace(state, exit_code=exit_code, listening=False)
            self._exits.append(GuestExited(self.states[guest]))
            self._notify()

    def alive(self, process: str | None = None) -> list[GuestState]:
        return [s for s in self.states.values() if s.exit_code is None and process in (None, s.process)]

    def serving(self, process: str) -> list[GuestState]:
        return [state for state in self.alive(process) if state.serving]

    def lose_everything(self) -> None:
        """The host was rebooted."""
        self.states.clear()
        self.orders.clear()
        for link in self.links:
            link.sever()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class MemoryLink:
    """Implements `agent.runtime.Runtime`."""

    def __init__(self, host: MemoryRuntime) -> None:
        self._host = host
        self._severed = False

    def sever(self) -> None:
        self._severed = True
        self._host._notify()

    async def spawn(self, order: GuestOrder) -> GuestState:
        await self._enter("spawn")
        act = order.env.get("ACT", "")
        if act == "fail" or self._host.failing:
            raise GuestFailed("it could not be instantiated")
        others = [self._host.orders[s.guest] for s in self._host.alive() if s.process != order.process]
        if any(endpoint in other.listen.values() for other in others for endpoint in order.listen.values()):
            raise EndpointTaken("the address is in use")
        before = [s for s in self._host.states.values() if s.process == order.process and s.serving]
        state = GuestState(
            guest=order.guest,
            process=order.process,
            pid=next(_pids),
            started_unix=time.time(),
            listening=bool(order.listen) and act != "silent",
            serving=not order.listen or not before,
        )
        self._host.orders[order.guest] = order
        self._host.states[order.guest] = state
        _write(order.output_path, f"{order.process} says {act or 'hello'}\n")
        if act.startswith("exit:"):
            self._host.ends(order.guest, int(act.removeprefix("exit:")))
        return state

    async def wait_ready(self, guest: GuestId, ready: Ready | None, *, deadline_s: float) -> None:
        await self._enter("ready")
        if ready is not None and ready.tcp is not None and ready.tcp not in self._host.orders[guest].listen:
            raise GuestFailed(f"it has no listener {ready.tcp}")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + deadline_s
        while True:
            self._check()
            state = self._host.states[guest]
            if state.exit_code is not None:
                raise GuestFailed(f"it ended with exit code {state.exit_code}", state=state)
            if state.listening or not self._host.orders[guest].listen:
                return
            try:
                await asyncio.wait_for(self._host._changed.wait(), max(0.0, deadline - loop.time()))
            except TimeoutError:
                raise GuestFailed(f"it did not listen within {deadline_s:g} s", state=state) from None

    async def check(self, order: GuestOrder, *, deadline_s: float) -> GuestState:
        await self._enter("check")
        assert order.checked is not None
        checked = self._host.states.get(order.checked.guest)
        if checked is None or checked.exit_code is not None:
            raise GuestFailed("it has ended", state=checked)
        act = "exit:1" if self._host.failing_checks else order.args[0]
        self._host.checks.append(order)
        _write(order.output_path, f"check says {act}\n")
        if not act.startswith("exit:"):
            await asyncio.sleep(deadline_s)
        code = int(act.removeprefix("exit:")) if act.startswith("exit:") else 137
        return GuestState(order.guest, order.process, next(_pids), time.time(), False, False, exit_code=code)

    async def flip(self, guest: GuestId) -> None:
        await self._enter("flip")
        process = self._host.states[guest].process
        if self._host.states[guest].exit_code is not None:
            raise GuestFailed("it has ended", state=self._host.states[guest])
        for other, state in list(self._host.states.items()):
            if state.process == process and self._host.orders[other].listen:
                self._host.states[other] = msgspec.structs.replace(state, serving=other == guest)
        self._host.flips.append(guest)

    async def drain(self, guest: GuestId, *, deadline_s: float, hands_over: bool = False) -> bool:
        del hands_over  # it has no connections
        await self._enter("drain")
        return guest in self._host.states and deadline_s > 0

    async def kill(self, guest: GuestId) -> GuestState:
        await self._enter("kill")
        if guest not in self._host.states:
            raise GuestFailed(f"there is no guest {guest}")
        state = self._host.states[guest]
        if state.exit_code is None:
            state = self._host.states[guest] = msgspec.structs.replace(state, exit_code=137, listening=False)
            self._host._notify()
        return state

    async def forget(self, guest: GuestId) -> None:
        await self._enter("forget")
        self._host.states.pop(guest, None)
        self._host.orders.pop(guest, None)

    async def set_cpus(self, guest: GuestId, cpus: tuple[int, ...]) -> None:
        await self._enter("set_cpus")
        self._host.orders[guest] = msgspec.structs.replace(self._host.orders[guest], cpus=cpus)

    async def set_memory(self, guest: GuestId, memory_bytes: int) -> None:
        await self._enter("set_memory")
        if self._host.fixed_memory:
            raise GuestFailed("where the limit is kept is not known")
        self._host.orders[guest] = msgspec.structs.replace(self._host.orders[guest], memory_bytes=memory_bytes)

    async def guests(self) -> dict[GuestId, GuestState]:
        await self._enter("guests")
        return dict(self._host.states)

    async def exits(self) -> AsyncIterator[GuestExited]:
        told = 0
        while True:
            self._check()
            for exited in self._host._exits[told:]:
                told += 1
                if exited.state.guest in self._host.states:
                    yield exited
            if told == len(self._host._exits):
                await self._host._changed.wait()

    async def close(self) -> None:
        self._severed = True

    async def shut_down(self) -> None:
        self._check()
        self._host.states.clear()
        self._host.orders.clear()

    async def _enter(self, act: str) -> None:
        self._check()
        if act in self._host.hold:
            self._host.reached[act].set()
            await self._host.hold[act].wait()
            self._check()

    def _check(self) -> None:
        if self._severed:
            raise RuntimeUnavailable("the link was cut")


def _write(path: str, text: str) -> None:
    Path(path).write_text(text)
