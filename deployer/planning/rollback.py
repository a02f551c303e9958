"""Back to an earlier release: not by rewriting the history, but by a new release of the very same definition.

The bytes of the definition are those of then, so is their digest, so are the digests of every binary and configuration
in it: the hosts are asked for exactly what they ran. How they get there is planned from what they run now, like any
other plan.
"""

from __future__ import annotations

import asyncio

from cas.digest import short
from deployer.applying.apply import apply
from deployer.applying.outcome import Applied
from deployer.applying.site import Site
from deployer.history import release as releases
from deployer.history.release import Link
from deployer.planning.plan import Plan
from deployer.planning.planners import Version
from deployer.planning.planning import plan_for


def target(site: Site, named: str | None = None) -> Link:
    """The release to go back to: the one that this (abbreviated) digest names, or the previous one (see
    `release.previous`). Raises ReleaseMissing, NothingReleased."""
    if named is not None:
        return releases.find(site.store, site.ref, named)
    return releases.previous(site.store, site.ref)


async def plan_rollback(
    site: Site, to: Link, planner: str, *, allow_unreachable: bool = False, probation_s: float | None = None
) -> Plan:
    """A plan from what runs now to the definition of an earlier release. Raises what `planning.plan_for` raises, and
    BlobMissing or BlobDamaged where that definition is not in the store any more."""
    following = await asyncio.to_thread(version_at, site, to)
    return await plan_for(site, following, planner, allow_unreachable=allow_unreachable, probation_s=probation_s)


def version_at(site: Site, link: Link) -> Version:
    """What a release says should run. Raises BlobMissing, BlobDamaged."""
    digest = link.release.definition
    return Version(digest, releases.read_definition(site.store, digest))


async def rollback(site: Site, plan: Plan, to: Link, *, message: str = "") -> Applied:
    """Carry out a plan that `plan_rollback` has made; as `apply`. The message says what it is, whatever is added."""
    said = f"rollback to {short(to.digest)}"
    if to.release.message and to.release.kind == "apply":  # a rollback's own message would nest without end
        said += f" ({to.release.message.splitlines()[0]})"
    if message:
        said += f": {message}"
    return await apply(site, plan, message=said[: releases.MAX_MESSAGE_CHARS], kind="rollback", restores=to.digest)
