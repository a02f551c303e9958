"""`ps`: what runs, as the hosts themselves say."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tools import errors
from tools.cloud import open_cloud
from tools.hosts import known_addresses, tell_failures
from tools.output import ago, iso_time, shorten, size

if TYPE_CHECKING:
    import argparse

    from agent.api import ProcessStatus
    from deployer.cloud import Cloud
    from deployer.fleet import Answers
    from tools.output import Output

EXAMPLE = """
lowcloud ps
lowcloud ps --host fra1 --json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", action="append", metavar="NAME", help="only this host (may be repeated)")


def run(args: argparse.Namespace, out: Output) -> int:
    import asyncio

    with open_cloud(args) as cloud:
        answers = asyncio.run(_ask(cloud, args.host))
    found = [(host, status) for host, statuses in answers.results.items() for status in statuses]
    found.sort(key=lambda item: (item[1].process, item[0]))
    if out.as_json:
        out.json([_as_dict(host, status) for host, status in found])
    elif found:
        head = ("NAME", "BINARY", "STATE", "PID", "SINCE", "RESTARTS", "MEMORY", "RELEASE", "")
        out.table(head, [_row(host, status) for host, status in found], right=("PID", "RESTARTS", "MEMORY"))
    elif not answers.failures:
        out.remark("no processes")
    return errors.FAILED if tell_failures(answers.failures, out) else errors.DONE


async def _ask(cloud: Cloud, hosts: list[str] | None) -> Answers[tuple[ProcessStatus, ...]]:
    from deployer.fleet import Fleet

    async with Fleet(known_addresses(cloud), cloud.credentials) as fleet:
        return await fleet.each(hosts or fleet.hosts, lambda client: client.processes())


def _as_dict(host: str, status: ProcessStatus) -> dict[str, Any]:
    return {
        "name": f"{status.process}@{host}",
        "process": status.process,
        "host": host,
        "binary": status.spec.binary,
        "spec": status.spec_digest,
        "state": str(status.state),
        "pid": status.pid,
        "since": iso_time(int(status.since_unix * 1e9)),
        "restarts": status.restarts,
        "release": status.release,
        "plan": status.plan,
        "memory_bytes": status.memory_bytes,
        "reason": status.reason,
    }


def _row(host: str, status: ProcessStatus) -> tuple[str, ...]:
    return (
        f"{status.process}@{host}",
        shorten(status.spec.binary),
        str(status.state),
        str(status.pid or "-"),
        ago(time.time() - status.since_unix),
        str(status.restarts),
        size(status.memory_bytes),
        shorten(status.release),
        status.reason,
    )
