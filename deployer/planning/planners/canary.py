"""`canary`: one host, then the rest of its region, then all others; and after each of the first two a probation, in
which what has been changed must keep running before the plan goes on.

The canary is the host on which most of the processes change that change at all, so that it meets as much of the new
version as one host can. What only ends, ends after everything else, as with every planner.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Final

from deployer.applying.observe import Observed
from deployer.language.schema import Definition
from deployer.planning.plan import Hold, Plan, Step
from deployer.planning.planners.needs import needs
from deployer.planning.planners.order import fleet_of, phased_stages, regions_of
from deployer.resolving.canonical import version_of

PROBATION_S: Final = 60.0
"""Unless the person who plans says otherwise (`make_plan(probation_s=…)`)."""

CANARY, REGION, REST, ENDS = range(4)


def canary(current: Definition | None, following: Definition, observed: Observed) -> Plan:
    """The calls of `minimal`, in up to four phases."""
    needed = needs(current, following, observed)
    regions = regions_of(current, following)
    first = _canary(needed.steps)

    def phase(step: Step, ends: bool) -> int:
        if ends:
            return ENDS
        if step.host == first:
            return CANARY
        return REGION if regions.get(step.host) == regions.get(first) else REST

    staged = phased_stages(needed.steps, fleet_of(current, following, observed), phase)
    phases = [number for number, _ in staged]
    return Plan(
        planner="canary",
        definition=version_of(following),
        expect=observed.state(),
        stages=tuple(stage for _, stage in staged),
        changes=needed.changes,
        notes=needed.notes,
        unreachable=needed.unreachable,
        holds=tuple(
            Hold(after, PROBATION_S)
            for after, (before, then) in enumerate(itertools.pairwise(phases), 1)
            if before != then and before in (CANARY, REGION)
        ),
    )


def _canary(steps: Iterable[Step]) -> str:
    """The host with the most processes that get something new; the first by name where several have as many."""
    changes: dict[str, set[str]] = {}
    for step in steps:
        subjects = changes.setdefault(step.host, set())
        if step.spec is not None:
            subjects.add(step.subject)
    return min(changes, key=lambda host: (-len(changes[host]), host), default="")
