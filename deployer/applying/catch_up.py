"""Bringing hosts up to date that did not answer when a release was made, as soon as they are back.

A release does not wait for hosts that are away: it names them (`Release.behind`), `status` tells which hosts are not
what they should be, and any later apply finishes them. Who wants to stay until that is done stays here: hosts are asked
again and again; when one answers, what it lacks is planned and carried out like anything else, as a release of the very
same definition, so that what a host did can be proved by a plan.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from agent.client.errors import AgentError
from deployer.applying.apply import apply
from deployer.applying.execute import swallow_cancellation
from deployer.applying.observe import observe
from deployer.applying.outcome import Applied, HostEnd, Outcome
from deployer.applying.site import Site
from deployer.errors import ApplyRaced, DeployerError, HostsUnreachable, WorldMoved
from deployer.history import release as releases
from deployer.planning.planners import Version
from deployer.planning.planning import plan_for

LOOK_AGAIN_S: Final = 2.0
"""Between two rounds of asking; one that does not answer at all takes some seconds more."""


async def catch_up(site: Site, applied: Applied, following: Version, planner: str, *, within_s: float) -> Applied:
    """Go on after an apply until every host of the definition runs its part, for so long at most. Ends sooner where
    something fails, or another operator's release takes over. Returns what became of it as a whole; never raises for
    what hosts answer."""
    clock = asyncio.get_running_loop().time
    ends = clock() + within_s
    try:
        while applied.is_behind and clock() < ends:
            await _any_answers(site, applied, ends)
            try:
                applied = _both(applied, await _once_more(site, following, planner, applied))
            except (HostsUnreachable, WorldMoved):  # gone again, or moved under the plan: look anew
                await asyncio.sleep(LOOK_AGAIN_S)
    except asyncio.CancelledError:
        swallow_cancellation()
        return msgspec.structs.replace(applied, interrupted=True)
    except ApplyRaced as error:
        return msgspec.structs.replace(applied, superseded=True, trouble=str(error))
    except (DeployerError, AgentError) as error:
        return msgspec.structs.replace(applied, trouble=f"catching up ended: {error}")
    return applied


def away(applied: Applied) -> list[str]:
    """The hosts that were left for later."""
    return [host for host, end in applied.hosts.items() if end is HostEnd.UNKNOWN]


async def _any_answers(site: Site, applied: Applied, ends: float) -> None:
    hosts = away(applied)
    site.progress.phase("catch-up", len(hosts))
    clock = asyncio.get_running_loop().time
    while clock() < ends:
        if (await observe(site.fleet, hosts)).hosts:
            return
        await asyncio.sleep(min(LOOK_AGAIN_S, max(0.0, ends - clock())))


async def _once_more(site: Site, following: Version, planner: str, applied: Applied) -> Applied:
    newest = await asyncio.to_thread(releases.head, site.store, site.ref)
    if newest is None or newest.digest != applied.release:
        raise ApplyRaced(f"{site.ref!r} was moved by another apply, which decides what runs now")
    plan = await plan_for(site, following, planner, allow_unreachable=True)
    return await apply(site, plan, message=f"catching up with {', '.join(away(applied))[:200]}")


def _both(first: Applied, then: Applied) -> Applied:
    """What became of two applies of one definition, told as one."""
    left = {host: end for host, end in first.hosts.items() if end is not HostEnd.UNKNOWN}
    whole = then.outcome in (Outcome.UNCHANGED, Outcome.APPLIED)
    back = dict.fromkeys(away(first), HostEnd.NEW) if whole else {}
    return msgspec.structs.replace(
        then,
        outcome=Outcome.APPLIED if whole else then.outcome,
        calls=first.calls + then.calls,
        hosts=dict(sorted((left | back | then.hosts).items())),
        bytes_sent=first.bytes_sent + then.bytes_sent,
        brought=first.brought | then.brought,
        seconds=round(first.seconds + then.seconds, 3),
    )
