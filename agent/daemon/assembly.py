"""The parts of an agent, put together for one state directory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Self

import msgspec
from msgspec import UNSET, UnsetType

from agent.api.facts import HostFacts, VolumeStatus
from agent.api.journal import Event
from agent.build import PACKAGE, version_of
from agent.daemon import host as host_facts
from agent.daemon.builder import GuestBuilder
from agent.daemon.capacity import Limits
from agent.daemon.code_cache import CodeCache
from agent.daemon.durable import FileDamaged
from agent.daemon.guarantees import guarantees
from agent.daemon.guests import Guests
from agent.daemon.handlers import Handlers
from agent.daemon.journal import Journal
from agent.daemon.networking import DEFAULT, Mode, network_of
from agent.daemon.offering import OfferRoutes
from agent.daemon.output import OutputFiles
from agent.daemon.peering.heeding import Programs
from agent.daemon.peering.limits import PeerLimits
from agent.daemon.peering.routes import PeerRoutes
from agent.daemon.peering.service import Peering
from agent.daemon.placement import MILLI
from agent.daemon.processes import Processes
from agent.daemon.sealing import KEY_NAME, OpenedSecrets, SealingKey
from agent.daemon.server import Service
from agent.daemon.staging import Staging, blobs_of
from agent.daemon.state import State
from agent.daemon.users import Users
from agent.daemon.volume_calls import Home, VolumeCalls
from agent.daemon.volumes import Volumes
from agent.runtime import Runtime, kernel_name
from agent.sandbox.cgroups import Groups
from agent.sandbox.engine import fingerprint
from agent.supervisor.client import connect
from cas.digest import Digest
from cas.store import Store

_log = logging.getLogger(__name__)

SWEEPS: Final = 250
SWEEP_EVERY_S: Final = 0.02
SHARED_CORES_MILLI: Final = 1 << 40
"""On a machine that several agents share no core is anybody's own, so asking for many is no reason to refuse."""


class Agent:
    """One host's agent without its socket. Make it with `Agent.open`."""

    def __init__(
        self,
        host: str,
        state_dir: Path,
        store: Store,
        journal: Journal,
        limits: Limits,
        pin: bool,
        runtime: Callable[[], Awaitable[Runtime]],
        peering: Peering,
        network: Mode,
        store_quota_bytes: int | None,
        groups: Groups,
        cpus: tuple[int, ...],
    ) -> None:
        self.ended = asyncio.Event()
        """Set when the agent is to end."""
        self._host = host
        self._state_dir = state_dir
        self._store = store
        self._limits = limits
        self._pinned = pin
        self._network = network
        self._peering = peering
        self._end_guests_for: str | None = None
        self.journal = journal
        self._volumes = Volumes(state_dir / "volumes")
        output = OutputFiles(state_dir / "output")
        cache = CodeCache(state_dir / "code", fingerprint())
        self._sealing = SealingKey(state_dir / KEY_NAME)
        work = state_dir / "work"
        self._programs = Programs(lambda binary: staging.code(binary), cache.holds)
        staging = Staging(store, cache, work, lambda: self._binaries(), self._sealing, peering.restore)
        guest_files = state_dir / "guests"
        self._secrets = OpenedSecrets(state_dir, guest_files)
        self._groups = groups
        self._cpus = cpus
        self._users = Users(state_dir, lambda: self._who_keeps_a_user())
        self._builder = GuestBuilder(
            guest_files,
            staging,
            self._volumes,
            output,
            lambda process: self.processes.claim_of(process),
            self._secrets,
            self._users,
            self._groups,
            lambda spec: network_of(spec, network),
        )
        guests = Guests(self._builder, journal, boot=host_facts.boot())
        pinned_to = cpus if pin else ()
        self.processes = Processes(State(state_dir / "processes"), guests, self._volumes, limits, pinned_to, runtime)
        home = Home(host, state_dir / "store", store_quota_bytes, work)
        self._volume_calls = VolumeCalls(home, self.processes, self._volumes, journal, store)
        handlers = Handlers(self.processes, guests, staging, self._volume_calls, journal, store, cache, peering.source)
        self.service = Service(
            handlers,
            self.processes,
            journal,
            output,
            store,
            self.facts,
            self._end,
            self.ended,
            more=(*PeerRoutes(peering).table(), *OfferRoutes(store).table()),
            arrived=peering.arrived,
            acquainted=peering.acquainted,
            closing=peering.giving.close,
        )

    @classmethod
    async def open(
        cls,
        host: str,
        state_dir: Path,
        *,
        limits: Limits | None = None,
        pin: bool = True,
        runtime: Callable[[], Awaitable[Runtime]] | None = None,
        credentials: Path | None = None,
        peer_limits: PeerLimits | None = None,
        store_quota_bytes: int | None = None,
        network: Mode = DEFAULT,
    ) -> Self:
        """Open everything in the state directory and begin to bring the host to what its records say. `runtime` makes
        the link to the supervisor; a test may bring its own. `credentials`: what this host shows to other hosts, by
        default those in the state directory. `store_quota_bytes`: the most that its blobs may take on disk.
        `network`: which guests get a network namespace."""
        store = await asyncio.to_thread(Store.open, state_dir / "store", quota_bytes=store_quota_bytes)
        journal = await asyncio.to_thread(Journal.open, state_dir / "journal", host)
        groups = await asyncio.to_thread(Groups.open, groups_name(state_dir))
        cpus = host_facts.usable_cpus(groups.closed_cpus())
        room = limits or host_facts.machine_limits(state_dir, cpus)
        if limits is None and not pin:
            room = msgspec.structs.replace(room, cores_milli=SHARED_CORES_MILLI)
        peering = Peering(host, state_dir, store, credentials or state_dir / "credentials", limits=peer_limits)
        connecting = runtime or (lambda: connect(state_dir))
        agent = cls(
            host, state_dir, store, journal, room, pin, connecting, peering, network, store_quota_bytes, groups, cpus
        )
        what = f"{PACKAGE} {version_of(PACKAGE) or 'of a checkout'}"
        detail = "; ".join(part for part in (what, journal.repaired) if part)
        await asyncio.to_thread(journal.append, Event.AGENT_STARTED, detail=detail)
        await agent.processes.open()
        await asyncio.to_thread(agent._builder.sweep, agent.processes.guests_held())
        await asyncio.to_thread(agent._volumes.sweep)
        await peering.open(agent._needed, agent._programs)
        return agent

    async def close(self) -> None:
        """End the agent; its guests too, where an operator asked for that."""
        if self._end_guests_for is not None:
            await self.processes.shut_down_guests(self._end_guests_for)
            await asyncio.to_thread(self._secrets.sweep, ())
            await self._sweep_groups()
        await self._volume_calls.close()
        await self._peering.close()
        await self.processes.close()
        await asyncio.to_thread(self.journal.close)
        await asyncio.to_thread(self._store.close)

    async def _sweep_groups(self) -> None:
        """A guest that was just killed is in its group until the kernel has taken its memory apart."""
        for _ in range(SWEEPS):
            if await asyncio.to_thread(self._groups.sweep, ()):
                return
            await asyncio.sleep(SWEEP_EVERY_S)
        _log.warning("control groups of guests that were ended are still busy; the next agent removes them")

    def facts(self) -> HostFacts:
        """What this host is and has. Reads the disk: call it in a thread."""
        space = host_facts.disk(self._state_dir)
        usage = self._store.usage()
        return HostFacts(
            host=self._host,
            cores=self._cores(),
            memory_bytes=self._limits.memory_bytes,
            disk_bytes=self._limits.disk_bytes,
            disk_free_bytes=space.free_bytes,
            addresses=host_facts.addresses(),
            kernel=host_facts.kernel(),
            engine=fingerprint(),
            guarantees=guarantees(
                self._groups.controllers, pinned_to=self._cpus if self._pinned else (), network=self._network
            ),
            volumes=tuple(self._volume(name, size) for name, size in sorted(self._volumes.sizes.items())),
            store_blobs=usage.blobs,
            store_bytes=usage.stored_bytes,
            version=version_of(PACKAGE),
            sealing_key=self._sealing_key(),
            waiting=self._peering.heeding.waiting() or UNSET,
        )

    def _cores(self) -> int:
        cores_milli = self._limits.cores_milli
        return len(self._cpus) if cores_milli == SHARED_CORES_MILLI else cores_milli // MILLI

    def _sealing_key(self) -> str | UnsetType:
        try:
            return self._sealing.public()
        except (FileDamaged, OSError) as error:
            _log.error("secrets cannot be opened here: %s", error)
            return UNSET

    def _volume(self, name: str, size_bytes: int) -> VolumeStatus:
        return VolumeStatus(
            volume=name,
            size_bytes=size_bytes,
            used_bytes=self._volumes.used_bytes(name),
            held_by=self.processes.holder_of(name),
        )

    def _who_keeps_a_user(self) -> set[str]:
        """Processes that a record of this host names."""
        return {spec.name for spec in self.processes.specs_held()}

    def _binaries(self) -> set[Digest]:
        return {spec.binary for spec in self.processes.specs_held()}

    def _needed(self) -> set[Digest]:
        """The blobs of what runs here."""
        return {digest for spec in self.processes.specs_held() for digest in blobs_of(spec)}

    def _end(self, guests: bool, by: str) -> None:
        if guests:
            self._end_guests_for = by
        self.ended.set()


def groups_name(state_dir: Path) -> str:
    """What this agent's control groups are called by, before a dot and the process."""
    return f"lowcloud-{kernel_name(state_dir)}"
