"""Planners: from what is and what should be to a plan. They are plural, pure, and found by name.

A planner is a function `(current, next, observed) -> Plan` without input or output: `current` is the definition of the
newest release (None before the first), `next` the one to reach, `observed` what the hosts say. It decides which calls
and in which order; it never calls. Packages add their own through the entry-point group `lowcloud.planners`.

Whatever a planner gives is checked before anyone sees it: its calls must lead every host that answered from the
observed state to exactly the next definition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from agent.api.processes import spec_digest
from cas.digest import Digest
from deployer.applying.observe import Observed
from deployer.errors import PlanAltered, PlannerBroken, PlannerMissing
from deployer.language.schema import Definition
from deployer.planning.plan import Hold, Kind, Plan, Step, advance
from deployer.resolving.canonical import version_of
from deployer.resolving.specs import SpecImpossible, specs_of, volumes_of

Planner = Callable[[Definition | None, Definition, Observed], Plan]

GROUP: Final = "lowcloud.planners"
BUILT_IN: Final = ("canary", "minimal", "regions", "rolling")
"""Found without a search through the installed packages, which costs more than making the plan."""


def names() -> list[str]:
    """Every planner that `find` would find."""
    from importlib.metadata import entry_points

    return sorted({*BUILT_IN, *entry_points(group=GROUP).names})


def find(name: str) -> Planner:
    """The planner of this name. Raises PlannerMissing, PlannerBroken."""
    if name in BUILT_IN:
        from importlib import import_module

        built_in: Planner = getattr(import_module(f"deployer.planning.planners.{name}"), name)
        return built_in
    return _installed(name)


class Version(NamedTuple):
    """A definition and its digest. The two travel together, because a definition that an older lowcloud wrote need not
    have the same bytes when this one writes it again, and a rollback must name the bytes of then."""

    digest: Digest
    definition: Definition


def version(definition: Definition) -> Version:
    """A definition that is new."""
    return Version(version_of(definition), definition)


def make_plan(
    name: str,
    current: Version | None,
    following: Version,
    observed: Observed,
    *,
    from_release: Digest | None = None,
    probation_s: float | None = None,
) -> Plan:
    """Have the planner of this name make a plan, check it, and note the versions, the release it starts from, and what
    each call finds, for the way back. `probation_s`: how long each of its probations takes, if not as long as the
    planner says. Raises PlannerMissing, PlannerBroken."""
    plan = find(name)(current.definition if current else None, following.definition, observed)
    plan = msgspec.structs.replace(
        plan,
        planner=name,
        definition=following.digest,
        from_release=from_release,
        from_definition=current.digest if current else None,
        stages=tuple(tuple(_with_past(step, observed) for step in stage) for stage in plan.stages),
        holds=plan.holds if probation_s is None else tuple(Hold(hold.after, probation_s) for hold in plan.holds),
    )
    _check(plan, following.definition, observed)
    return plan


def _with_past(step: Step, observed: Observed) -> Step:
    if step.expect is None or step.was is not None or step.host not in observed.hosts:
        return step
    runs = observed.hosts[step.host].processes.get(step.subject)
    return msgspec.structs.replace(step, was=runs.spec) if runs and runs.digest == step.expect else step


def astray(plan: Plan, following: Definition) -> list[str]:
    """The hosts that a plan would leave with anything but what the definition says, of all that it calls or that
    answered when it was made. Raises ValueError where its calls do not follow from one another, SpecImpossible."""
    after = advance(plan.expect, plan.steps())
    wanted, volumes = specs_of(following), volumes_of(following)
    wrong = {
        step.host
        for step in plan.steps()
        if step.kind is Kind.CREATE_VOLUME and volumes.get(step.host, {}).get(step.subject) != step.size_bytes
    }
    for host in after:
        should = {process: spec_digest(spec) for process, spec in wanted.get(host, {}).items()}
        if after[host] != should:
            wrong.add(host)
    return sorted(wrong)


def require_true(plan: Plan, following: Definition) -> None:
    """Raises PlanAltered where a plan, wherever it comes from, does not lead to the definition that it names."""
    try:
        wrong = astray(plan, following)
    except (ValueError, SpecImpossible) as error:
        raise PlanAltered(f"this plan cannot be carried out: {error}") from error
    if wrong:
        raise PlanAltered(
            f"this plan leaves {', '.join(wrong)} with something else than the definition says that it names"
        )


def _check(plan: Plan, following: Definition, observed: Observed) -> None:
    if plan.expect != observed.state():
        raise PlannerBroken(f"planner {plan.planner!r} gave a plan for another state than the one observed")
    try:
        wrong = astray(plan, following)
    except ValueError as error:
        raise PlannerBroken(f"planner {plan.planner!r} gave a plan that cannot be carried out: {error}") from error
    if wrong:
        raise PlannerBroken(
            f"planner {plan.planner!r} gave a plan that leaves {', '.join(wrong)} with another state than planned"
        )
    if elsewhere := sorted(set(plan.hosts()) - set(observed.hosts)):
        raise PlannerBroken(f"planner {plan.planner!r} calls hosts that did not answer: {', '.join(elsewhere)}")


def _installed(name: str) -> Planner:
    from importlib.metadata import entry_points

    found = list(entry_points(group=GROUP, name=name))
    if not found:
        raise PlannerMissing(name, names())
    try:
        planner = found[0].load()
    except Exception as error:
        raise PlannerBroken(f"planner {name!r} ({found[0].value}) could not be loaded: {error}") from error
    if not callable(planner):
        raise PlannerBroken(f"planner {name!r} ({found[0].value}) is not a function")
    checked: Planner = planner
    return checked
