"""From "this definition should run" to a plan: where the history is, what the hosts say, and then a planner.

Between planning and applying the world may move; that is why a plan says what it expects, and an apply looks again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import NamedTuple

import msgspec

from cas.digest import Digest
from deployer.applying.fleet import addresses_of
from deployer.applying.observe import Observed, observe_decided
from deployer.applying.site import Site
from deployer.errors import HostsUnreachable
from deployer.history import release
from deployer.history.release import Link, ReleaseStore
from deployer.language.schema import Definition
from deployer.planning.plan import Plan
from deployer.planning.planners import Version, make_plan
from deployer.resolving import canonical
from deployer.resolving.gpu import require_gpus
from deployer.resolving.requirements import require_guarantees


def keep_definition(store: ReleaseStore, definition: Definition) -> Version:
    """Store a definition's canonical form, so that releases can name it. Raises CanonicalInvalid, StoreFull."""
    data = canonical.encode(definition)
    return Version(store.put(data, name=f"definition/{definition.name}").digest, definition)


def current_version(store: ReleaseStore, newest: Link | None) -> Version | None:
    """What should run now, or None before the first release."""
    if newest is None:
        return None
    digest = newest.release.definition
    return Version(digest, release.read_definition(store, digest))


def definition_before(store: ReleaseStore, plan: Plan) -> Version:
    """What ran before a plan; before the first release that is the same infrastructure with nothing on it."""
    if plan.from_definition is not None:
        return Version(plan.from_definition, release.read_definition(store, plan.from_definition))
    following = release.read_definition(store, plan.definition)
    empty: Definition = msgspec.structs.replace(following, process={}, volume={})
    return keep_definition(store, empty)


def addresses_for(
    store: ReleaseStore, ref: str, following: Definition | None = None, *, back: bool = False
) -> dict[str, str]:
    """Where all hosts are that a plan to `following` (None: whatever should run now) may have to ask or call, also
    those that the new definition no longer has, and those that may still run something since they left. Where a host's
    address differs, its agent is where `following` says, but for a way `back` to an
    earlier definition it is where it was just now."""
    newest = release.head(store, ref)
    current = current_version(store, newest)
    now = current.definition if current else None
    leaving = newest.release.leaving if newest else {}
    return {**leaving, **(addresses_of(following, now) if back else addresses_of(now, following))}


async def plan_for(
    site: Site, following: Version, planner: str, *, allow_unreachable: bool = False, probation_s: float | None = None
) -> Plan:
    """A plan from what runs to this version. Raises HostsUnreachable unless `allow_unreachable`, which leaves hosts
    alone that do not answer; PlannerMissing, PlannerBroken. `probation_s`: see `make_plan`."""
    start = await starting_point(site, following, allow_unreachable=allow_unreachable)
    return start.plan(planner, probation_s=probation_s)


class StartingPoint(NamedTuple):
    """All that planners are given: one look at the world, from which any of them can make its plan."""

    current: Version | None
    following: Version
    observed: Observed
    from_release: Digest | None

    def plan(self, planner: str, *, probation_s: float | None = None) -> Plan:
        """Raises PlannerMissing, PlannerBroken."""
        return make_plan(
            planner,
            self.current,
            self.following,
            self.observed,
            from_release=self.from_release,
            probation_s=probation_s,
        )


async def starting_point(site: Site, following: Version, *, allow_unreachable: bool = False) -> StartingPoint:
    """Where the history is and what the hosts run. Raises HostsUnreachable unless `allow_unreachable`; GpuNotOffered
    and GuaranteeNotGiven where what follows asks for what a host does not have."""
    newest = await asyncio.to_thread(release.head, site.store, site.ref)
    current = await asyncio.to_thread(current_version, site.store, newest)
    hosts = set(following.definition.host) | set(current.definition.host if current else ())
    left = set(newest.release.leaving) - hosts if newest else set()
    site.progress.phase("observe", len(hosts | left))
    observed = await look(site, hosts, left, allow_unreachable=allow_unreachable)
    require_gpus(following.definition, observed.facts)
    require_guarantees(following.definition, observed.facts)
    return StartingPoint(current, following, observed, newest.digest if newest else None)


async def look(site: Site, hosts: set[str], left: Collection[str] = (), *, allow_unreachable: bool = False) -> Observed:
    """What these hosts run. `left`: hosts that an earlier definition had; they are asked too, but one that never comes
    back is in nobody's way. Raises HostsUnreachable."""
    observed = await observe_decided(site.fleet, hosts.union(left), site.progress)
    silent = {host: why for host, why in observed.unreachable.items() if host not in left}
    if silent and not allow_unreachable:
        raise HostsUnreachable(silent)
    return observed
