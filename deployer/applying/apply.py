"""Carrying out a plan, in an order that leaves nothing half done without saying so.

1. **Look.** The ref must be where the plan starts, by its engine and not by a local copy; every host that is to be
   called must answer, and run what the plan expects. Otherwise nothing happens.
2. **Transfer** what hosts lack, with their help (`deployer.applying.distribution`), to all of them; then **stage** on
   all of them: blobs verified, binaries compiled, room found. Nothing that runs has been touched, and a failure up to
   here has changed nothing but caches.
3. **Decide.** The release is recorded and the ref moved to it by compare-and-swap. Of two operators one wins here.
4. **Execute** the calls, with the plan's probations (`deployer.applying.execute`).
5. **Return**, where something failed and the failed process's `update.on_failure` is `rollback`: the hosts that were
   called go back to the definition before, by a plan and a release like any other. `pause` leaves all where it is.
6. **Report** what the hosts say, and leave word of the release with them (`deployer.applying.word`). Hosts that the
   plan left alone because they did not answer count as not reached: the release names them, and the next `apply` (or
   `deployer.applying.catch_up`) finds and finishes them.

Killed at any point: up to 3 nothing has happened; after it, the ref says what should run, the hosts run what the calls
that reached them made of it, and the next `apply` of the same definition finds and finishes the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import msgspec

from agent.api.calls import Envelope
from agent.client.client import AgentClient
from agent.client.errors import AgentError, CallRefused
from cas.digest import Digest, short
from deployer.applying.distribution import distribute
from deployer.applying.execute import Execution, swallow_cancellation, undisturbed
from deployer.applying.observe import Observed, assume, observe_decided
from deployer.applying.outcome import Applied, Brought, HostEnd, Outcome, ends, unwell
from deployer.applying.site import Site
from deployer.applying.word import leave_word
from deployer.errors import ApplyRaced, DeployerError, HostsUnreachable, StagingFailed, WorldMoved
from deployer.history import release as releases
from deployer.history.release import MAX_BEHIND, Release
from deployer.history.stocktaking import keep_inventory
from deployer.language.schema import Definition
from deployer.planning import plan as plans
from deployer.planning.plan import Plan, plan_digest
from deployer.planning.planners import Version, make_plan, require_true
from deployer.planning.planning import current_version, definition_before
from deployer.planning.signing import Signed

RETURN_PLANNER = "minimal"
"""Hosts go back as quickly as they can."""
MAX_REASON_CHARS = 2000


async def apply(
    site: Site,
    plan: Plan,
    *,
    message: str = "",
    kind: releases.Kind = "apply",
    restores: Digest | None = None,
    signed: Signed | None = None,
    forget: Collection[str] = (),
) -> Applied:
    """Carry out a plan. `signed`: the signed plan that it came in. `forget`: hosts that left the definition and of
    which nothing is expected any more. Raises, with nothing that runs touched: PlanAltered, ApplyRaced,
    WorldMoved, HostsUnreachable, TransferFailed, StagingFailed, EngineUnreachable. From the first call on it does not
    raise but tells in its result; cancelled, it finishes the calls that are under way, and tells too."""
    clock = asyncio.get_running_loop().time
    began = clock()
    plan_name = plan_digest(plan)
    following = await asyncio.to_thread(releases.read_definition, site.store, plan.definition)
    require_true(plan, following)
    if plan.is_empty and plan.definition == plan.from_definition and not forget:
        return _unchanged(plan, plan_name, following)
    await _look(site, plan)
    behind, leaving = await asyncio.to_thread(_left_over, site, plan, following, forget)
    await asyncio.to_thread(site.store.put, plans.encode(plan), name=f"plan/{site.ref}")
    inventory = await asyncio.to_thread(keep_inventory, site.store, site.ref, following, plan.from_release)
    brought = await _make_ready(site, plan, plan_name, following, inventory)
    release = Release(
        definition=plan.definition,
        plan=plan_name,
        parent=plan.from_release,
        at_unix_ns=site.now_ns(),
        by=site.by,
        message=message,
        kind=kind,
        restores=restores,
        behind=behind,
        leaving=leaving,
        signed=await _kept(site, signed),
        signed_by=signed.who if signed else "",
        inventory=inventory,
    )
    site.progress.phase("release", 0)
    deciding = asyncio.ensure_future(asyncio.to_thread(releases.publish, site.store, site.ref, release))
    interrupted = await undisturbed([deciding])
    link = deciding.result()
    execution = Execution(site, plan, plan_name=plan_name, release=link.digest, interrupted=interrupted)
    await execution.run()
    applied = await _report(site, plan, following, execution)
    if _should_return(plan, execution, kind):
        applied = await _return(site, plan, applied)
    if applied.revert is None and not applied.interrupted and not applied.superseded:
        leaving_word = asyncio.ensure_future(leave_word(site, following, link, applied))
        await undisturbed([leaving_word])
        applied = msgspec.structs.replace(applied, unheard=leaving_word.result())
    sent = sum(one.deployer_bytes for one in brought.values())
    return msgspec.structs.replace(applied, bytes_sent=sent, brought=brought, seconds=round(clock() - began, 3))


# --- before anything is touched -------------------------------------------------------------------------------------


def _unchanged(plan: Plan, plan_name: Digest, following: Definition) -> Applied:
    behind = set(plan.unreachable) & set(following.host)
    return Applied(
        outcome=Outcome.PARTIAL if behind else Outcome.UNCHANGED,
        plan=plan_name,
        release=plan.from_release,
        hosts=dict.fromkeys(plan.unreachable, HostEnd.UNKNOWN),
    )


async def _look(site: Site, plan: Plan) -> None:
    head = await asyncio.to_thread(_head_now, site)
    if head != plan.from_release:
        raise ApplyRaced(
            f"the plan starts at release {_name(plan.from_release)}, but {site.ref!r} is at {_name(head)} by now"
        )
    site.progress.phase("observe", len(plan.hosts()))
    observed = await observe_decided(site.fleet, plan.hosts(), site.progress)
    if observed.unreachable:
        raise HostsUnreachable(observed.unreachable)
    moved = list(_differences(plan, observed))
    if moved:
        raise WorldMoved("the hosts no longer run what the plan expects:", moved)
    if len(plan.unreachable) > MAX_BEHIND:
        raise HostsUnreachable(dict.fromkeys(plan.unreachable, f"at most {MAX_BEHIND} hosts may be left for later"))


def _head_now(site: Site) -> Digest | None:
    """Where the ref is by its engine. A local copy would do for reading; but where the engine does not answer, the
    release could not be decided later, and hosts would have staged for nothing. Raises EngineUnreachable."""
    from cas.engines.shared import SharedStore

    if isinstance(site.store, SharedStore):
        return site.store.fresh_refs().get(site.ref)
    return site.store.read_ref(site.ref)


def _left_over(
    site: Site, plan: Plan, following: Definition, forget: Collection[str]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """`Release.behind` and `Release.leaving`. What the release before has left over, and this plan has not looked at,
    goes on with it."""
    before = releases.read(site.store, plan.from_release) if plan.from_release else None
    addresses = {**(before.leaving if before else {}), **site.fleet.addresses}
    unseen = {*before.behind, *before.leaving} - set(plan.expect) - set(forget) if before else set()
    silent = unseen | set(plan.unreachable)
    may_run = silent | {host for host, runs in plan.expect.items() if runs}
    leaving = {
        host: addresses[host] for host in sorted(may_run - set(following.host) - set(forget)) if host in addresses
    }
    return tuple(sorted(silent & {*following.host, *leaving})), leaving


async def _kept(site: Site, signed: Signed | None) -> Digest | None:
    if signed is None:
        return None
    return (await asyncio.to_thread(site.store.put, signed.data, name=f"signed-plan/{site.ref}")).digest


def _differences(plan: Plan, observed: Observed) -> list[str]:
    found: list[str] = []
    for host, runs in observed.state().items():
        expected = plan.expect.get(host, {})
        found += [
            f"{name}@{host} is {_name(runs.get(name))}, not {_name(expected.get(name))}"
            for name in sorted({*runs, *expected})
            if runs.get(name) != expected.get(name)
        ]
    return found


async def _make_ready(
    site: Site, plan: Plan, plan_name: Digest, following: Definition, inventory: Digest | None
) -> dict[str, Brought]:
    """Bring every blob to every host and have every host stage. Returns what came to each host from where."""
    blobs = plans.blobs_by_host(plan)
    site.progress.phase("transfer", len(blobs))
    brought = await distribute(site, blobs, following, inventory)
    staging = plans.staging(plan)
    site.progress.phase("stage", len(staging))

    async def stage(client: AgentClient) -> None:
        for call in staging[client.host_name]:
            await client.call(Envelope(call, plan=plan_name, by=site.by))

    answers = await site.fleet.each(staging, stage)
    if answers.failures:
        hints = {error.hint for error in answers.failures.values() if error.hint}
        raise StagingFailed(
            {host: _why(error) for host, error in answers.failures.items()}, hint=hints.pop() if len(hints) == 1 else ""
        )
    return brought


def _why(error: AgentError) -> str:
    return error.refusal.message if isinstance(error, CallRefused) else str(error)


# --- afterwards -----------------------------------------------------------------------------------------------------


async def _report(site: Site, plan: Plan, following: Definition, execution: Execution) -> Applied:
    observed, interrupted = execution.last_look, False
    if observed is None or not set(plan.hosts()) <= set(observed.hosts):
        observing = asyncio.ensure_future(observe_decided(site.fleet, plan.hosts(), site.progress))
        interrupted = await undisturbed([observing])
        observed = observing.result()
    reached = ends(plan, observed)
    behind = set(plan.unreachable) & set(following.host)
    if execution.went_well:  # it may be that what ran when its stage ended does not run any more
        execution.unwell += unwell(tuple(plan.steps()), observed)
    whole = not behind and all(end is HostEnd.NEW for end in reached.values())
    return Applied(
        outcome=Outcome.APPLIED if whole else Outcome.PARTIAL,
        plan=execution.plan_name,
        release=execution.release,
        calls=tuple(execution.done),
        hosts=reached | dict.fromkeys(plan.unreachable, HostEnd.UNKNOWN),
        interrupted=execution.interrupted or interrupted,
        superseded=execution.superseded,
        trouble="; ".join(text for _, text in execution.unwell),
    )


def _should_return(plan: Plan, execution: Execution, kind: releases.Kind) -> bool:
    """A failure leads back unless one of the failed processes says `pause`. What was interrupted stays as it is, and a
    revert that fails is not reverted."""
    if execution.went_well or execution.interrupted or execution.superseded or kind == "revert":
        return False
    failed = {(call.host, call.subject) for call in execution.done if not call.ok}
    failed |= {(step.host, step.subject) for step, _ in execution.unwell}
    rules = {step.spec.update.on_failure for step in plan.steps() if step.spec and (step.host, step.subject) in failed}
    return "pause" not in rules


async def _return(site: Site, plan: Plan, applied: Applied) -> Applied:
    """Bring every host that was called back to the definition before, and look where they are then."""
    try:
        before = await asyncio.to_thread(definition_before, site.store, plan)
        back = await _plan_back(site, plan, before, applied.release)
        site.progress.phase("revert", len(back.hosts()))
        message = f"revert of {_name(applied.release)}: {_first_trouble(applied)}"[:MAX_REASON_CHARS]
        revert = await apply(site, back, message=message, kind="revert", restores=plan.from_release)
        observed = await observe_decided(site.fleet, plan.hosts(), site.progress)
    except asyncio.CancelledError:
        swallow_cancellation()
        return msgspec.structs.replace(applied, interrupted=True, trouble="not reverted: interrupted")
    except (DeployerError, AgentError) as error:
        return msgspec.structs.replace(
            applied, trouble=f"not reverted: {error}", superseded=isinstance(error, ApplyRaced)
        )
    should = assume(before.definition).state()
    returned = {host for host, runs in observed.state().items() if runs == should.get(host, {})}
    hosts = ends(plan, observed) | dict.fromkeys(returned, HostEnd.OLD)
    whole = revert.outcome is Outcome.APPLIED and returned == set(plan.hosts())
    outcome = Outcome.REVERTED if whole else Outcome.PARTIAL
    return msgspec.structs.replace(applied, outcome=outcome, hosts=hosts, revert=revert)


async def _plan_back(site: Site, plan: Plan, before: Version, failed_release: Digest | None) -> Plan:
    newest = await asyncio.to_thread(releases.head, site.store, site.ref)
    if newest is None or newest.digest != failed_release:
        raise ApplyRaced(f"{site.ref!r} was moved by another apply, which decides what runs now")
    failed = await asyncio.to_thread(current_version, site.store, newest)
    observed = await observe_decided(site.fleet, plan.hosts(), site.progress)
    return make_plan(RETURN_PLANNER, failed, before, observed, from_release=newest.digest)


def _first_trouble(applied: Applied) -> str:
    if applied.failed:
        first = applied.failed[0]
        return f"{first.kind} of {first.subject}@{first.host}: {first.message}"
    return applied.trouble


def _name(digest: Digest | None) -> str:
    return short(digest) if digest else "nothing"
