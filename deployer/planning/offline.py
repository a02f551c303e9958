"""Can a plan be carried out with what the hosts have? Asked before a rollback, when the network may be the trouble.

A host needs nothing from elsewhere if every blob of what it would run is in its store and every binary is compiled for
the engine it has. Asking changes nothing there but protects the blobs from collection for an hour.
"""

from __future__ import annotations

import msgspec

from agent.client.client import AgentClient
from cas.digest import Digest
from deployer.applying.site import Site
from deployer.applying.transfer import Lack, costs, lacks
from deployer.planning.plan import Plan, blobs_by_host


class HostReadiness(msgspec.Struct, frozen=True, kw_only=True):
    """What one host that the plan calls has of what it needs."""

    host: str
    missing: tuple[Digest, ...]
    """Blobs that would have to be sent."""
    uncompiled: tuple[Digest, ...]
    """Binaries that it would have to compile."""
    bytes: int
    """About how many would be sent."""

    @property
    def offline(self) -> bool:
        """True where it needs nobody."""
        return not self.missing and not self.uncompiled


async def readiness(site: Site, plan: Plan) -> list[HostReadiness]:
    """Of every host that the plan calls. Raises HostsUnreachable, TransferFailed where a blob that a host lacks is
    nowhere to be had."""
    blobs = blobs_by_host(plan)
    lacking = await lacks(site, blobs)
    sizes = costs(site.store, lacking)
    binaries: dict[str, dict[Digest, None]] = {host: {} for host in blobs}
    for step in plan.steps():
        if step.spec is not None:
            binaries[step.host].setdefault(step.spec.binary)

    async def ask(client: AgentClient) -> tuple[Digest, ...]:
        return await client.uncompiled(binaries[client.host_name])

    uncompiled = (await site.fleet.each(blobs, ask)).all()
    return [
        HostReadiness(
            host=host,
            missing=lacking.get(host, Lack((), ())).missing,
            uncompiled=uncompiled[host],
            bytes=sizes.get(host, 0),
        )
        for host in blobs
    ]
