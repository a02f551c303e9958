"""What a plan would cost, in figures that can be put beside those of another: for choosing a planner.

Pure: the plan, the bytes each host would be sent, and the links. The time is a model (`deployer.planning.timing`):
bytes at the links' rate, a constant for each kind of call, as many calls at once as an apply makes, a look at the hosts
after each stage, and the probations in full. `deployer.planning.simulate` runs the same constants through the real
apply.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from deployer.applying.execute import CALLS_AT_ONCE, CALLS_AT_ONCE_PER_HOST
from deployer.applying.transfer import HOSTS_AT_ONCE
from deployer.planning.plan import Kind, Plan, Step
from deployer.planning.timing import CALL_S, STAGE_S, Links

TAKES_DOWN = frozenset({Kind.REPLACE, Kind.CONFIGURE, Kind.STOP})


class Risk(msgspec.Struct, frozen=True):
    """The most processes of one name that are down or in a swap at the same time."""

    process: str
    """Empty where nothing that runs is touched."""
    at_once: int
    of: int
    """So many run before the plan, on the hosts that answered."""


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """One plan in figures."""

    planner: str
    calls: int
    stages: int
    hosts: int
    bytes: int
    seconds: float
    """Estimated; probations are in it."""
    probation_s: float
    risk: Risk


def cost_of(plan: Plan, sizes: Mapping[str, int], links: Links | None = None) -> Cost:
    """`sizes`: bytes that each host would be sent."""
    links = links or Links()
    probation_s = sum(hold.hold_s for hold in plan.holds)
    return Cost(
        planner=plan.planner,
        calls=sum(len(stage) for stage in plan.stages),
        stages=len(plan.stages),
        hosts=len(plan.hosts()),
        bytes=sum(sizes.values()),
        seconds=round(_making_ready_s(plan, sizes, links) + _calls_s(plan, links) + probation_s, 3),
        probation_s=probation_s,
        risk=risk_of(plan),
    )


def risk_of(plan: Plan) -> Risk:
    """Where several names are equally at risk, the one of which the greatest share is."""
    running: dict[str, int] = {}
    for processes in plan.expect.values():
        for name in processes:
            running[name] = running.get(name, 0) + 1
    starts_again = {(step.host, step.subject) for step in plan.steps() if step.kind is Kind.START}
    down: dict[str, set[str]] = {}
    worst = Risk("", 0, 0)
    for stage in plan.stages:
        touched = {name: set(hosts) for name, hosts in down.items()}
        for step in stage:
            if step.kind in TAKES_DOWN:
                touched.setdefault(step.subject, set()).add(step.host)
        for name, hosts in sorted(touched.items()):
            risk = Risk(name, len(hosts), running.get(name, 0))
            if (risk.at_once, -risk.of) > (worst.at_once, -worst.of):
                worst = risk
        for step in stage:
            if step.kind is Kind.STOP and (step.host, step.subject) in starts_again:
                down.setdefault(step.subject, set()).add(step.host)
            if step.kind is Kind.START:
                down.get(step.subject, set()).discard(step.host)
    return worst


def _making_ready_s(plan: Plan, sizes: Mapping[str, int], links: Links) -> float:
    """Looking, asking, sending, staging, deciding."""
    if plan.is_empty:
        return 0.0
    sending = at_least_s([size / links.bytes_per_s for size in sizes.values()], HOSTS_AT_ONCE)
    return sending + STAGE_S + 5 * links.round_trip_s


def _calls_s(plan: Plan, links: Links) -> float:
    total = 0.0
    for stage in plan.stages:
        of_host: dict[str, list[float]] = {}
        for step in stage:
            of_host.setdefault(step.host, []).append(_call_s(step, links))
        longest = max(at_least_s(calls, CALLS_AT_ONCE_PER_HOST) for calls in of_host.values())
        every = at_least_s([call for calls in of_host.values() for call in calls], CALLS_AT_ONCE)
        total += max(longest, every) + 2 * links.round_trip_s
    return total


def _call_s(step: Step, links: Links) -> float:
    return CALL_S[step.kind] + links.round_trip_s


def at_least_s(times_s: Iterable[float], at_once: int) -> float:
    """How long so many things take that may be done side by side, so many at once."""
    times = list(times_s)
    return max(max(times, default=0.0), sum(times) / at_once)
