"""`rollback`: an earlier release runs again, bit for bit, configurations included.

The history is never rewritten: a rollback is a new release of the same definition. Where the hosts still have the
blobs, nothing is sent.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tools import errors
from tools.cloud import open_cloud
from tools.output import local_time, printable, shorten

if TYPE_CHECKING:
    import argparse

    from tools.output import Output

EXAMPLE = """
lowcloud rollback
lowcloud rollback 8d2f01aa --yes -m "2.0 loses sessions"
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "release", nargs="?", metavar="RELEASE", help="its hash (default: the one before with another definition)"
    )
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    parser.add_argument("-m", "--message", default="", help="why, for the history")
    parser.add_argument("--planner", metavar="NAME", help="how the difference becomes calls (default: as configured)")
    parser.add_argument("--allow-unreachable", action="store_true", help="leave hosts alone that do not answer")


def run(args: argparse.Namespace, out: Output) -> int:
    from tools.commands.apply import agreed, finish
    from tools.deploying import exit_code, planned_rollback, rolled_back

    with open_cloud(args) as cloud:
        work = planned_rollback(cloud, args.release, args.planner, allow_unreachable=args.allow_unreachable)
        plan, sizes, to = asyncio.run(work)
        made = f"{local_time(to.release.at_unix_ns)} by {to.release.by}"
        out.line(f"back to release {shorten(to.digest)}, {made}: {printable(to.release.message) or 'no message'}")
        if not agreed(plan, sizes, out, yes=args.yes):
            out.remark("nothing was changed")
            return errors.FAILED
        applied = asyncio.run(rolled_back(cloud, plan, to, out, message=args.message))
    finish(applied, out)
    return exit_code(applied)
