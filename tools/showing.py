"""How plans and what came of them are shown, as text and as JSON. Used by every verb that plans or applies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tools.output import printable, printable_lines, shorten, size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deployer.planning.comparison import Cost
    from deployer.planning.plan import Plan, Step
    from deployer.planning.simulate import Simulated
    from deployer.planning.timing import Links
    from tools.output import Output


def plan_as_dict(plan: Plan, sizes: Mapping[str, int]) -> dict[str, Any]:
    """The stable JSON of a plan; `sizes` are the bytes to send to each host."""
    from deployer.planning.plan import plan_digest

    return {
        "plan": plan_digest(plan),
        "from": plan.from_release,
        "to": plan.definition,
        "planner": plan.planner,
        "stages": [[_step_as_dict(step) for step in stage] for stage in plan.stages],
        "changes": [{"path": dotted(changed.path), "change": str(changed.change)} for changed in plan.changes],
        "bytes": dict(sizes),
        "notes": list(plan.notes),
        "unreachable": list(plan.unreachable),
        "holds": [{"after": hold.after, "seconds": hold.hold_s} for hold in plan.holds],
    }


def show_plan(plan: Plan, sizes: Mapping[str, int], out: Output) -> None:
    """A plan for a person."""
    start = f"release {shorten(plan.from_release)}" if plan.from_release else "nothing"
    out.line(f"from {start} to definition {shorten(plan.definition)}, by planner {plan.planner}")
    rows = [
        (str(number), str(step.kind), f"{step.subject}@{step.host}", str(step.change), why)
        for number, stage in enumerate(plan.stages, 1)
        for step in stage
        for why in [_why(step)]
    ]
    if rows:
        out.table(("STAGE", "CALL", "WHERE", "CLASS", "BECAUSE OF"), rows, right=("STAGE",))
    else:
        out.line(f"every host {'that answers ' if plan.unreachable else ''}runs it already: nothing to call")
    called = {cause.path for step in plan.steps() for cause in step.causes}
    quiet = [dotted(changed.path) for changed in plan.changes if changed.path not in called]
    if quiet and plan.from_definition:
        out.line(f"changed without a call: {', '.join(quiet)}")
    if sizes:
        out.line("to send: " + ", ".join(f"{host} {size(count)}" for host, count in sorted(sizes.items())))
    for hold in plan.holds:
        out.line(f"after stage {hold.after}: a probation of {hold.hold_s:g} s")
    for note in plan.notes:
        out.line(f"note: {note}")


def show_costs(costs: Sequence[Cost], links: Links, out: Output) -> None:
    """Plans of several planners side by side."""
    rows = [
        (
            cost.planner,
            str(cost.calls),
            str(cost.stages),
            str(cost.hosts),
            size(cost.bytes),
            f"{cost.seconds:.2f}",
            f"{cost.probation_s:g}",
            f"{cost.risk.at_once} of {cost.risk.of} {cost.risk.process}" if cost.risk.at_once else "none",
        )
        for cost in costs
    ]
    head = ("PLANNER", "CALLS", "STAGES", "HOSTS", "TO SEND", "SECONDS", "PROBATION", "MOST AT RISK AT ONCE")
    out.table(head, rows, right=head[1:-1])
    out.line(
        f"SECONDS are a model: {size(links.bytes_per_s)}/s and {links.round_trip_s * 1000:g} ms to each host, "
        "a constant for each kind of call, probations included"
    )


def simulated_as_dict(plan: Plan, result: Simulated) -> dict[str, Any]:
    """The stable JSON of a simulation."""
    from deployer.planning.plan import plan_digest

    return {
        "plan": plan_digest(plan),
        "outcome": result.outcome,
        "exit": result.exit_code,
        "seconds": result.seconds,
        "hosts": {host: str(end) for host, end in result.hosts.items()},
        "trouble": result.trouble,
        "failures": [{**_as_builtins(failure), "text": str(failure)} for failure in result.failures],
        "history": [{"at": happening.at_s, "what": happening.what} for happening in result.history],
    }


def show_simulated(result: Simulated, out: Output) -> None:
    """A simulation for a person."""
    for failure in result.failures:
        out.line(f"fails: {failure}")
    rows = [(f"{happening.at_s:.3f}", printable(happening.what)) for happening in result.history]
    out.table(("SECOND", "WHAT"), rows, right=("SECOND",))
    if result.hosts:
        out.table(("HOST", "WOULD RUN"), [(host, HOST_ENDS[str(end)]) for host, end in sorted(result.hosts.items())])
    if result.trouble:
        for line in printable_lines(result.trouble):
            out.line(line)
    out.line(f"it would end as {result.outcome} after {result.seconds:.2f} s, with exit code {result.exit_code}")


def _as_builtins(value: Any) -> dict[str, Any]:
    import msgspec

    found: dict[str, Any] = msgspec.to_builtins(value)
    return found


HOST_ENDS: Mapping[str, str] = {
    "new": "all of the new version",
    "old": "the version before",
    "between": "part of each, or something else: `lowcloud status` tells",
    "unwell": "the new version, but a process does not run",
    "unknown": "unknown: it does not answer",
}


def dotted(path: tuple[str, ...]) -> str:
    """A field as the definition file writes it."""
    from deployer.language.wording import dotted as written

    return written(path)


def _step_as_dict(step: Step) -> dict[str, Any]:
    return {
        "call": str(step.kind),
        "host": step.host,
        "process": step.subject,
        "class": str(step.change),
        "fields": [{"path": dotted(cause.path), "drift": cause.drift} for cause in step.causes],
    }


def _why(step: Step) -> str:
    return ", ".join(dotted(cause.path) + (" (drift)" if cause.drift else "") for cause in step.causes)
