"""`regions`: one region after the other, so that a version that is no good never stands in two regions at once.

In a region all hosts are called side by side, in the order of `minimal`. After each stage an apply looks whether what
it has changed still runs. What only ends, ends last, again region by region.
"""

from __future__ import annotations

import itertools

from deployer.applying.observe import Observed
from deployer.language.schema import Definition
from deployer.planning.plan import Plan, Step
from deployer.planning.planners.needs import needs
from deployer.planning.planners.order import fleet_of, phased_stages, regions_of
from deployer.resolving.canonical import version_of


def regions(current: Definition | None, following: Definition, observed: Observed) -> Plan:
    """The calls of `minimal`; no stage calls hosts of two regions. They come in order of their names."""
    needed = needs(current, following, observed)
    region_of = regions_of(current, following)
    rank = {region: number for number, region in enumerate(sorted({*region_of.values(), ""}))}

    def region(step: Step) -> str:
        return region_of.get(step.host, "")

    def phase(step: Step, ends: bool) -> int:
        return rank[region(step)] + (len(rank) if ends else 0)

    stages = phased_stages(needed.steps, fleet_of(current, following, observed), phase)
    return Plan(
        planner="regions",
        definition=version_of(following),
        expect=observed.state(),
        stages=tuple(
            tuple(steps) for _, stage in stages for _, steps in itertools.groupby(sorted(stage, key=region), key=region)
        ),
        changes=needed.changes,
        notes=needed.notes,
        unreachable=needed.unreachable,
    )
