"""`ps`: what runs, as the hosts themselves say."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tools import errors
from tools.cloud import open_cloud
from tools.hosts import known_addresses, tell_failures, tell_waiting
from tools.output import ago, iso_time, shorten, size

if TYPE_CHECKING:
    import argparse

    from agent.api.facts import ProcessStatus, ProcessUsage
    from agent.client.client import AgentClient
    from deployer.applying.fleet import Answers, Fleet
    from deployer.cloud.cloud import Cloud
    from tools.output import Output

    Seen = list[tuple[ProcessStatus, ProcessUsage | None]]
    """Of one host: what is there, and what it takes where it runs."""

EXAMPLE = """
lowcloud ps
lowcloud ps -w
lowcloud ps --host fra1 --json
"""

EVERY_S = 1.0
"""Between two looks with --watch."""
CLEAR = "\x1b[H\x1b[2J"
HEAD = ("NAME", "BINARY", "STATE", "PID", "SINCE", "RESTARTS", "CPU", "MEMORY", "DISK", "CONN", "RELEASE", "")
NUMBERS = ("PID", "RESTARTS", "CPU", "MEMORY", "DISK", "CONN")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-w", "--watch", action="store_true", help="look again each second, until Ctrl-C")
    parser.add_argument("--host", action="append", metavar="NAME", help="only this host (may be repeated)")


def run(args: argparse.Namespace, out: Output) -> int:
    import asyncio

    with open_cloud(args) as cloud:
        return asyncio.run(_watch(cloud, args.host, out) if args.watch else _once(cloud, args.host, out))


async def _once(cloud: Cloud, hosts: list[str] | None, out: Output) -> int:
    async with _fleet(cloud) as fleet:
        answers = await _ask(fleet, hosts)
        facts = await fleet.each(answers.results, lambda client: client.host())
    _show(answers, _Rates(), out)
    tell_waiting({host: told.waiting for host, told in facts.results.items()}, out)
    return errors.FAILED if tell_failures(answers.failures, out) else errors.DONE


async def _watch(cloud: Cloud, hosts: list[str] | None, out: Output) -> int:
    """The same each second; CPU is then what was taken meanwhile. Does not end by itself."""
    import asyncio
    import gc

    gc.enable()
    rates = _Rates()
    async with _fleet(cloud) as fleet:
        while True:
            answers = await _ask(fleet, hosts)
            if out.on_terminal and not out.as_json:
                out.raw(CLEAR.encode())
            _show(answers, rates, out)
            out.flush()
            tell_failures(answers.failures, out)
            await asyncio.sleep(EVERY_S)


class _Rates:
    """What was seen of each guest last, for the processor time that it has taken since."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], tuple[float, float]] = {}

    def text(self, host: str, usage: ProcessUsage, now_s: float) -> str:
        """`12.5%` of a core since the last look; at the first one the time since the guest's start, as `3.1s`."""
        key = (host, usage.pid)
        before = self._seen.get(key)
        self._seen[key] = (usage.cpu_s, now_s)
        if before is None or now_s <= before[1]:
            return f"{usage.cpu_s:.1f}s"
        return f"{100 * (usage.cpu_s - before[0]) / (now_s - before[1]):.1f}%"


def _fleet(cloud: Cloud) -> Fleet:
    from deployer.applying.fleet import Fleet

    return Fleet(known_addresses(cloud), cloud.credentials)


async def _ask(fleet: Fleet, hosts: list[str] | None) -> Answers[Seen]:
    return await fleet.each(hosts or fleet.hosts, _look)


async def _look(client: AgentClient) -> Seen:
    from agent.client.errors import CallRefused

    statuses = await client.processes()
    try:
        usages = await client.usage()
    except CallRefused:  # an agent from before this could be asked
        usages = ()
    return [(status, next((u for u in usages if u.pid == status.pid), None)) for status in statuses]


def _show(answers: Answers[Seen], rates: _Rates, out: Output) -> None:
    now_s = time.monotonic()
    found = [(host, status, usage) for host, seen in answers.results.items() for status, usage in seen]
    found.sort(key=lambda item: (item[1].process, item[0]))
    if out.as_json:
        out.json([_as_dict(host, status, usage) for host, status, usage in found])
    elif found:
        cpu = [rates.text(host, usage, now_s) if usage else "-" for host, _, usage in found]
        rows = [_row(host, status, usage, taken) for (host, status, usage), taken in zip(found, cpu, strict=True)]
        out.table(HEAD, rows, right=NUMBERS)
    elif not answers.failures:
        out.remark("no processes")


def _as_dict(host: str, status: ProcessStatus, usage: ProcessUsage | None) -> dict[str, Any]:
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
        "starts_in_a_row": status.troubles.starts if status.troubles else 0,
        "last_exit_code": status.troubles.exit_code if status.troubles else None,
        "next_start": iso_time(int(status.next_start_unix * 1e9)) if status.next_start_unix else None,
        "given_up": bool(status.given_up),
        "cpu_s": usage.cpu_s if usage else None,
        "disk_bytes": usage.disk_bytes if usage else None,
        "connections": usage.connections if usage else None,
    }


def _row(host: str, status: ProcessStatus, usage: ProcessUsage | None, cpu: str) -> tuple[str, ...]:
    return (
        f"{status.process}@{host}",
        shorten(status.spec.binary),
        str(status.state),
        str(status.pid or "-"),
        ago(time.time() - status.since_unix),
        str(status.restarts),
        cpu,
        size(status.memory_bytes),
        size(usage.disk_bytes) if usage else "-",
        str(usage.connections) if usage else "-",
        shorten(status.release),
        _told(status),
    )


def _told(status: ProcessStatus) -> str:
    if not status.next_start_unix:
        return status.reason
    left_s = status.next_start_unix - time.time()
    return f"{status.reason}; starts again {f'in {left_s:.0f} s' if left_s >= 1 else 'now'}"
