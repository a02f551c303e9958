"""Hosts whose agents are frozen: the kernel takes what is sent to them, and nobody answers. They are given up by their
missing pulse, wherever the apply is, and what the others run is told truly."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from agent import pulse
from agent.client import connections
from deployer.applying.drift import drift
from deployer.applying.outcome import HostEnd, Outcome
from deployer.applying.progress import Phase, Quiet
from deployer.errors import TransferFailed
from tests.deployer.ground import Ground, replaced


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "QUIET_S", 0.2)
    monkeypatch.setattr(pulse, "HANDSHAKE_S", 1.0)
    monkeypatch.setattr(connections, "CONNECT_TIMEOUT_S", 1.0)


class Freezing(Quiet):
    """Freezes a host when a phase begins."""

    def __init__(self, ground: Ground, at: Phase, host: str = "h2") -> None:
        self._agent = ground.agents[host]
        self._at = at

    def phase(self, phase: Phase, _: int) -> None:
        if phase == self._at:
            os.kill(self._agent.pid, signal.SIGSTOP)

    @contextmanager
    def thawed_afterwards(self) -> Iterator[None]:
        try:
            yield
        finally:
            os.kill(self._agent.pid, signal.SIGCONT)


def test_before_anything_is_touched_a_frozen_host_ends_the_apply(ground: Ground, port: int) -> None:
    definition = ground.definition(web=ground.web(port))
    asyncio.run(ground.apply(definition))
    following = replaced(definition, "web", config=ground.web(port, greeting="new").config)
    plan = asyncio.run(ground.plan(following))
    freezing = Freezing(ground, "transfer")
    with freezing.thawed_afterwards(), pytest.raises(TransferFailed):
        asyncio.run(ground.carry_out(plan, freezing))
    assert drift(definition, asyncio.run(ground.observed())) == []


def test_a_host_that_freezes_while_it_is_called_is_told_as_unknown_and_the_others_go_back(
    ground: Ground, port: int
) -> None:
    definition = ground.definition(web=ground.web(port))
    asyncio.run(ground.apply(definition))
    following = replaced(definition, "web", env={"A": "1"})
    plan = asyncio.run(ground.plan(following, "rolling"))
    freezing = Freezing(ground, "apply")
    with freezing.thawed_afterwards():
        applied = asyncio.run(ground.carry_out(plan, freezing))
        assert (applied.outcome, applied.hosts) == (Outcome.PARTIAL, {"h1": HostEnd.OLD, "h2": HostEnd.UNKNOWN})
        (call,) = applied.failed
        assert call.host == "h2"
    assert asyncio.run(ground.apply(definition)).exit_code == 0
    assert drift(definition, asyncio.run(ground.observed())) == []
