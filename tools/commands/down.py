"""`down`: end what `up` started on this machine, guests included. Their volumes and versions stay for the next `up`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools import errors
from tools.cloud import open_cloud

if TYPE_CHECKING:
    import argparse

    from tools.output import Output

EXAMPLE = """
lowcloud down
lowcloud down --host fra1
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", action="append", metavar="NAME", help="only this host (may be repeated)")


def run(args: argparse.Namespace, out: Output) -> int:
    from tools.local_cloud import local_hosts, started_otherwise, stop_agents

    with open_cloud(args) as cloud:
        known = local_hosts(cloud)
        for host in args.host or ():
            if host not in known:
                raise errors.UsageError(f"no host {host!r} was started here", hint=f"there are: {', '.join(known)}")
        stopped = stop_agents(cloud, args.host or known, out.remark)
        left = any(started_otherwise(cloud.host_directory(host)) for host in args.host or known)
    if out.as_json:
        out.json({"stopped": stopped})
    out.line(f"ended: {', '.join(stopped)}" if stopped else "nothing was ended" if left else "nothing was running")
    return errors.FAILED if left else errors.DONE
