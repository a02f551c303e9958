"""`restart`: the same specification again, by the same swap as a new version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools import errors
from tools.cloud import open_cloud
from tools.hosts import known_addresses, split_instance

if TYPE_CHECKING:
    import argparse

    from agent.api.answers import Outcome
    from agent.api.facts import ProcessStatus
    from deployer.applying.fleet import Fleet
    from deployer.cloud.cloud import Cloud
    from tools.output import Output

EXAMPLE = """
lowcloud restart web@fra1
lowcloud restart web@fra1 web@ams1 --json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("processes", nargs="+", metavar="NAME@HOST", help="the process, such as web@fra1")


def run(args: argparse.Namespace, out: Output) -> int:
    import asyncio

    wanted = [split_instance(text) for text in args.processes]
    with open_cloud(args) as cloud:
        rows = asyncio.run(_restart(cloud, wanted, out))
    if out.as_json:
        out.json(rows)
    return errors.DONE


async def _restart(cloud: Cloud, wanted: list[tuple[str, str]], out: Output) -> list[dict[str, object]]:
    """One after the other, so that two instances of a process are never both on their way; none where one of the names
    is wrong."""
    from deployer.applying.fleet import Fleet
    from deployer.cloud import trust

    by = trust.common_name(cloud.credentials)
    rows: list[dict[str, object]] = []
    async with Fleet(known_addresses(cloud), cloud.credentials) as fleet:
        for process, host in wanted:
            await _status(fleet, process, host)
        for process, host in wanted:
            outcome = await _restart_one(fleet, process, host, by)
            took_ms = round(sum(outcome.steps.values()), 3)
            rows.append({"process": process, "host": host, "steps": outcome.steps, "ms": took_ms})
            steps = ", ".join(f"{step} {ms:.1f} ms" for step, ms in outcome.steps.items())
            out.line(f"{process}@{host} restarted ({steps})")
    return rows


async def _restart_one(fleet: Fleet, process: str, host: str, by: str) -> Outcome:
    import secrets

    from agent.api.calls import Envelope, Restart

    client = await fleet.client(host)
    status = await _status(fleet, process, host)
    call = Restart(process, expect=status.spec_digest, nonce=secrets.token_hex(16))
    return await client.call(Envelope(call, release=status.release, plan=status.plan, by=by))


async def _status(fleet: Fleet, process: str, host: str) -> ProcessStatus:
    client = await fleet.client(host)
    statuses = {status.process: status for status in await client.processes()}
    if process not in statuses:
        running = ", ".join(sorted(statuses)) or "nothing"
        raise errors.UsageError(f"{host} does not run {process}", hint=f"it runs: {running}")
    return statuses[process]
