"""`rolling`: the same calls as `minimal`, but only one host at a time is touched.

After each stage an apply looks whether what it has changed still runs, so a version that is no good stops at the first
host that shows it.
"""

from __future__ import annotations

import itertools

import msgspec

from deployer.applying.observe import Observed
from deployer.language.schema import Definition
from deployer.planning.plan import Plan
from deployer.planning.planners.minimal import minimal


def rolling(current: Definition | None, following: Definition, observed: Observed) -> Plan:
    """Each stage of `minimal`, cut into one stage for each of its hosts, in order of the hosts' names."""
    plan = minimal(current, following, observed)
    stages = tuple(
        tuple(steps) for stage in plan.stages for _, steps in itertools.groupby(stage, key=lambda step: step.host)
    )
    return msgspec.structs.replace(plan, planner="rolling", stages=stages)
