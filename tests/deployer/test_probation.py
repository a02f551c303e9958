"""Probations on real hosts: a canary that does not keep running never reaches the other hosts."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable

from agent.client.client import AgentClient
from deployer.applying.outcome import Applied, HostEnd, Outcome
from deployer.applying.progress import Phase, Quiet
from deployer.planning.plan import Plan
from tests.deployer.ground import Ground, replaced


class InProbation(Quiet):
    """Does something when a probation begins, and counts them."""

    def __init__(self, act: Callable[[], Awaitable[None]]) -> None:
        self._act = act
        self.tasks: list[asyncio.Future[None]] = []

    def phase(self, phase: Phase, hosts: int) -> None:
        if phase == "probation" and hosts:
            self.tasks.append(asyncio.ensure_future(self._act()))


async def nothing() -> None:
    """Just a probation."""


def canary(ground: Ground, port: int, greeting: str, hold_s: float) -> Plan:
    """The plan of a new greeting on both hosts, h1 first."""
    definition = ground.definition(web=ground.web(port))
    asyncio.run(ground.apply(definition))
    following = replaced(definition, "web", config=ground.web(port, greeting=greeting).config)
    plan = asyncio.run(ground.plan(following, "canary", probation_s=hold_s))
    assert [[step.host for step in stage] for stage in plan.stages] == [["h1"], ["h2"]]
    return plan


def test_a_canary_that_keeps_running_is_followed_by_the_others(ground: Ground, port: int) -> None:
    plan = canary(ground, port, "fine", 0.3)
    watching = InProbation(nothing)
    applied = asyncio.run(ground.carry_out(plan, watching))
    assert applied.outcome is Outcome.APPLIED
    assert len(watching.tasks) == 1
    assert applied.seconds >= 0.3
    assert "fine" in ground.get("h2", port)


def test_a_canary_whose_guest_dies_in_its_probation_goes_back_and_the_others_never_moved(
    ground: Ground, port: int
) -> None:
    plan = canary(ground, port, "short-lived", 60.0)
    before = asyncio.run(ground.observed())

    async def kill_the_guest() -> None:
        async def kill(client: AgentClient) -> None:
            (status,) = await client.processes()
            assert status.pid is not None
            os.kill(status.pid, signal.SIGKILL)

        await ground.with_client("h1", kill)

    applied = asyncio.run(ground.carry_out(plan, InProbation(kill_the_guest)))
    assert applied.outcome is Outcome.REVERTED
    assert applied.hosts == {"h1": HostEnd.OLD, "h2": HostEnd.OLD}
    assert {call.host for call in applied.calls} == {"h1"}
    assert "web@h1" in applied.trouble
    after = asyncio.run(ground.observed())
    assert after.state() == before.state()
    assert after.statuses["h2"][0].pid == before.statuses["h2"][0].pid


def test_an_interruption_ends_a_probation_at_once(ground: Ground, port: int) -> None:
    plan = canary(ground, port, "unproven", 3600.0)

    async def interrupted() -> Applied:
        async def interrupt() -> None:
            running.cancel()

        running = asyncio.ensure_future(ground.carry_out(plan, InProbation(interrupt)))
        return await running

    applied = asyncio.run(interrupted())
    assert applied.interrupted
    assert applied.outcome is Outcome.PARTIAL
    assert applied.hosts == {"h1": HostEnd.NEW, "h2": HostEnd.OLD}
