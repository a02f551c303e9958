"""`rollback`: an earlier release runs again, bit for bit, configurations included.

The history is never rewritten: a rollback is a new release of the same definition. Where the hosts still have the
blobs, nothing is sent.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tools import errors
from tools.cloud import open_cloud
from tools.output import local_time, printable, shorten, size

if TYPE_CHECKING:
    import argparse

    from deployer.cloud.cloud import Cloud
    from deployer.history.release import Link
    from deployer.planning.offline import HostReadiness
    from tools.output import Output

EXAMPLE = """
lowcloud rollback
lowcloud rollback --check               # would every host manage without the network?
lowcloud rollback 8d2f01aa --yes -m "2.0 loses sessions"
"""


def configure(parser: argparse.ArgumentParser) -> None:
    from tools.deploying import add_probation_argument

    parser.add_argument(
        "release", nargs="?", metavar="RELEASE", help="its hash (default: the one before with another definition)"
    )
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    parser.add_argument("-m", "--message", default="", help="why, for the history")
    parser.add_argument("--planner", metavar="NAME", help="how the difference becomes calls (default: as configured)")
    parser.add_argument("--allow-unreachable", action="store_true", help="leave hosts alone that do not answer")
    parser.add_argument(
        "--check", action="store_true", help="only say for each host whether it has everything that it would need"
    )
    add_probation_argument(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    from tools.commands.apply import agreed, finish
    from tools.connections import Connections
    from tools.deploying import exit_code, planned_rollback, probation_s, refuse_unsigned, rollback_target, rolled_back

    with open_cloud(args) as cloud:
        to = rollback_target(cloud, args.release)
        if args.check:
            return _check(cloud, to, args, out)
        refuse_unsigned(cloud)
        with Connections(cloud) as hosts:
            work = planned_rollback(
                cloud,
                to,
                args.planner,
                out,
                allow_unreachable=args.allow_unreachable,
                probation_s=probation_s(args),
                fleet=hosts.fleet,
            )
            plan, sizes = hosts.run(work)
            made = f"{local_time(to.release.at_unix_ns)} by {to.release.by}"
            out.line(f"back to release {shorten(to.digest)}, {made}: {printable(to.release.message) or 'no message'}")
            if not agreed(plan, sizes, out, yes=args.yes):
                out.remark("nothing was changed")
                return errors.FAILED
            applied = hosts.run(rolled_back(cloud, plan, to, out, message=args.message, fleet=hosts.fleet))
    finish(applied, out)
    return exit_code(applied)


def _check(cloud: Cloud, to: Link, args: argparse.Namespace, out: Output) -> int:
    """Ends with 1 where a host would need something from elsewhere, or does not answer."""
    from tools.deploying import rollback_readiness

    plan, hosts = asyncio.run(rollback_readiness(cloud, to, args.planner, out))
    ready = all(host.offline for host in hosts) and not plan.unreachable
    if out.as_json:
        out.json(
            {
                "release": to.digest,
                "definition": to.release.definition,
                "offline": ready,
                "bytes": sum(host.bytes for host in hosts),
                "hosts": [{"offline": host.offline, **_as_dict(host)} for host in hosts],
                "unreachable": list(plan.unreachable),
            }
        )
    else:
        out.line(f"back to release {shorten(to.digest)}: {'every host has everything' if ready else 'not offline'}")
        rows = [
            (
                host.host,
                "yes" if host.offline else "no",
                str(len(host.missing)),
                str(len(host.uncompiled)),
                size(host.bytes),
            )
            for host in hosts
        ]
        if rows:
            out.table(
                ("HOST", "OFFLINE", "LACKS BLOBS", "TO COMPILE", "TO SEND"),
                rows,
                right=("LACKS BLOBS", "TO COMPILE", "TO SEND"),
            )
        elif ready:
            out.line("nothing would be called")
        for host in plan.unreachable:
            out.line(f"does not answer: {host}")
    return errors.DONE if ready else errors.FAILED


def _as_dict(host: HostReadiness) -> dict[str, object]:
    return {
        "host": host.host,
        "missing": list(host.missing),
        "uncompiled": list(host.uncompiled),
        "bytes": host.bytes,
    }
