"""A deployer that is killed in the middle of an apply: nothing is lost, and the next apply finishes the rest."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import msgspec

from deployer import canonical
from deployer import release as releases
from deployer.drift import drift
from deployer.outcome import Outcome
from tests.deployer.ground import Ground, replaced
from tests.deployer.test_apply import called

ROOT = Path(__file__).parent.parent.parent
PROGRAM = """
import asyncio, sys
from pathlib import Path
import msgspec
from deployer import canonical
from deployer.cloud import Cloud
from tests.deployer.ground import Ground, LocalAgent
from tests.deployer.test_apply import Watching

root, ref, definition, listens = Path(sys.argv[1]), sys.argv[2], sys.argv[3], msgspec.json.decode(sys.argv[4])
agents = {host: LocalAgent(host, "", Path()) for host in listens}
for host, agent in agents.items():
    agent.listen = listens[host]

def stop_here(step):
    print("done", step.host, flush=True)
    sys.stdin.read()

async def main(ground):
    plan = await ground.plan(canonical.decode(cloud.store.read(definition)), "rolling")
    await ground.carry_out(plan, Watching("done", stop_here))

with Cloud.open(root) as cloud:
    asyncio.run(main(Ground(cloud, agents, ref)))
"""


def test_an_apply_that_is_killed_is_finished_by_the_next(ground: Ground, port: int) -> None:
    definition = ground.definition(web=ground.web(port))
    first = asyncio.run(ground.apply(definition))
    following = replaced(definition, "web", env={"A": "1"})
    digest = ground.store.put(canonical.encode(following)).digest
    listens = msgspec.json.encode({host: agent.listen for host, agent in ground.agents.items()}).decode()
    with subprocess.Popen(
        [sys.executable, "-P", "-c", PROGRAM, str(ground.cloud.root), ground.ref, digest, listens],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as deployer:
        assert deployer.stdout is not None
        assert deployer.stdout.readline() == b"done h1\n"
        deployer.kill()
    newest = releases.head(ground.store, ground.ref)
    assert newest is not None
    assert newest.release.parent == first.release
    assert newest.release.definition == digest
    rows = drift(following, asyncio.run(ground.observed()))
    assert [(row.host, row.field) for row in rows] == [("h2", "env.A")]
    finished = asyncio.run(ground.apply(following))
    assert called(finished) == ["replace web@h2"]
    assert finished.outcome is Outcome.APPLIED
    assert drift(following, asyncio.run(ground.observed())) == []
