"""`peers`: what hosts have taken from each other since their agents started, how fast, and who is not believed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tools import errors
from tools.cloud import open_cloud
from tools.hosts import known_addresses, tell_failures, tell_waiting
from tools.output import shorten, size

if TYPE_CHECKING:
    import argparse

    from agent.api.neighbours import PeersStatus, PeerStatus
    from deployer.applying.fleet import Answers
    from deployer.cloud.cloud import Cloud
    from tools.output import Output

EXAMPLE = """
lowcloud peers
lowcloud peers --host fra1 --all
lowcloud peers --json
"""

HEAD = ("HOST", "REGION", "PEER", "REGION OF PEER", "RECEIVED", "SENT", "RATE", "FAILURES", "BANNED FOR")
NUMBERS = ("RECEIVED", "SENT", "RATE", "FAILURES")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", action="append", metavar="NAME", help="as this host sees it (may be repeated)")
    parser.add_argument("-a", "--all", action="store_true", help="also peers that nothing was exchanged with")


def run(args: argparse.Namespace, out: Output) -> int:
    import asyncio

    with open_cloud(args) as cloud:
        answers = asyncio.run(_ask(cloud, args.host))
    rows = [
        (host, status, peer)
        for host, status in answers.results.items()
        for peer in status.peers
        if args.all or peer.received_bytes or peer.sent_bytes or peer.failures or peer.banned
    ]
    if out.as_json:
        out.json([_as_dict(host, status, peer) for host, status, peer in rows])
    else:
        if rows:
            out.table(HEAD, [_cells(host, status, peer) for host, status, peer in rows], right=NUMBERS)
        elif answers.results:
            out.line("hosts have taken nothing from each other")
        for host, status in answers.results.items():
            out.line(f"{host}: {size(status.deployer_bytes)} from operators")
        tell_waiting({host: status.waiting for host, status in answers.results.items()}, out)
    return errors.FAILED if tell_failures(answers.failures, out) else errors.DONE


async def _ask(cloud: Cloud, hosts: list[str] | None) -> Answers[PeersStatus]:
    from deployer.applying.fleet import Fleet

    async with Fleet(known_addresses(cloud), cloud.credentials) as fleet:
        return await fleet.each(hosts or fleet.hosts, lambda client: client.peers())


def _cells(host: str, status: PeersStatus, peer: PeerStatus) -> tuple[str, ...]:
    return (
        host,
        status.region,
        peer.host,
        peer.region,
        size(peer.received_bytes),
        size(peer.sent_bytes),
        f"{size(int(peer.rate_bytes_s))}/s" if peer.rate_bytes_s else "-",
        str(peer.failures),
        ", ".join(shorten(digest) for digest in peer.banned),
    )


def _as_dict(host: str, status: PeersStatus, peer: PeerStatus) -> dict[str, Any]:
    return {
        "host": host,
        "region": status.region,
        "peer": peer.host,
        "peer_region": peer.region,
        "address": peer.address,
        "received_bytes": peer.received_bytes,
        "sent_bytes": peer.sent_bytes,
        "rate_bytes_s": peer.rate_bytes_s,
        "failures": peer.failures,
        "banned": list(peer.banned),
        "deployer_bytes": status.deployer_bytes,
    }
