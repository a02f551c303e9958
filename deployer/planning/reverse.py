"""The way back from a plan, found in the plan alone: every step carries what it replaces.

The stages come in the opposite order, and each call is turned round: what was started is stopped, what was stopped is
started, what was changed is changed back. So what frees a port or room again does so before it is needed, and whoever
listens is there before who connects. Volumes stay, because what is in them is not the plan's to delete; a volume that
grew stays large. There are no probations: back is where it was good.

A plan followed by its reverse is the identity on what runs.
"""

from __future__ import annotations

import msgspec

from agent.api.processes import spec_digest
from cas.digest import Digest
from deployer.errors import NotReversible
from deployer.language.fields import field_at
from deployer.planning.plan import Changed, Kind, Plan, Step, advance
from deployer.planning.planners.needs import changes_of, kind_of, strongest

PLANNER = "reverse"
LEFT_BY_A_FIRST_PLAN = ("process", "volume")
"""What goes again where nothing was before: the hosts and regions that a first plan has found stay."""
TURNED = {
    Kind.START: Kind.STOP,
    Kind.STOP: Kind.START,
    Kind.REPLACE: Kind.REPLACE,
    Kind.CONFIGURE: Kind.CONFIGURE,
    Kind.RESIZE: Kind.RESIZE,
}
"""Where a process is changed, what is changed back decides on the call."""


def reverse(plan: Plan, *, definition: Digest, from_release: Digest | None) -> Plan:
    """The plan that undoes this one, once it has been carried out as `from_release`. `definition` is what should run
    then: the plan's `from_definition`, or for a first plan one without processes. Raises NotReversible for a plan that
    does not carry what it replaces (one of an older lowcloud)."""
    stages = (tuple(_turned(step) for step in stage if step.kind in TURNED) for stage in reversed(plan.stages))
    return Plan(
        planner=PLANNER,
        definition=definition,
        from_release=from_release,
        from_definition=plan.definition,
        expect=advance(plan.expect, plan.steps()),
        stages=tuple(stage for stage in stages if stage),
        changes=tuple(
            _taken_back(one) for one in plan.changes if plan.from_definition or one.path[0] in LEFT_BY_A_FIRST_PLAN
        ),
        notes=tuple(_notes(plan)),
        unreachable=plan.unreachable,
    )


def _turned(step: Step) -> Step:
    if step.expect is not None and step.was is None:
        raise NotReversible(f"the plan does not say what {step.subject}@{step.host} ran before its {step.kind}")
    turned = msgspec.structs.replace(
        step,
        kind=TURNED[step.kind],
        spec=step.was,
        was=step.spec,
        expect=spec_digest(step.spec) if step.spec else None,
    )
    if step.spec is None or step.was is None:
        return turned
    changes = changes_of(step.spec, step.was)  # what could become more in place may need a swap to become less
    return msgspec.structs.replace(turned, kind=kind_of(changes), change=strongest(changes))


def _taken_back(changed: Changed) -> Changed:
    field = field_at(changed.path)
    return changed if field is None else msgspec.structs.replace(changed, change=field.change_back(changed.change))


def _notes(plan: Plan) -> list[str]:
    return [
        f"volume {step.subject} on {step.host} stays as the plan has made it"
        for step in plan.steps()
        if step.kind is Kind.CREATE_VOLUME
    ]
