"""All processes of this host: who is there, whether there is room for one more, and the link to the supervisor.

The table is made from the durable records. The link is kept by one task: it connects (starting the supervisor where
there is none), tells every process to look at its guests again, passes on which guests ended, and connects anew when
the link is lost. Guests that no record knows are ended: they are what a crash left over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import msgspec

from agent.api.answers import Reason
from agent.api.facts import ProcessStatus, ProcessUsage
from agent.api.journal import Event
from agent.api.processes import ProcessSpec
from agent.daemon import host
from agent.daemon.capacity import Limits, conflict, shortage
from agent.daemon.guests import Guests
from agent.daemon.lifecycle import Lifecycle
from agent.daemon.placement import assign, closable
from agent.daemon.refusal import Refused
from agent.daemon.state import Record, State
from agent.daemon.usage import Running, usage_of
from agent.daemon.volumes import Volumes
from agent.runtime import GuestFailed, GuestId, GuestState, Runtime, RuntimeUnavailable
from agent.sandbox.cpusets import Claim

LINK_WITHIN_S: Final = 60.0
FIRST_RETRY_S: Final = 0.2
MOST_RETRY_S: Final = 10.0
MAX_PROCESSES: Final = 4096

_log = logging.getLogger(__name__)


class Processes:
    """The table. Use from one event loop."""

    def __init__(
        self,
        state: State,
        guests: Guests,
        volumes: Volumes,
        limits: Limits,
        cpus: Sequence[int],
        connect: Callable[[], Awaitable[Runtime]],
    ) -> None:
        self._state = state
        self._guests = guests
        self._volumes = volumes
        self._limits = limits
        self._cpus = tuple(cpus)
        self._connect = connect
        self._table: dict[str, Lifecycle] = {}
        self._promised: list[ProcessSpec] = []
        self._given: dict[str, tuple[int, ...]] = {}
        self._alone: set[str] = set()
        self._link: asyncio.Task[None] | None = None
        self.linked = asyncio.Event()
        """Set while the supervisor can be reached."""

    async def open(self) -> None:
        """Load the records, and begin to bring this host to what they say."""
        records = await asyncio.to_thread(self._state.load)
        self._table = {name: Lifecycle(record, self._state, self._guests) for name, record in records.items()}
        self._link = asyncio.get_running_loop().create_task(self._keep_linked())

    async def close(self) -> None:
        """Stop deciding; every guest stays as it is."""
        if self._link is not None:
            self._link.cancel()
            await asyncio.gather(self._link, return_exceptions=True)
        await asyncio.gather(*(lifecycle.close() for lifecycle in self._table.values()))
        if self._guests.runtime is not None:
            await self._guests.runtime.close()

    async def shut_down_guests(self, by: str) -> None:
        """End every guest and the supervisor. What should run stays recorded: it comes back with the next agent."""
        runtime, self._guests.runtime = self._guests.runtime, None
        if self._link is not None:
            self._link.cancel()
            await asyncio.gather(self._link, return_exceptions=True)
        await asyncio.gather(*(lifecycle.close() for lifecycle in self._table.values()))
        if runtime is None:  # the link was being made anew: who it leads to must end as well
            async with asyncio.timeout(LINK_WITHIN_S):
                runtime = await self._connect()
        served = [life.record.current for life in self._table.values()]
        await runtime.shut_down()
        for version in served:
            if version is not None and self._guests.has_served(version):
                await self._guests.note(Event.ENDED, version, by=by, detail="the host was shut down")

    # --- the table ---------------------------------------------------------------------------------------------------

    def get(self, process: str) -> Lifecycle | None:
        """The process, where it is here or on its way."""
        return self._table.get(process)

    def get_or_make(self, process: str) -> Lifecycle:
        """The process, or a place for a new one. Raises Refused(NO_ROOM)."""
        lifecycle = self._table.get(process)
        if lifecycle is None:
            if len(self._table) >= MAX_PROCESSES:
                raise Refused(Reason.NO_ROOM, f"this host runs {MAX_PROCESSES} processes already, the most it can")
            lifecycle = self._table[process] = Lifecycle(Record(process=process), self._state, self._guests)
        return lifecycle

    def drop_if_gone(self, process: str) -> None:
        """Forget a place that holds nothing."""
        lifecycle = self._table.get(process)
        if lifecycle is not None and lifecycle.gone:
            del self._table[process]

    def deciding(self) -> tuple[str, ...]:
        """Those of which a call may change what runs at any moment."""
        return tuple(name for name, lifecycle in sorted(self._table.items()) if lifecycle.deciding)

    def statuses(self) -> tuple[ProcessStatus, ...]:
        """What is here, by name. Reads `/proc`: call it in a thread."""
        found = (lifecycle.status() for _, lifecycle in sorted(self._table.copy().items()))
        return tuple(
            msgspec.structs.replace(status, memory_bytes=host.private_memory_bytes(status.pid))
            if status.pid
            else status
            for status in found
            if status is not None
        )

    def usage(self) -> tuple[ProcessUsage, ...]:
        """What the guests that run take, by process. Reads `/proc` and disks: call it in a thread."""
        running = []
        for name, lifecycle in sorted(self._table.copy().items()):
            state, current = lifecycle.standing.running, lifecycle.record.current
            if state is not None and current is not None:
                running.append(Running(name, state.pid, current.spec, self._guests.builder.scratch(state.guest)))
        return usage_of(running, self._volumes.used_bytes)

    def desired(self) -> dict[str, ProcessSpec]:
        """What is to run, by process, with what is being started."""
        specs = {
            name: lifecycle.record.current.spec
            for name, lifecycle in self._table.copy().items()
            if lifecycle.record.current is not None and not lifecycle.record.stopping
        }
        return {**specs, **{spec.name: spec for spec in self._promised}}

    def specs_held(self) -> list[ProcessSpec]:
        """Every specification that a record names."""
        return [version.spec for lifecycle in self._table.copy().values() for version in lifecycle.record.versions()]

    def guests_held(self) -> set[GuestId]:
        """Every guest that a record names."""
        return {guest for lifecycle in self._table.copy().values() for guest in lifecycle.record.guests()}

    def holder_of(self, volume: str) -> str | None:
        """The process that a volume belongs to: of which any version has it, also one that is to go but may still run
        (it drains), or may have to come back (its successor is not ready yet)."""
        specs = [*self._promised, *self.specs_held()]
        return next((spec.name for spec in specs if volume in spec.volume.values()), None)

    async def known_guests(self) -> dict[GuestId, GuestState]:
        """Every guest of this host, as the supervisor sees it. Raises RuntimeUnavailable."""
        return await self._guests.known()

    # --- room --------------------------------------------------------------------------------------------------------

    @contextmanager
    def room_for(self, spec: ProcessSpec) -> Iterator[None]:
        """Hold what a specification takes while it is being started. Raises Refused(NO_ROOM, IN_USE, NOT_FOUND)."""
        specs = {**self.desired(), spec.name: spec}
        self.check_room(specs, hint="see `lowcloud host show`; stop or shrink another process, or choose another host")
        self._check_volumes(spec)
        self._promised.append(spec)
        try:
            yield
        finally:
            self._promised.remove(spec)

    def check_room(self, specs: dict[str, ProcessSpec], *, hint: str, volumes_bytes: int | None = None) -> None:
        """Could these run side by side? Raises Refused(NO_ROOM)."""
        volumes = sum(self._volumes.sizes.values()) if volumes_bytes is None else volumes_bytes
        problem = shortage(self._limits, specs, volumes) or conflict(specs)
        if problem:
            raise Refused(Reason.NO_ROOM, f"this host has no room: {problem}", hint=hint)

    def _check_volumes(self, spec: ProcessSpec) -> None:
        for volume in spec.volume.values():
            if volume not in self._volumes.sizes:
                raise Refused(
                    Reason.NOT_FOUND,
                    f"{spec.name} needs the volume {volume}, which is not on this host",
                    hint="create the volume first; `lowcloud apply` does",
                )
            holder = self.holder_of(volume)
            if holder is not None and holder != spec.name:
                raise Refused(
                    Reason.IN_USE,
                    f"{spec.name} needs the volume {volume}, which {holder} holds",
                    hint=f"stop {holder} first, or give {spec.name} a volume of its own",
                )

    # --- CPUs --------------------------------------------------------------------------------------------------------

    def claim_of(self, process: str) -> Claim:
        """Where a process may run."""
        if process not in self._given:
            self._assign()
        return Claim(self._given.get(process, ()), process in self._alone)

    async def place(self) -> None:
        """Give every process its CPUs again after something changed, and move the guests that this concerns."""
        before = self._given
        self._assign()
        await self._guests.builder.placed({name: self.claim_of(name) for name in self._given})
        for name, lifecycle in list(self._table.items()):
            if name in before and before[name] != self._given.get(name, ()):
                await lifecycle.set_cpus(self._given.get(name, ()))

    def _assign(self) -> None:
        wants = {name: spec.cores_milli for name, spec in self.desired().items()}
        self._given = assign(self._cpus, wants, self._given) if self._cpus else dict.fromkeys(wants, ())
        self._alone = closable(self._cpus, wants, self._given)

    # --- the link to the supervisor ----------------------------------------------------------------------------------

    async def _keep_linked(self) -> None:
        wait_s = FIRST_RETRY_S
        while True:
            try:
                async with asyncio.timeout(LINK_WITHIN_S):
                    runtime = await self._connect()
                self._guests.runtime = runtime
                await self._look_again()
                wait_s = FIRST_RETRY_S
                self.linked.set()
                async for exited in runtime.exits():
                    self._exited(exited.state)
            except (RuntimeUnavailable, TimeoutError, OSError) as error:
                _log.warning("the supervisor cannot be reached: %s", error)
            except Exception:
                _log.exception("the link to the supervisor")
            self.linked.clear()
            lost, self._guests.runtime = self._guests.runtime, None
            if lost is not None:
                await lost.close()
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, MOST_RETRY_S)

    async def _look_again(self) -> None:
        """The guests may have changed: bring every process and its record together again, and end what is unknown."""
        known = await self._guests.known()
        self._remember_cpus(known)
        await self._guests.builder.placed({name: self.claim_of(name) for name in self._given})
        for lifecycle in self._table.values():
            lifecycle.unsettle()
            lifecycle.resume()
        await self._end_unknown(known)

    def _remember_cpus(self, known: dict[GuestId, GuestState]) -> None:
        alive = {state.process: state.pid for state in known.values() if state.exit_code is None}
        held = {process: host.process_cpus(pid) for process, pid in alive.items()}
        self._given = {name: cpus for name, cpus in held.items() if 0 < len(cpus) < len(self._cpus)}
        self._assign()

    async def _end_unknown(self, known: dict[GuestId, GuestState]) -> None:
        """End what no record knows, also where its record was damaged: nobody would see it run, and its volumes and
        addresses would be given to others."""
        ours = self.guests_held()
        strays = {guest: state for guest, state in known.items() if guest not in ours}
        for guest in self._guests.serving() - ours - set(strays):
            await self._guests.note_stray(guest, "it was gone when the agent looked, and no record knows it")
        for guest, state in strays.items():
            try:
                if state.exit_code is None:
                    _log.warning("guest %s is known to no record and is ended", guest)
                    await self._guests.kill(guest)
                await self._guests.note_stray(guest, "no record knew it")
                await self._guests.forget_guest(guest)
            except (GuestFailed, RuntimeUnavailable) as error:
                _log.warning("guest %s: %s", guest, error)

    def _exited(self, state: GuestState) -> None:
        lifecycle = self._table.get(state.process)
        if lifecycle is not None:
            lifecycle.exited(state)
