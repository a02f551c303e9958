"""`minimal`: the fewest calls, each as early as the order allows, all hosts side by side."""

from __future__ import annotations

from deployer.applying.observe import Observed
from deployer.language.schema import Definition
from deployer.planning.plan import Plan
from deployer.planning.planners.needs import needs
from deployer.planning.planners.order import fleet_of, stages_of
from deployer.resolving.canonical import version_of


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
