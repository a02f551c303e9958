"""`sync`: this cloud's store and a host's are compared as wholes, and one is given what it lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools import errors
from tools.cloud import open_cloud
from tools.hosts import known_addresses
from tools.output import counted, size

if TYPE_CHECKING:
    import argparse

    from deployer.applying.syncing import Compared
    from deployer.cloud.cloud import Cloud
    from tools.output import Output

EXAMPLE = """
lowcloud sync fra1
lowcloud sync fra1 --fetch
lowcloud sync ams1 --send
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("host", metavar="HOST", help="the host whose store is compared")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--fetch", action="store_true", help="store here what only the host has")
    what.add_argument("--send", action="store_true", help="send the host what only this store has")


def run(args: argparse.Namespace, out: Output) -> int:
    import asyncio

    with open_cloud(args) as cloud:
        found, moved_bytes = asyncio.run(_sync(cloud, args, out))
    report = {
        "host": args.host,
        "only_there": len(found.theirs),
        "only_here": len(found.ours),
        "round_trips": found.round_trips,
        "compared_bytes": found.wire_bytes,
        "fetched_bytes": moved_bytes if args.fetch else 0,
        "sent_bytes": moved_bytes if args.send else 0,
    }
    if out.as_json:
        out.json(report)
        return errors.DONE
    there, here = len(found.theirs), len(found.ours)
    out.line(f"{there} blobs are only on {args.host}, {here} only here")
    if args.fetch and there:
        out.line(f"fetched {counted(there, 'blob')}, {size(moved_bytes)}")
        out.remark("`lowcloud gc` removes in a week what no release needs by then")
    if args.send and here:
        out.line(f"sent {counted(here, 'blob')}, {size(moved_bytes)}")
        out.remark(f"a collection on {args.host} removes what no release of the hosts needs")
    return errors.DONE


async def _sync(cloud: Cloud, args: argparse.Namespace, out: Output) -> tuple[Compared, int]:
    from deployer.applying.fleet import Fleet
    from deployer.applying.site import Site
    from deployer.applying.syncing import bring, compare, send
    from deployer.cloud import trust

    async with Fleet(known_addresses(cloud), cloud.credentials) as fleet:
        client = await fleet.client(args.host)
        found = await compare(cloud.store, client)
        if args.fetch and found.theirs:
            with out.progress("fetch") as progress:
                return found, await bring(cloud.store, client, found.theirs, progress)
        if args.send and found.ours:
            with out.progress("send") as progress:
                site = Site(cloud.store, cloud.ref, fleet, trust.common_name(cloud.credentials))
                return found, await send(site, args.host, found.ours, progress)
    return found, 0
