"""How plans and what came of them are shown, as text and as JSON. Used by every verb that plans or applies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tools.output import shorten, size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deployer.plan import Plan, Step
    from tools.output import Output


def plan_as_dict(plan: Plan, sizes: Mapping[str, int]) -> dict[str, Any]:
    """The stable JSON of a plan; `sizes` are the bytes to send to each host."""
    from deployer.plan import plan_digest

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
        out.line("every host runs it already: nothing to call")
    called = {cause.path for step in plan.steps() for cause in step.causes}
    quiet = [dotted(changed.path) for changed in plan.changes if changed.path not in called]
    if quiet and plan.from_definition:
        out.line(f"changed without a call: {', '.join(quiet)}")
    if sizes:
        out.line("to send: " + ", ".join(f"{host} {size(count)}" for host, count in sorted(sizes.items())))
    for host in plan.unreachable:
        out.line(f"left alone, because it does not answer: {host}")
    for note in plan.notes:
        out.line(f"note: {note}")


def dotted(path: tuple[str, ...]) -> str:
    """A field as the definition file writes it."""
    from deployer.wording import dotted as written

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
