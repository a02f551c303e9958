"""`minimal`: the fewest calls, each as early as the order allows, all hosts side by side."""

from __future__ import annotations

from deployer.canonical import version_of
from deployer.observe import Observed
from deployer.plan import Plan
from deployer.planners.needs import needs
from deployer.planners.order import fleet_of, stages_of
from deployer.schema import Definition


def minimal(current: Definition | None, following: Definition, observed: Observed) -> Plan:
    """One call for each process that differs, and none for any other."""
    needed = needs(current, following, observed)
    return Plan(
        planner="minimal",
        definition=version_of(following),
        expect=observed.state(),
        stages=stages_of(needed.steps, fleet_of(current, following, observed)),
        changes=needed.changes,
        notes=needed.notes,
        unreachable=needed.unreachable,
    )
