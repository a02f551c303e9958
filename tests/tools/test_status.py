"""`lowcloud status`."""

from __future__ import annotations

import asyncio
from pathlib import Path

from agent.api.calls import Envelope, Stop
from agent.client.client import AgentClient
from tests.tools.command import succeed
from tests.tools.shop import Shop


def test_what_runs_as_it_should_is_no_drift(shop: Shop) -> None:
    status = shop.json("status")
    assert status["drift"] == []
    assert status["hosts"] == ["ams1", "fra1"]
    assert "everything runs as it should" in shop.succeed("status").out


def test_a_process_that_somebody_stopped_is_drift_until_the_next_apply(shop: Shop) -> None:
    running = shop.process("web@ams1")

    async def stop() -> None:
        address = f"127.0.2.1:{shop.agent_port}"
        async with AgentClient("ams1", address, shop.root / ".lowcloud" / "operator") as client:
            await client.call(Envelope(Stop("web", expect=running["spec"])))

    asyncio.run(stop())
    result = shop.run("status", "--json")
    assert result.code == 1
    [row] = result.json["drift"]
    assert (row["host"], row["process"], row["field"], row["runs"]) == ("ams1", "web", "process", "")
    assert "web" in shop.run("status").out
    shop.apply()
    shop.succeed("status")


def test_a_cloud_without_a_definition_says_what_is_missing(cloud: Path) -> None:
    (cloud / "cloud.toml").write_text('name = "empty"\n')
    assert "nothing is released yet" in succeed("status", cwd=cloud).out
