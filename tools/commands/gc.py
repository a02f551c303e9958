"""`gc`: what no release, no ref and no name refers to is removed. Every rollback stays possible.

What was pushed and not deployed yet is kept for a week, unless `--pushed` says that it may go. `--repack` then stores
what stays in a better way: it takes about as long as pushing the newest versions did, and may be cut short any time.
`--host` collects on hosts instead: there the last releases' blobs are kept, so that a rollback needs no transfer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tools import errors
from tools.cloud import open_cloud
from tools.output import counted, size

if TYPE_CHECKING:
    import argparse

    from cas.interface import Collected, Repacked
    from deployer.cloud.cloud import Cloud
    from tools.output import Output

EXAMPLE = """
lowcloud gc --dry-run
lowcloud gc --pushed
lowcloud gc --repack
lowcloud gc --host fra1 --keep 3
"""

DEFAULT_KEEP = 5


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", "--dry-run", action="store_true", help="only say what would go")
    parser.add_argument("--pushed", action="store_true", help="also what was pushed lately and never deployed")
    parser.add_argument(
        "--repack", action="store_true", help="store the newest version of each file whole, older ones as deltas"
    )
    parser.add_argument("--host", action="append", metavar="NAME", help="collect on this host (may be repeated)")
    parser.add_argument(
        "--keep", type=int, metavar="N", help=f"with --host: keep the last N releases' blobs (default: {DEFAULT_KEEP})"
    )


def run(args: argparse.Namespace, out: Output) -> int:
    if args.host and (args.dry_run or args.pushed or args.repack):
        raise errors.UsageError("--dry-run, --pushed and --repack are for this store, not for a host's")
    if args.repack and args.dry_run:
        raise errors.UsageError("--repack does its work or not; it cannot be tried with --dry-run")
    if args.keep is not None and (args.keep < 0 or not args.host):
        raise errors.UsageError("--keep wants a number from 0, and goes with --host")
    with open_cloud(args) as cloud:
        if args.host:
            return _collect_on_hosts(cloud, args.host, DEFAULT_KEEP if args.keep is None else args.keep, out)
        return _collect_here(cloud, args, out)


def _collect_here(cloud: Cloud, args: argparse.Namespace, out: Output) -> int:
    from tools.commands.push import OWNER

    if args.pushed and not args.dry_run:
        cloud.store.release(OWNER)
    collected, at_origin = _collect(cloud, dry_run=args.dry_run, ignoring=OWNER if args.pushed else None)
    verb = "would remove" if args.dry_run else "removed"
    out.line(f"{verb} {counted(collected.blobs, 'blob')}, {size(collected.bytes)}; {collected.kept} stay")
    if at_origin is not None:
        out.line(f"at {cloud.config.blobs}: {verb} {at_origin.blobs}, {size(at_origin.bytes)}; {at_origin.kept} stay")
    repacked = _repack(cloud, out) if args.repack else None
    failed = [part for done in (collected, at_origin, repacked) if done is not None for part in done.failed]
    for damage in failed:
        out.line(f"  left alone: {damage.digest}  {damage.reason}")
    if out.as_json:
        row = {
            "blobs": collected.blobs,
            "bytes": collected.bytes,
            "kept": collected.kept,
            "failed": collected.failed,
            "dry_run": args.dry_run,
            "origin": at_origin,
            "repacked": repacked,
        }
        out.json(row)
    return errors.FAILED if failed else errors.DONE


def _collect(cloud: Cloud, *, dry_run: bool, ignoring: str | None) -> tuple[Collected, Collected | None]:
    """Here, and at the shared origin where there is one. What must stay is never guessed from an old copy of the
    history: it raises EngineUnreachable instead."""
    from cas.engines.shared import SharedStore
    from deployer.history.roots import roots

    store = cloud.store
    if not isinstance(store, SharedStore):
        return store.collect(roots(store), dry_run=dry_run, ignoring=ignoring), None
    store.fresh_refs()
    keep = roots(store)
    at_origin = None
    if store.origin is not None:
        at_origin = store.collect_origin(keep, dry_run=dry_run, ignoring=ignoring)
    return store.collect(keep, dry_run=dry_run, ignoring=ignoring), at_origin


def _repack(cloud: Cloud, out: Output) -> Repacked:
    with out.progress("repack", unit="names") as progress:
        repacked = cloud.store.repack(progress=progress)
    saved = repacked.saved_bytes
    change = f"{size(saved)} less" if saved >= 0 else f"{size(-saved)} more"
    out.line(f"stored {counted(repacked.blobs, 'blob')} anew, {change}")
    return repacked


def _collect_on_hosts(cloud: Cloud, hosts: list[str], keep: int, out: Output) -> int:
    import asyncio

    from agent.api.calls import Collect
    from tools.hosts import call_each, tell_failures

    answers = asyncio.run(call_each(cloud, hosts, Collect(keep)))
    rows: list[dict[str, Any]] = []
    for host, outcome in answers.results.items():
        rows.append({"host": host, "blobs": outcome.blobs, "bytes": outcome.bytes})
        out.line(f"{host}: removed {counted(outcome.blobs, 'blob')}, {size(outcome.bytes)}")
    if out.as_json:
        out.json(rows)
    return errors.FAILED if tell_failures(answers.failures, out) else errors.DONE
