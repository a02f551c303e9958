"""The actions of `volume` that are about snapshots: taking one, listing, restoring, forgetting."""

from __future__ import annotations

import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from tools import errors
from tools.cloud import open_cloud
from tools.confirm import confirmed
from tools.hosts import split_instance
from tools.output import counted, iso_time, local_time, printable, shorten, size

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator

    from agent.api.calls import RestoreVolume
    from agent.api.facts import HostFacts
    from deployer.applying.fleet import Answers
    from deployer.applying.site import Site
    from deployer.applying.snapshots import Brought
    from deployer.cloud.cloud import Cloud
    from deployer.history.snapshots import Named, Snapshots
    from tools.output import Output

DEFAULT_PAUSE = "5s"


def configure(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> list[argparse.ArgumentParser]:
    """Add the actions; each is a parser of its own."""
    taking = actions.add_parser("snapshot", help="keep in the cloud's store what a volume holds now")
    taking.add_argument("volume", metavar="NAME", help="the volume, such as kv-data or kv-data@fra1")
    taking.add_argument("--host", metavar="HOST", help="the host that has it, where several have one of that name")
    taking.add_argument("-m", "--message", metavar="TEXT", default="", help="why, for `volume snapshots`")
    taking.add_argument(
        "--max-pause",
        metavar="TIME",
        default=DEFAULT_PAUSE,
        help=f"hold its process for no longer ({DEFAULT_PAUSE})",
    )
    listing = actions.add_parser("snapshots", help="the snapshots that are kept, the newest first")
    listing.add_argument("volume", nargs="?", metavar="NAME", help="only of this volume")
    restoring = actions.add_parser("restore", help="make a volume of a snapshot, on any host")
    restoring.add_argument(
        "volume", metavar="NAME", help="what the volume shall be called, such as kv-data or kv-data@ams1"
    )
    restoring.add_argument("snapshot", metavar="SNAPSHOT", help="its hash, or a volume's name for the newest of it")
    restoring.add_argument("--host", metavar="HOST", help="where (default: where the snapshot was taken)")
    restoring.add_argument("--size", metavar="SIZE", help="of the volume (default: as when the snapshot was taken)")
    restoring.add_argument("--replace", action="store_true", help="give up the volume of that name and what is in it")
    restoring.add_argument("-y", "--yes", action="store_true", help="do not ask before something is given up")
    forgetting = actions.add_parser("forget", help="keep snapshots no longer; `gc` then frees what nothing else needs")
    forgetting.add_argument("snapshots", nargs="+", metavar="SNAPSHOT", help="the hash of a snapshot")
    forgetting.add_argument("-y", "--yes", action="store_true", help="do not ask")
    return [taking, listing, restoring, forgetting]


# --- snapshot -------------------------------------------------------------------------------------------------------


def take(args: argparse.Namespace, out: Output) -> int:
    import asyncio

    volume, host = _named(args.volume, args.host)
    with open_cloud(args) as cloud:
        host, brought = asyncio.run(_take(cloud, args, volume, host, out))
    facts = brought.facts
    if out.as_json:
        out.json(
            {
                "snapshot": facts.snapshot,
                "volume": volume,
                "host": host,
                "at": iso_time(facts.at_unix_ns),
                "entries": facts.entries,
                "data_bytes": facts.data_bytes,
                "read_bytes": facts.read_bytes,
                "stored_bytes": facts.stored_bytes,
                "pause_ms": facts.pause_ms,
                "left_out": facts.left_out,
                "received_blobs": brought.blobs,
                "received_bytes": brought.wire_bytes,
            }
        )
        return errors.DONE
    out.line(f"{shorten(facts.snapshot)}  {volume}@{host}: {_entries(facts.entries)}, {size(facts.data_bytes)}")
    held = f"its process was held for {facts.pause_ms:.1f} ms" if facts.pause_ms else "no process was held"
    out.line(f"  read {size(facts.read_bytes)}, stored {size(facts.stored_bytes)} there; {held}")
    out.line(f"  received {size(brought.wire_bytes)}, {counted(brought.blobs, 'blob')}")
    if facts.left_out:
        out.remark(f"left out, being neither file, directory nor symbolic link: {_entries(facts.left_out)}")
    return errors.DONE


async def _take(
    cloud: Cloud, args: argparse.Namespace, volume: str, host: str | None, out: Output
) -> tuple[str, Brought]:
    from agent.api.calls import SnapshotVolume
    from cas.tree import MAX_MESSAGE
    from deployer.applying import snapshots
    from tools.deploying import seconds

    if len(args.message) > MAX_MESSAGE:
        raise errors.UsageError(f"--message has {len(args.message)} characters; at most {MAX_MESSAGE} are kept")
    pause_s = seconds(args.max_pause, "--max-pause") or 0.0
    if not 0 < pause_s <= 60:
        raise errors.UsageError("--max-pause is more than nothing and at most 60s")
    call = SnapshotVolume(volume, secrets.token_hex(16), args.message, pause_s)
    async with _site(cloud, out) as site:
        host = host or _only_host(volume, await site.fleet.each(site.fleet.hosts, lambda c: c.host()))
        return host, await snapshots.take(site, host, call)


def _only_host(volume: str, answers: Answers[HostFacts]) -> str:
    """The host that has a volume. Raises UsageError, HostsUnreachable."""
    found = [host for host, facts in sorted(answers.results.items()) if volume in {v.volume for v in facts.volumes}]
    if len(found) == 1:
        return found[0]
    if found:
        raise errors.UsageError(f"{' and '.join(found)} have a volume {volume}", hint="say which: --host")
    answers.all()
    raise errors.UsageError(f"no host has a volume {volume}", hint="`lowcloud volume ls` shows what there is")


# --- snapshots, forget ----------------------------------------------------------------------------------------------


def show(args: argparse.Namespace, out: Output) -> int:
    with open_cloud(args) as cloud:
        found = _snapshots(cloud).every(args.volume)
    if out.as_json:
        out.json([_as_dict(one) for one in found])
    elif found:
        head = ("SNAPSHOT", "VOLUME", "TAKEN", "BY", "ENTRIES", "DATA", "MESSAGE")
        out.table(head, [_row(one) for one in found], right=("ENTRIES", "DATA"))
    else:
        out.line("no snapshots")
    return errors.DONE


def _as_dict(one: Named) -> dict[str, Any]:
    held = one.snapshot
    return {
        "snapshot": one.digest,
        "volume": held.volume,
        "host": held.host,
        "at": iso_time(held.at_unix_ns),
        "by": held.by,
        "entries": held.entries,
        "data_bytes": held.data_bytes,
        "size_bytes": held.size_bytes,
        "left_out": held.left_out,
        "message": held.message,
    }


def _row(one: Named) -> tuple[str, ...]:
    held = one.snapshot
    whose, taken, by = f"{held.volume}@{held.host}", local_time(held.at_unix_ns), held.by.removeprefix("operator:")
    return shorten(one.digest), whose, taken, by, str(held.entries), size(held.data_bytes), held.message


def forget(args: argparse.Namespace, out: Output) -> int:
    """All of them or, where one is not there, none."""
    with open_cloud(args) as cloud:
        snapshots = _snapshots(cloud)
        doomed = {one.digest: one for one in map(snapshots.find, args.snapshots)}
        for one in doomed.values():
            out.line(f"{shorten(one.digest)}  {_source(one)}")
        if not confirmed("forget?", out, yes=args.yes):
            return errors.DONE
        for digest in doomed:
            snapshots.forget(digest)
    if out.as_json:
        out.json([_as_dict(one) for one in doomed.values()])
    out.remark("`lowcloud gc` frees what nothing else needs")
    return errors.DONE


# --- restore --------------------------------------------------------------------------------------------------------


def restore(args: argparse.Namespace, out: Output) -> int:
    import asyncio

    from agent.api.calls import RestoreVolume
    from deployer.history.snapshots import refuse_small

    with open_cloud(args) as cloud:
        one = _snapshots(cloud).find(args.snapshot)
        size_bytes = _size(args.size) if args.size else one.snapshot.size_bytes
        refuse_small(one.snapshot, size_bytes)
        volume, named = _named(args.volume, args.host)
        host = named or one.snapshot.host
        if args.replace:
            out.line(f"{volume}@{host}: what is in it will be gone for good")
            if not confirmed("replace it?", out, yes=args.yes):
                return errors.DONE
        call = RestoreVolume(volume, one.digest, size_bytes, secrets.token_hex(16), args.replace)
        sent_bytes = asyncio.run(_restore(cloud, host, call, out))
    if out.as_json:
        row = {"volume": volume, "host": host, "snapshot": one.digest, "size_bytes": size_bytes}
        out.json({**row, "data_bytes": one.snapshot.data_bytes, "sent_bytes": sent_bytes})
    out.line(f"{volume}@{host}: {_source(one)}")
    out.line(f"  sent {size(sent_bytes)}; the volume has {size(size_bytes)}")
    return errors.DONE


async def _restore(cloud: Cloud, host: str, call: RestoreVolume, out: Output) -> int:
    from deployer.applying import snapshots

    async with _site(cloud, out) as site:
        return (await snapshots.restore(site, host, call))[1]


def _source(one: Named) -> str:
    held = one.snapshot
    told = f" ({printable(held.message)})" if held.message else ""
    where = f"{held.volume}@{held.host} as it was {local_time(held.at_unix_ns)}"
    return f"{where}{told}, {_entries(held.entries)}, {size(held.data_bytes)}"


def _size(text: str) -> int:
    from deployer.language.schema import Unit
    from deployer.language.units import UnitError, parse

    try:
        return parse(Unit.BYTES, text)
    except UnitError as error:
        raise errors.UsageError(f"--size: {error}", hint=error.hint) from error


def _entries(number: int) -> str:
    return counted(number, "entry", "entries")


# --- common ---------------------------------------------------------------------------------------------------------


def _named(text: str, host: str | None) -> tuple[str, str | None]:
    """A volume and its host, from `kv-data`, `kv-data@fra1` and what `--host` says. Raises UsageError."""
    from deployer.language.reading import text_complaint
    from deployer.language.schema import Name

    volume, named = split_instance(text, "volume", "kv-data@fra1") if "@" in text else (text, host)
    if complaint := text_complaint(Name, volume):
        raise errors.UsageError(f"the volume's name: {complaint[0]}", hint=complaint[1])
    if host not in (None, named):
        raise errors.UsageError(f"{text} is not on {host}", hint="name the host once")
    return volume, named


def _snapshots(cloud: Cloud) -> Snapshots:
    from deployer.history.snapshots import Snapshots

    return Snapshots(cloud.store, cloud.ref)


@asynccontextmanager
async def _site(cloud: Cloud, out: Output) -> AsyncIterator[Site]:
    """The cloud's hosts, with a bar for what travels."""
    from deployer.applying.fleet import Fleet
    from deployer.applying.site import Site
    from deployer.cloud import trust
    from tools.deploying import Telling
    from tools.hosts import known_addresses

    with out.progress("blobs") as bar:
        async with Fleet(known_addresses(cloud), cloud.credentials) as fleet:
            yield Site(cloud.store, cloud.ref, fleet, trust.common_name(cloud.credentials), Telling(out, bar))
