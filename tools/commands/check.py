"""`check`: every blob of the store is read and compared with its name; hosts give back what is damaged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tools import errors
from tools.cloud import open_cloud
from tools.output import counted, printable, size

if TYPE_CHECKING:
    import argparse

    from cas.interface import BlobSource, Damage
    from deployer.cloud.cloud import Cloud
    from tools.output import Output

EXAMPLE = """
lowcloud check
lowcloud check --from fra1              # what is damaged here, it may have
lowcloud check --host fra1 --host ams1
lowcloud check --host fra1 --json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--host", action="append", metavar="NAME", help="this host's store (may be repeated)")
    where.add_argument(
        "--from", dest="source", action="append", metavar="NAME", help="repair from this host (may be repeated)"
    )


def run(args: argparse.Namespace, out: Output) -> int:
    with open_cloud(args) as cloud:
        if args.host:
            return _check_hosts(cloud, args.host, out)
        with out.progress("check", unit="blobs") as progress:
            checked = cloud.store.check(source=_hosts(cloud, args.source), progress=progress)
        damaged = [*checked.damaged, *_absent_from_origin(cloud)]
    if out.as_json:
        out.json({"blobs": checked.blobs, "bytes": checked.bytes, "damaged": damaged})
    else:
        out.line(f"{counted(checked.blobs, 'blob')} verified, {size(checked.bytes)}; {len(damaged)} damaged")
        for damage in damaged:
            out.line(f"  {damage.digest}  {damage.reason}{' (repaired)' if damage.repaired else ''}")
    unrepaired = [damage for damage in damaged if not damage.repaired]
    if unrepaired:
        out.remark(
            "`lowcloud check --from HOST` repairs what that host has; otherwise push the same files again, and restore "
            "releases, plans and definitions from your backup"
        )
    return errors.FAILED if unrepaired else errors.DONE


def _hosts(cloud: Cloud, names: list[str] | None) -> BlobSource | None:
    """Raises HostUnknown."""
    if not names:
        return None
    from deployer.applying.syncing import HostBlobs
    from deployer.errors import HostUnknown
    from tools.hosts import known_addresses

    known = known_addresses(cloud)
    if strange := [name for name in names if name not in known]:
        raise HostUnknown(strange[0], tuple(known))
    return HostBlobs({name: known[name] for name in names}, cloud.credentials)


def _absent_from_origin(cloud: Cloud) -> list[Damage]:
    """Where blobs are shared: what another operator would look for in vain."""
    if not cloud.is_shared:
        return []
    from cas.engines.shared import SharedStore
    from deployer.cloud.engines import check_whole

    return check_whole(cloud.store) if isinstance(cloud.store, SharedStore) else []


def _check_hosts(cloud: Cloud, hosts: list[str], out: Output) -> int:
    import asyncio

    from agent.api.calls import Check
    from tools.hosts import call_each, tell_failures

    answers = asyncio.run(call_each(cloud, hosts, Check()))
    rows: list[dict[str, Any]] = []
    damaged = False
    for host, found in answers.results.items():
        row = {"host": host, "blobs": found.blobs, "bytes": found.bytes}
        rows.append({**row, "damaged": found.damaged, "detail": found.detail})
        out.line(f"{host}: {counted(found.blobs, 'blob')} verified, {size(found.bytes)}; {len(found.damaged)} damaged")
        for digest in found.damaged:
            damaged = True
            out.line(f"  {digest}")
        if found.detail:
            out.line(f"  {printable(found.detail)}")
    if out.as_json:
        out.json(rows)
    return errors.FAILED if tell_failures(answers.failures, out) or damaged else errors.DONE
