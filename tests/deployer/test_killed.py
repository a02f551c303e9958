"""A deployer that is stopped in the middle of an apply, at every point where it tells what it does: by kill -9, by
Ctrl-C, and by another operator's deployer on the same store. Nothing is lost, nothing is told wrong, and the next apply
finishes the rest without starting anything twice."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.api.processes import spec_digest
from deployer.applying.drift import drift
from deployer.applying.outcome import Applied, Outcome
from deployer.history import release as releases
from deployer.history.audit import journals, timeline
from deployer.language.schema import Definition
from deployer.resolving import canonical
from deployer.resolving.specs import specs_of
from tests.deployer.ground import Ground, replaced

ROOT = Path(__file__).parent.parent.parent
PROGRAM = """
import asyncio, os, sys
from pathlib import Path
import msgspec
from deployer.resolving import canonical
from deployer.cloud.cloud import Cloud
from deployer.errors import ApplyRaced
from deployer.applying.progress import Quiet
from tests.deployer.ground import Ground, LocalAgent

root, ref, definition, listens, point = Path(sys.argv[1]), *sys.argv[2:]
agents = {host: LocalAgent(host, "", Path()) for host in msgspec.json.decode(listens)}
for host, listen in msgspec.json.decode(listens).items():
    agents[host].listen = listen

class Stopping(Quiet):
    def phase(self, phase, hosts):
        self.at(phase)

    def step(self, step, state, detail=""):
        self.at(f"{state} {step.host}")

    def at(self, here):
        global point
        if here == point:
            point = ""
            print("here", flush=True)
            os.read(0, 1)

async def main(ground):
    plan = await ground.plan(canonical.decode(cloud.store.read(definition)), "rolling")
    return await ground.carry_out(plan, Stopping())

with Cloud.open(root) as cloud:
    try:
        applied = asyncio.run(main(Ground(cloud, agents, ref)))
    except KeyboardInterrupt:
        print("null")
    except ApplyRaced:
        print('"raced"')
    else:
        print(msgspec.json.encode(applied).decode())
"""
BEFORE = ("observe", "transfer", "stage")
"""Up to here nothing that runs has been touched."""
AFTER = ("release", "apply", "begins h1", "done h1", "begins h2", "done h2")


@contextmanager
def stopped_at(ground: Ground, following: Definition, point: str) -> Iterator[subprocess.Popen[bytes]]:
    """A deployer that has come to a point of an apply, and waits there for a byte."""
    digest = ground.store.put(canonical.encode(following)).digest
    listens = msgspec.json.encode({host: agent.listen for host, agent in ground.agents.items()}).decode()
    with subprocess.Popen(
        [sys.executable, "-P", "-c", PROGRAM, str(ground.cloud.root), ground.ref, digest, listens, point],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as deployer:
        assert deployer.stdout is not None
        try:
            assert deployer.stdout.readline() == b"here\n"
            yield deployer
        finally:
            deployer.kill()


def told(deployer: subprocess.Popen[bytes]) -> Any:
    """Let it go on, and what it says at its end."""
    said, _ = deployer.communicate(b"\n", timeout=120)
    return msgspec.json.decode(said)


def started(ground: Ground, definition: Definition) -> dict[str, int]:
    """How many guests have ever served web as this definition has it, by host."""
    told = asyncio.run(ground.on_site(lambda site: journals(site.fleet))).all()
    specs = {host: spec_digest(of_host["web"]) for host, of_host in specs_of(definition).items()}
    guests = {(span.host, span.guest) for span in timeline(told) if span.spec == specs[span.host]}
    return {host: sum(1 for other, _ in guests if other == host) for host in specs}


def finished(ground: Ground, following: Definition) -> Applied:
    """The next apply makes everything so, and no guest was started twice for it."""
    applied = asyncio.run(ground.apply(following))
    assert applied.exit_code == 0
    assert drift(following, asyncio.run(ground.observed())) == []
    assert started(ground, following) == {"h1": 1, "h2": 1}
    return applied


@pytest.mark.timeout(600)
def test_an_apply_that_is_killed_at_any_point_is_finished_by_the_next(ground: Ground, port: int) -> None:
    definition = ground.definition(web=ground.web(port))
    asyncio.run(ground.apply(definition))
    for number, point in enumerate((*BEFORE, *AFTER)):
        before = ground.store.read_ref(ground.ref)
        runs = asyncio.run(ground.observed()).state()
        following = replaced(definition, "web", env={"A": str(number)})
        with stopped_at(ground, following, point) as deployer:
            deployer.kill()
        newest = releases.head(ground.store, ground.ref)
        assert newest is not None
        assert (newest.release.parent if point in AFTER[1:] else newest.digest) == before
        if point in (*BEFORE, "release", "apply", "begins h1"):
            assert asyncio.run(ground.observed()).state() == runs
        if point == "done h1":
            rows = drift(following, asyncio.run(ground.observed()))
            assert [(row.host, row.field) for row in rows] == [("h2", "env.A")]
        finished(ground, following)


@pytest.mark.timeout(600)
def test_ctrl_c_is_safe_at_any_point_and_what_is_told_is_what_runs(ground: Ground, port: int) -> None:
    definition = ground.definition(web=ground.web(port))
    asyncio.run(ground.apply(definition))
    for number, point in enumerate((*BEFORE, *AFTER)):
        before = ground.store.read_ref(ground.ref)
        runs = asyncio.run(ground.observed()).state()
        following = replaced(definition, "web", env={"A": str(number)})
        with stopped_at(ground, following, point) as deployer:
            deployer.send_signal(signal.SIGINT)
            applied = told(deployer)
        now = asyncio.run(ground.observed()).state()
        if point in BEFORE:
            assert applied is None
            assert (ground.store.read_ref(ground.ref), now) == (before, runs)
        else:
            wanted = {host: spec_digest(specs["web"]) for host, specs in specs_of(following).items()}
            ends = {host: "new" if state["web"] == wanted[host] else "old" for host, state in now.items()}
            assert applied["interrupted"]
            assert applied["hosts"] == ends
            assert (applied["outcome"] == "applied") == (point in ("begins h2", "done h2"))
            assert ground.store.read_ref(ground.ref) == applied["release"]
        finished(ground, following)


@pytest.mark.parametrize("point", ["revert", "done h1"])
def test_ctrl_c_while_hosts_are_brought_back_is_told_and_the_next_apply_decides(
    ground: Ground, port: int, other_port: int, point: str
) -> None:
    definition = ground.definition(web=ground.web(port))
    asyncio.run(ground.apply(definition))
    bad = ground.definition(
        web=ground.web(port, greeting="new"), zzz=ground.broken_web(other_port, hosts=("h2",), restart="never")
    )
    with stopped_at(ground, bad, point) as deployer:
        deployer.send_signal(signal.SIGINT)
        applied = told(deployer)
    assert applied["interrupted"]
    assert applied["outcome"] == "partial"
    assert "web" in asyncio.run(ground.observed()).state()["h1"]
    assert asyncio.run(ground.apply(definition)).exit_code == 0
    assert drift(definition, asyncio.run(ground.observed())) == []


def test_of_two_deployers_on_one_store_one_wins_and_the_other_is_told(ground: Ground, port: int) -> None:
    """Both have staged everything when they go for the release."""
    definition = ground.definition(web=ground.web(port))
    asyncio.run(ground.apply(definition))
    ours, theirs = (replaced(definition, "web", env={"BY": who}) for who in ("us", "them"))
    with stopped_at(ground, ours, "release") as one, stopped_at(ground, theirs, "release") as other:
        first, second = told(one), told(other)
    assert first["outcome"] == Outcome.APPLIED
    assert second == "raced"
    assert ground.store.read_ref(ground.ref) == first["release"]
    assert drift(ours, asyncio.run(ground.observed())) == []
