"""What `plan`, `apply`, `rollback`, `up` and `demo` share: reading a definition, making a plan, carrying it out, and
saying what came of it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tools.cloud import shown_path
from tools.errors import PARTIAL, UsageError
from tools.output import counted, printable, printable_lines, quoted_output, shorten, size

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Callable, Collection

    from deployer.applying.fleet import Fleet
    from deployer.applying.outcome import Applied, Brought, CallDone
    from deployer.applying.progress import Phase, Progress
    from deployer.applying.site import Site
    from deployer.cloud.cloud import Cloud
    from deployer.history.release import Link
    from deployer.language.schema import Definition
    from deployer.planning.offline import HostReadiness
    from deployer.planning.plan import Plan, Step
    from deployer.planning.planners import Version
    from deployer.planning.signing import Signed
    from deployer.resolving.resolve import Resolved
    from tools.output import Output


def add_definition_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--planner", metavar="NAME", help="how the difference becomes calls (default: as configured)")
    parser.add_argument("--locked", action="store_true", help="take every hash from the lock file and read no file")
    parser.add_argument("--allow-unreachable", action="store_true", help="leave hosts alone that do not answer")
    add_probation_argument(parser)


def add_probation_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--probation", metavar="TIME", help="how long the canary planner watches what has changed (default: 60s)"
    )


def probation_s(args: argparse.Namespace) -> float | None:
    """What `--probation` says, in seconds. Raises UsageError."""
    return seconds(args.probation, "--probation")


def seconds(text: str | None, option: str) -> float | None:
    """A time that an option gives, such as `10m`. Raises UsageError."""
    if text is None:
        return None
    from deployer.language.schema import Unit
    from deployer.language.units import UnitError, parse
    from deployer.planning.plan import MAX_HOLD_S

    try:
        found = parse(Unit.MILLISECONDS, text) / 1000
    except UnitError as error:
        raise UsageError(f"{option}: {error}", hint=error.hint) from error
    if found > MAX_HOLD_S:
        raise UsageError(f"{option} is at most {MAX_HOLD_S / 86400:.0f} days")
    return found


# --- from a file to a version ---------------------------------------------------------------------------------------


def resolved_file(
    cloud: Cloud, file: str | None, out: Output, *, locked: bool = False, writing: bool = False
) -> Resolved:
    """The definition in a file (default: the cloud's own) with every name a hash. Warnings go to stderr. `writing`: the
    caller writes the lock file, so nobody need be told that it should be. Raises DefinitionInvalid; for a lock file
    that cannot be read only where `locked`, because it decides nothing otherwise."""
    from deployer.history.histories import shared_hosts
    from deployer.language import definition
    from deployer.language.problems import DefinitionInvalid
    from deployer.resolving import lock
    from deployer.resolving.resolve import resolve
    from deployer.resolving.secrets import Secrets

    path = Path(file) if file else cloud.definition_path
    lock_path = lock.lock_path(path, cloud.overlay)
    parsed = definition.load(path, cloud.overlay)
    written: lock.Lock | None = None
    try:
        written = lock.read(lock_path)
    except DefinitionInvalid as error:
        if locked:
            raise
        hint = "" if writing else "\n  hint: `lowcloud resolve` writes it anew"
        for problem in error.problems:
            out.remark(f"warning: {lock_path.name} is left aside: {printable(problem.message)}{hint}")
    if locked and written is None:
        raise UsageError(f"there is no {shown_path(lock_path)}", hint="write it with `lowcloud resolve`")
    sealed = Secrets(cloud.store, cloud.ref).newest
    resolved = resolve(parsed, cloud.store, locked=written if locked else None, before=written, sealed=sealed)
    for warning in resolved.warnings:
        out.remark(f"warning: {warning}")
    if cloud.overlay is not None:
        for history, hosts in shared_hosts(cloud.store, cloud.ref, resolved.definition).items():
            out.remark(
                f"warning: {', '.join(hosts)} at the same address in the history {history!r}: what {cloud.overlay!r} "
                "does not name is stopped there\n  hint: let the overlay give its hosts other addresses, or remove them"
            )
    if written is not None and not locked and not writing and written != resolved.lock:
        out.remark(f"note: {lock_path.name} is out of date; `lowcloud resolve` writes it anew")
    return resolved


def version_of_file(cloud: Cloud, file: str | None, out: Output, *, locked: bool = False) -> Version:
    """As `resolved_file`, and kept in the store."""
    from deployer.planning.planning import keep_definition

    return keep_definition(cloud.store, resolved_file(cloud, file, out, locked=locked).definition)


# --- asking and calling hosts ---------------------------------------------------------------------------------------


@asynccontextmanager
async def open_site(
    cloud: Cloud,
    following: Definition | None = None,
    progress: Progress | None = None,
    *,
    back: bool = False,
    fleet: Fleet | None = None,
) -> AsyncIterator[Site]:
    """Everything that an operation on the cloud's hosts needs. `back`: `following` is an earlier definition, so hosts
    whose address differs in it are still where they are now. `fleet`: connections that outlast this; they end with it
    otherwise."""
    from deployer.applying.fleet import Fleet
    from deployer.applying.progress import Quiet
    from deployer.applying.site import Site
    from deployer.cloud import trust
    from deployer.planning.planning import addresses_for

    addresses = addresses_for(cloud.store, cloud.ref, following, back=back)
    by, watching = trust.common_name(cloud.credentials), progress or Quiet()
    if fleet is not None:
        fleet.learn(addresses)
        yield Site(cloud.store, cloud.ref, fleet, by, watching, credentials=cloud.credentials)
        return
    async with Fleet(addresses, cloud.credentials) as own:
        yield Site(cloud.store, cloud.ref, own, by, watching, credentials=cloud.credentials)


async def planned(
    cloud: Cloud,
    following: Version,
    planner: str | None,
    out: Output,
    *,
    allow_unreachable: bool = False,
    probation_s: float | None = None,
    fleet: Fleet | None = None,
) -> tuple[Plan, dict[str, int]]:
    """A plan to this version, and the bytes that each host would be sent."""
    from deployer.planning.planning import plan_for

    async with open_site(cloud, following.definition, Telling(out), fleet=fleet) as site:
        name = planner or cloud.config.planner
        plan = await plan_for(site, following, name, allow_unreachable=allow_unreachable, probation_s=probation_s)
        return plan, await bytes_to_send(site, plan)


async def bytes_to_send(site: Site, plan: Plan) -> dict[str, int]:
    """What carrying out a plan would send to each host."""
    from deployer.applying.transfer import estimate
    from deployer.planning.plan import blobs_by_host

    return await estimate(site, blobs_by_host(plan))


async def carried_out(
    cloud: Cloud,
    plan: Plan,
    out: Output,
    *,
    message: str,
    signed: Signed | None = None,
    forget: Collection[str] = (),
    catch_up_s: float = 0.0,
    fleet: Fleet | None = None,
) -> Applied:
    """Carry out a plan, telling about each call; then, for so long at most, wait for the hosts that are away."""
    from deployer.applying.apply import apply
    from deployer.applying.catch_up import catch_up
    from deployer.planning.planners import Version

    async with _watched(cloud, plan, out, fleet=fleet) as site:
        applied = await apply(site, plan, message=message, signed=signed, forget=forget)
        if not catch_up_s:
            return applied
        from deployer.history import release

        following = Version(plan.definition, release.read_definition(cloud.store, plan.definition))
        return await catch_up(site, applied, following, cloud.config.planner, within_s=catch_up_s)


def refuse_unsigned(cloud: Cloud) -> None:
    """For what makes its plan itself. Raises SignatureInvalid where the cloud takes signed plans only."""
    if cloud.config.require_signed_plans:
        from deployer.planning.signing import require

        require(None, required=True)


def rollback_target(cloud: Cloud, named: str | None = None) -> Link:
    """The release that this (abbreviated) hash names, or the one before what runs. Raises ReleaseMissing,
    NothingReleased."""
    from deployer.history import release

    return release.find(cloud.store, cloud.ref, named) if named else release.previous(cloud.store, cloud.ref)


async def rollback_readiness(
    cloud: Cloud, to: Link, planner: str | None, out: Output
) -> tuple[Plan, list[HostReadiness]]:
    """A plan back to a release, and what each host that answers has of what it would need."""
    from deployer.planning.offline import readiness
    from deployer.planning.rollback import plan_rollback

    async with open_site(cloud, release_definition(cloud, to), Telling(out), back=True) as site:
        plan = await plan_rollback(site, to, planner or cloud.config.planner, allow_unreachable=True)
        return plan, await readiness(site, plan)


async def planned_rollback(
    cloud: Cloud,
    to: Link,
    planner: str | None,
    out: Output,
    *,
    allow_unreachable: bool = False,
    probation_s: float | None = None,
    fleet: Fleet | None = None,
) -> tuple[Plan, dict[str, int]]:
    """A plan back to a release, and the bytes to send."""
    from deployer.planning.rollback import plan_rollback

    async with open_site(cloud, release_definition(cloud, to), Telling(out), back=True, fleet=fleet) as site:
        name = planner or cloud.config.planner
        plan = await plan_rollback(site, to, name, allow_unreachable=allow_unreachable, probation_s=probation_s)
        return plan, await bytes_to_send(site, plan)


async def rolled_back(
    cloud: Cloud, plan: Plan, to: Link, out: Output, *, message: str = "", fleet: Fleet | None = None
) -> Applied:
    """As `carried_out`, for a rollback."""
    from deployer.planning.rollback import rollback

    async with _watched(cloud, plan, out, back=True, fleet=fleet) as site:
        return await rollback(site, plan, to, message=message)


def release_definition(cloud: Cloud, link: Link) -> Definition:
    from deployer.history import release

    return release.read_definition(cloud.store, link.release.definition)


@asynccontextmanager
async def _watched(
    cloud: Cloud, plan: Plan, out: Output, *, back: bool = False, fleet: Fleet | None = None
) -> AsyncIterator[Site]:
    from deployer.history import release

    following = release.read_definition(cloud.store, plan.definition)
    with out.progress("send") as bar:
        async with open_site(cloud, following, Telling(out, bar), back=back, fleet=fleet) as site:
            yield site


class Telling:
    """A `deployer.applying.progress.Progress` that prints each call as it ends and moves a bar while bytes are sent,
    where there is one."""

    def __init__(self, out: Output, bar: Callable[[int, int], object] = lambda *_: None) -> None:
        self._out = out
        self._bar = bar
        self._sent: dict[str, tuple[int, int]] = {}

    def phase(self, phase: Phase, hosts: int) -> None:
        words = {
            "undecided": "waiting for an earlier call on",
            "transfer": "sending to",
            "stage": "staging on",
            "probation": "watching",
            "revert": "bringing back",
            "catch-up": "waiting for",
        }
        if phase in words and hosts:
            self._out.remark(f"{words[phase]} {counted(hosts, 'host')}")

    def transfer(self, host: str, done_bytes: int, total_bytes: int) -> None:
        self._sent[host] = (done_bytes, total_bytes)
        self._bar(sum(done for done, _ in self._sent.values()), sum(total for _, total in self._sent.values()))

    def step(self, step: Step, state: Literal["begins", "done", "failed"], detail: str = "") -> None:
        if state == "done":
            how = f" ({printable(detail)})" if detail else ""
            self._out.remark(f"  {step.kind} {step.subject}@{step.host}: done{how}")
        if state == "failed":
            self._out.remark(f"  {step.kind} {step.subject}@{step.host}: FAILED: {printable(detail)}")


# --- what came of it ------------------------------------------------------------------------------------------------


def applied_as_dict(applied: Applied) -> dict[str, Any]:
    """The stable JSON of an apply or a rollback."""
    return {
        "release": applied.release,
        "plan": applied.plan,
        "outcome": str(applied.outcome),
        "calls": len(applied.calls),
        "failed": len(applied.failed),
        "seconds": applied.seconds,
        "bytes_sent": applied.bytes_sent,
        "brought": {host: _brought_as_dict(one) for host, one in applied.brought.items()},
        "hosts": {host: str(end) for host, end in applied.hosts.items()},
        "done": [_call_as_dict(call) for call in applied.calls],
        "interrupted": applied.interrupted,
        "superseded": applied.superseded,
        "trouble": applied.trouble,
        "unheard": applied.unheard,
        "revert": applied_as_dict(applied.revert) if applied.revert else None,
    }


def show_applied(applied: Applied, out: Output) -> None:
    """The same for a person."""
    from deployer.applying.outcome import Outcome
    from tools.showing import HOST_ENDS

    for call in applied.failed:
        out.line(f"{call.kind} of {call.subject}@{call.host} failed: {printable(call.message)}")
        for line in quoted_output(call.output_tail):
            out.line(line)
        if call.hint:
            out.line(f"  hint: {call.hint}")
    if applied.trouble:
        for line in printable_lines(applied.trouble):
            out.line(line)
    if applied.outcome is Outcome.UNCHANGED:
        out.line("nothing to do: every host runs it already")
        return
    if applied.outcome is Outcome.REVERTED:
        out.line("every host that was called runs again what it ran before")
    if applied.outcome is Outcome.PARTIAL:
        out.table(("HOST", "RUNS"), [(host, HOST_ENDS[str(end)]) for host, end in sorted(applied.hosts.items())])
    if applied.interrupted and applied.outcome is Outcome.APPLIED:
        out.line("the interruption came when everything was under way already; nothing is left to do")
    elif applied.is_behind:
        out.line("hosts that did not answer follow with the next `lowcloud apply`, or now with `--catch-up 10m`")
    elif applied.interrupted:
        out.line("it was interrupted; apply again to go on, or roll back")
    _show_brought(applied, out)
    if applied.unheard:
        out.line(f"hosts that were away do not hear of this release from others: {printable(applied.unheard)}")
    calls = counted(len(applied.calls), "call")
    whole_bytes = sum(one.whole_bytes for one in applied.brought.values())
    sent = f"{size(applied.bytes_sent)} sent{_saved(whole_bytes, applied.bytes_sent)}"
    out.line(f"{applied.outcome}: release {shorten(applied.release)}, {calls}, {sent}, {applied.seconds:.2f} s")


def _show_brought(applied: Applied, out: Output) -> None:
    """What came from where, where hosts have helped each other."""
    brought = applied.brought
    if not any(one.region_bytes or one.border_bytes for one in brought.values()):
        return
    by_region: dict[str, list[tuple[str, Brought]]] = {}
    for host, one in sorted(brought.items()):
        by_region.setdefault(one.region, []).append((host, one))
    rows: list[tuple[str, ...]] = []
    for region, hosts in sorted(by_region.items()):
        rows += [(region, host, *_brought_as_row([one])) for host, one in hosts]
        if len(hosts) > 1:
            rows.append((region, f"all {len(hosts)}", *_brought_as_row([one for _, one in hosts])))
    out.table(("REGION", "HOST", "FROM HERE", "FROM ITS REGION", "ACROSS A BORDER", "WHOLE"), rows)
    for host, one in sorted(brought.items()):
        for liar in one.wrong:
            out.line(
                f"{liar} sent wrong bytes to {host}, which threw them away\n  hint: `lowcloud check --host {liar}`"
            )


def _brought_as_row(some: list[Brought]) -> tuple[str, ...]:
    """From where how many bytes came, and what they have made."""
    return (
        size(sum(one.deployer_bytes for one in some)),
        size(sum(one.region_bytes for one in some)),
        size(sum(one.border_bytes for one in some)),
        size(sum(one.whole_bytes for one in some)),
    )


def _saved(whole_bytes: int, sent_bytes: int) -> str:
    """What deltas, compression and neighbours have spared this machine."""
    if sent_bytes >= whole_bytes:
        return ""
    return f" ({size(whole_bytes - sent_bytes)} of {size(whole_bytes)} saved)"


def exit_code(applied: Applied) -> int:
    return PARTIAL if applied.exit_code else 0


def _brought_as_dict(brought: Brought) -> dict[str, Any]:
    return {
        "deployer_bytes": brought.deployer_bytes,
        "region_bytes": brought.region_bytes,
        "border_bytes": brought.border_bytes,
        "blobs": brought.blobs,
        "whole_bytes": brought.whole_bytes,
        "region": brought.region,
        "wrong": list(brought.wrong),
    }


def _call_as_dict(call: CallDone) -> dict[str, Any]:
    return {
        "call": str(call.kind),
        "host": call.host,
        "process": call.subject,
        "ok": call.ok,
        "changed": call.changed,
        "ms": call.ms,
        "steps": call.steps,
        "reason": str(call.reason) if call.reason else None,
        "message": call.message,
        "hint": call.hint,
        "output": call.output_tail,
    }
