"""Turning a version into an order to run it: code, files, environment, output, CPUs.

A guest's own directory `<state>/guests/GUEST/` holds its configuration files and its scratch space, and goes when the
guest is forgotten; a second one, in memory, holds its secrets. Its environment is what the specification says, and the
addresses of its connections and listeners: `LOWCLOUD_CONNECT_<NAME>` and `LOWCLOUD_LISTEN_<NAME>`, each `address:port`.

A check of a guest (`agent.daemon.checking`) gets all this too, for itself alone, but for volumes and listeners; where
the guest listens, it finds an address that it can connect to.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final

import msgspec

from agent.api.answers import Reason
from agent.api.processes import Endpoint, ProcessSpec
from agent.daemon import trees
from agent.daemon.guest_files import SCRATCH_DIRECTORY, plan_files
from agent.daemon.guests import guest_of
from agent.daemon.networking import as_told
from agent.daemon.output import OutputFiles, last_bytes
from agent.daemon.refusal import Refused
from agent.daemon.sealing import OpenedSecrets
from agent.daemon.staging import Staging
from agent.daemon.state import Version
from agent.daemon.users import Users
from agent.daemon.volumes import Volumes, make_image
from agent.runtime import MEMORY_OVERHEAD_BYTES, Checked, GuestId, GuestOrder, Mount, Network, local_address
from agent.sandbox import ownership, privileges
from agent.sandbox.cgroups import Groups, Limits
from agent.sandbox.cpusets import Claim
from cas.digest import Digest, digest_of

TAIL_BYTES: Final = 8 << 10
"""Of the output of a guest that did not become ready, so much is part of the answer."""

SAID: Final = "said"
"""What a check prints goes to this file of its own directory."""

REPLACEMENT: Final = "replacement"
"""Where a new configuration file is written before it takes its place; the guest does not see it there."""

MAX_SCRATCH_IN_MEMORY_BYTES: Final = 64 << 20
"""Larger scratch space is a file system in a file; smaller one is memory, which is there in no time."""
MIN_SCRATCH_BYTES: Final = 64 << 10

_log = logging.getLogger(__name__)


class GuestBuilder:
    """The `Builder` of a host. `claims` tells where a process may run, `network` how it is connected."""

    def __init__(
        self,
        directory: Path,
        staging: Staging,
        volumes: Volumes,
        output: OutputFiles,
        claims: Callable[[str], Claim],
        secrets: OpenedSecrets,
        users: Users,
        groups: Groups,
        network: Callable[[ProcessSpec], Network],
    ) -> None:
        self._directory = directory
        self._users = users
        self._groups = groups
        self._network = network
        self._secrets = secrets
        self._staging = staging
        self._volumes = volumes
        self._output = output
        self._claims = claims
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def order(self, version: Version) -> GuestOrder:
        """Raises Refused where something that the guest needs is not on this host."""
        spec, guest = version.spec, guest_of(version)
        order = await self._order(spec, guest, await asyncio.to_thread(self._network, spec))
        await asyncio.to_thread(self._output.prune, spec.name)
        return msgspec.structs.replace(order, output_path=str(self._output.path(spec.name, guest)))

    async def check_order(self, version: Version, check: GuestId) -> GuestOrder:
        """How to run the command that says whether the version's guest is ready. Raises Refused."""
        spec = version.spec
        command = spec.ready.command if spec.ready else ()
        alone = msgspec.structs.replace(spec, args=command, volume={}, listen={})
        reached = {n: Endpoint(local_address(e), e.port, e.protocol) for n, e in spec.listen.items()}
        network = await asyncio.to_thread(self._network, spec)
        return msgspec.structs.replace(
            await self._order(alone, check, network),
            env=environment(as_told(msgspec.structs.replace(spec, listen=reached), network)),
            checks=Checked(guest_of(version), dict(spec.listen)),
        )

    async def _order(self, spec: ProcessSpec, guest: GuestId, network: Network) -> GuestOrder:
        plan = plan_files(spec)
        absent = sorted(set(spec.volume.values()) - set(self._volumes.sizes))
        if absent:
            raise Refused(
                Reason.NOT_FOUND,
                f"{spec.name} needs the volume {', '.join(absent)}, which is not on this host",
                hint="create the volume first; `lowcloud apply` does",
            )
        code = await self._staging.code(spec.binary)
        own = self._directory / guest
        try:
            await asyncio.to_thread(_make_directories, own, [*plan.roots.values()], plan.files)
            for relative, digest in plan.files.items():
                await self._staging.write_config(digest, own / relative)
            opened = await asyncio.to_thread(self._secrets.make, guest, plan.secrets) if plan.secrets else own
            for relative, digest in plan.secrets.items():
                await self._staging.write_secret(digest, opened / relative)
            mounts = await asyncio.to_thread(self._mounts, spec, own)
            uid = await asyncio.to_thread(self._users.of, spec.name)
            claim = self._claims(spec.name)
            groups = await asyncio.to_thread(self._groups.make, spec.name, guest, limits_of(spec), claim)
        except BaseException:
            await self.clear(spec.name, guest)
            raise
        return GuestOrder(
            guest=guest,
            process=spec.name,
            code_path=str(code.path),
            code_kind=code.kind,
            args=spec.args,
            env=environment(as_told(spec, network)),
            preopens=plan.preopens(own, {name: self._volumes.path(name) for name in spec.volume.values()}, opened),
            listen=dict(spec.listen),
            connect=dict(spec.connect),
            memory_bytes=spec.memory_bytes,
            cpus=claim.cpus,
            output_path=str(own / SAID),
            uid=uid,
            mounts=mounts,
            cgroups=groups,
            network=network,
        )

    def _mounts(self, spec: ProcessSpec, own: Path) -> tuple[Mount, ...]:
        """What the guest's process mounts: images of volumes, and scratch space where that can be had. Raises Refused,
        OSError."""
        problem = privileges.no_mounts()
        images = [mount for name in spec.volume.values() if (mount := self._volumes.mount(name))]
        if images and problem:
            raise Refused(
                Reason.NO_ROOM,
                f"{spec.name} needs the volume {Path(images[0].image).parent.name}, which cannot be mounted: {problem}",
                hint="start the agent as the user it had when the volume was made",
            )
        if not spec.disk_bytes or problem:
            return tuple(images)
        target = own / SCRATCH_DIRECTORY
        if spec.disk_bytes <= MAX_SCRATCH_IN_MEMORY_BYTES:
            return (*images, Mount(str(target), max(spec.disk_bytes, MIN_SCRATCH_BYTES)))
        if privileges.no_images():
            return tuple(images)
        image = target.with_suffix(".image")
        make_image(image, spec.disk_bytes, journal=False)
        return (*images, Mount(str(target), spec.disk_bytes, str(image)))

    async def rewrite(self, version: Version) -> None:
        """Each file that differs is replaced by a whole new one, so that the guest reads the old or the new."""
        own = self._directory / guest_of(version)
        for relative, digest in plan_files(version.spec).files.items():
            path, fresh = own / relative, own / REPLACEMENT
            if await asyncio.to_thread(_holds, path, digest):
                continue
            await self._staging.write_config(digest, fresh)
            uid = await asyncio.to_thread(self._users.of, version.spec.name)
            if uid is not None:
                await asyncio.to_thread(ownership.let_read_file, str(fresh), uid)
            await asyncio.to_thread(fresh.replace, path)

    async def resized(self, version: Version) -> None:
        limits = limits_of(version.spec)
        await asyncio.to_thread(self._groups.change, version.spec.name, guest_of(version), limits)

    async def placed(self, claims: Mapping[str, Claim]) -> None:
        await asyncio.to_thread(self._groups.give, claims)

    async def clear(self, process: str, guest: GuestId) -> None:
        await asyncio.to_thread(_remove, self._directory / guest)
        await asyncio.to_thread(self._secrets.clear, guest)
        await asyncio.to_thread(self._groups.remove, process, guest)

    def scratch(self, guest: GuestId) -> Path:
        return self._directory / guest / SCRATCH_DIRECTORY

    async def output_tail(self, version: Version) -> str:
        data = await asyncio.to_thread(self._output.tail, version.spec.name, TAIL_BYTES, guest=version.guest)
        return data.decode(errors="replace")

    async def said_by_check(self, check: GuestId) -> str:
        data = await asyncio.to_thread(last_bytes, self._directory / check / SAID, TAIL_BYTES)
        return data.decode(errors="replace")

    def sweep(self, known: Collection[GuestId]) -> None:
        """Remove the directories of guests that no record knows."""
        for path in self._directory.iterdir():
            if path.name not in known:
                _remove(path)
        self._secrets.sweep(known)
        self._groups.sweep(known)


def limits_of(spec: ProcessSpec) -> Limits:
    """What the guest's control group is told. Scratch space in memory comes on top of the program's memory."""
    scratch = spec.disk_bytes if spec.disk_bytes <= MAX_SCRATCH_IN_MEMORY_BYTES else 0
    return Limits(spec.memory_bytes + MEMORY_OVERHEAD_BYTES + scratch, spec.cores_milli)


def _remove(own: Path) -> None:
    """Remove a guest's directory; what cannot be removed now is swept up when the agent starts again."""
    try:
        trees.remove_tree(own)
    except OSError as error:
        _log.warning("%s cannot be removed: %s", own, error)


def environment(spec: ProcessSpec) -> dict[str, str]:
    """All that the guest's program finds in its environment."""
    found = dict(spec.env)
    for kind, endpoints in (("CONNECT", spec.connect), ("LISTEN", spec.listen)):
        for name, endpoint in endpoints.items():
            found[f"LOWCLOUD_{kind}_{name.upper().replace('-', '_')}"] = address_of(endpoint)
    return found


def address_of(endpoint: Endpoint) -> str:
    """`address:port`, an IPv6 address in brackets."""
    return str(endpoint).rpartition("/")[0]


def _holds(path: Path, digest: Digest) -> bool:
    try:
        return digest_of(path.read_bytes()) == digest
    except FileNotFoundError:
        return False


def _make_directories(own: Path, roots: list[str], files: Collection[str]) -> None:
    own.mkdir(mode=0o700)
    (own / SCRATCH_DIRECTORY).mkdir(mode=0o700)
    for relative in {*roots, *(str(Path(file).parent) for file in files)}:
        (own / relative).mkdir(mode=0o700, parents=True, exist_ok=True)
