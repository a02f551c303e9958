"""`up`: a whole cloud on this machine. An agent process for each host with a loopback address, then an apply.

Without `--detach` it stays, shows what changes, and at Ctrl-C ends what it has started. That comes back, with its
volumes and versions, by the next `up`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tools import errors
from tools.cloud import open_cloud
from tools.ending import ending_on_signals, undisturbed

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from deployer.applying.outcome import Applied
    from deployer.cloud.cloud import Cloud
    from deployer.planning.planners import Version
    from tools.local_cloud import Started
    from tools.output import Output

EXAMPLE = """
lowcloud up
lowcloud up shop.toml --detach
"""

LOOK_EVERY_S = 2.0
START_LOOK_EVERY_S = 0.1
STARTED_WITHIN_S = 60.0
"""Whatever starts no sooner is shown as it is."""


def configure(parser: argparse.ArgumentParser) -> None:
    from tools.deploying import add_definition_arguments
    from tools.local_cloud import add_network_argument

    parser.add_argument("file", nargs="?", metavar="FILE", help="the definition (default: as lowcloud.toml says)")
    parser.add_argument("-d", "--detach", action="store_true", help="return when all runs; `lowcloud down` ends it")
    add_network_argument(parser)
    add_definition_arguments(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    from deployer.errors import SignatureInvalid
    from tools.deploying import exit_code, version_of_file
    from tools.local_cloud import ended_since, loopback_hosts, start_agents, stop_agents

    with ending_on_signals(), open_cloud(args) as cloud:
        version = version_of_file(cloud, args.file, out, locked=args.locked)
        addresses = loopback_hosts(version.definition.host)
        if not addresses:
            raise errors.UsageError(
                "no host of the definition has a loopback address", hint='give one an address such as "127.0.1.1:7400"'
            )
        started = start_agents(cloud, addresses, args.network)
        for one in started:
            out.line(f"{one.host} {'runs' if one.new else 'ran already'} at {one.address}, pid {one.pid}")
        ours = [one for one in started if one.new]
        try:
            try:
                applied = _apply(cloud, version, addresses, args, out)
            except SignatureInvalid:
                if args.detach:
                    ours = []  # a signed plan is applied to these agents
                raise
            _finish(applied, started, out)
            if not (out.as_json or applied.interrupted):
                asyncio.run(_tell_weak_limits(cloud, [one.host for one in started], out))
            if args.detach:
                if exit_code(applied) == errors.DONE or applied.is_behind:
                    ours = []
                return exit_code(applied)
            if applied.interrupted:
                raise KeyboardInterrupt
            out.line("Ctrl-C ends it")
            _watch(cloud, ours, out)
        finally:
            # What `down` has ended meanwhile is not ours any more, even where somebody has started it anew.
            hosts = [one.host for one in ours if not ended_since(cloud, one)]
            if hosts:
                out.remark(f"ending {', '.join(hosts)}")
                with undisturbed():
                    stop_agents(cloud, hosts, out.remark)
    return errors.DONE


def _apply(
    cloud: Cloud, version: Version, addresses: Mapping[str, str], args: argparse.Namespace, out: Output
) -> Applied:
    from tools.deploying import carried_out, planned, probation_s, refuse_unsigned

    work = planned(
        cloud, version, args.planner, out, allow_unreachable=args.allow_unreachable, probation_s=probation_s(args)
    )
    plan, _ = asyncio.run(work)
    if not plan.is_empty:
        refuse_unsigned(cloud)
    applied = asyncio.run(carried_out(cloud, plan, out, message="up"))
    asyncio.run(_wait_until_started(cloud, addresses))
    return applied


async def _wait_until_started(cloud: Cloud, addresses: Mapping[str, str]) -> None:
    """What hosts that were started anew ran before, they start by themselves, and no call of the plan waits for it."""
    from agent.api.facts import ProcessState
    from deployer.applying.fleet import Fleet

    clock = asyncio.get_running_loop().time
    deadline = clock() + STARTED_WITHIN_S
    async with Fleet(addresses, cloud.credentials) as fleet:
        while clock() < deadline:
            answers = await fleet.each(fleet.hosts, lambda client: client.processes())
            states = {status.state for statuses in answers.results.values() for status in statuses}
            if ProcessState.STARTING not in states:
                return
            await asyncio.sleep(START_LOOK_EVERY_S)


def _finish(applied: Applied, started: list[Started], out: Output) -> None:
    from tools.deploying import applied_as_dict, show_applied

    if out.as_json:
        agents = [{"host": one.host, "address": one.address, "pid": one.pid, "new": one.new} for one in started]
        out.json({"agents": agents, "apply": applied_as_dict(applied)})
        out.flush()
    else:
        show_applied(applied, out)


async def _tell_weak_limits(cloud: Cloud, hosts: list[str], out: Output) -> None:
    """A line for hosts that are alike, and none where all limits are hard."""
    from deployer.applying.fleet import Fleet
    from tools.hosts import known_addresses, weak_limits

    async with Fleet(known_addresses(cloud), cloud.credentials) as fleet:
        answers = await fleet.each(hosts, lambda client: client.host())
    alike: dict[str, list[str]] = {}
    for host, facts in answers.results.items():
        alike.setdefault(weak_limits(facts.guarantees), []).append(host)
    for weak, where in alike.items():
        if weak:
            out.line(f"limits on {', '.join(where)}: {weak}; `lowcloud host show` says why")


def _watch(cloud: Cloud, ours: list[Started], out: Output) -> None:
    """Print the processes, and again whenever something about them changes; returns at Ctrl-C, or when all that was
    started here has been ended by `down`."""
    try:
        asyncio.run(_watch_until_ended(cloud, ours, out))
    except KeyboardInterrupt:
        out.remark("")


async def _watch_until_ended(cloud: Cloud, ours: list[Started], out: Output) -> None:
    from deployer.applying.fleet import Fleet
    from tools.hosts import known_addresses
    from tools.local_cloud import ended_since

    shown = None
    async with Fleet(known_addresses(cloud), cloud.credentials) as fleet:
        while not ours or not all(ended_since(cloud, one) for one in ours):
            answers = await fleet.each(fleet.hosts, lambda client: client.processes())
            rows = [
                (f"{status.process}@{host}", str(status.state), str(status.pid or "-"), status.reason)
                for host, statuses in answers.results.items()
                for status in statuses
            ]
            rows += [(f"*@{host}", "unreachable", "-", str(error)) for host, error in answers.failures.items()]
            if rows != shown:
                out.table(("NAME", "STATE", "PID", ""), rows)
                out.flush()
                shown = rows
            await asyncio.sleep(LOOK_EVERY_S)
    out.remark("everything that this command started has been ended")
