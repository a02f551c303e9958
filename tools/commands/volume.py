"""`volume`: what is kept on the hosts, how it is brought elsewhere, and how it goes. A volume outlives its processes
and its definition; only this verb deletes one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools import errors, volume_snapshots
from tools.cloud import open_cloud
from tools.confirm import confirmed
from tools.hosts import call_each, known_addresses, released_definition, split_instance, tell_failures
from tools.output import size

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping

    from agent.api.facts import HostFacts, VolumeStatus
    from deployer.applying.fleet import Answers
    from deployer.cloud.cloud import Cloud
    from tools.output import Output

EXAMPLE = """
lowcloud volume ls
lowcloud volume snapshot kv-data -m "before the move"
lowcloud volume snapshots
lowcloud volume restore kv-data kv-data --host ams1
lowcloud volume forget 8d2f01aa
lowcloud volume delete kv-data@fra1
"""

Volumes = dict[str, dict[str, "VolumeStatus"]]
"""By host, then by name."""


def configure(parser: argparse.ArgumentParser) -> None:
    from tools.common_options import add_to_actions

    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("ls", help="every volume, its size, what is in it, and whose it is")
    listing.add_argument("names", nargs="*", metavar="HOST", help="only these hosts")
    delete = actions.add_parser("delete", help="delete volumes with all that is in them; refused while one is held")
    delete.add_argument("volumes", nargs="+", metavar="NAME@HOST", help="the volume, such as kv-data@fra1")
    delete.add_argument("-y", "--yes", action="store_true", help="do not ask")
    add_to_actions((listing, delete, *volume_snapshots.configure(actions)))


def run(args: argparse.Namespace, out: Output) -> int:
    verbs: dict[str, Callable[[argparse.Namespace, Output], int]] = {
        "ls": _list,
        "delete": _delete,
        "snapshot": volume_snapshots.take,
        "snapshots": volume_snapshots.show,
        "restore": volume_snapshots.restore,
        "forget": volume_snapshots.forget,
    }
    return verbs[args.action](args, out)


def _list(args: argparse.Namespace, out: Output) -> int:
    import asyncio

    with open_cloud(args) as cloud:
        answers = asyncio.run(_ask(cloud, args.names))
        defined = _defined(cloud)
    rows = [
        {
            "volume": volume.volume,
            "host": host,
            "size_bytes": volume.size_bytes,
            "used_bytes": volume.used_bytes,
            "held_by": volume.held_by,
            "defined": (volume.volume, host) in defined,
        }
        for host, volumes in sorted(_volumes(answers).items())
        for volume in volumes.values()
    ]
    if out.as_json:
        out.json(rows)
    elif rows:
        out.table(("VOLUME", "USED", "SIZE", "HELD BY", "DEFINED"), [_shown(row) for row in rows])
    else:
        out.line("no volumes")
    return errors.FAILED if tell_failures(answers.failures, out) else errors.DONE


def _shown(row: Mapping[str, object]) -> tuple[str, ...]:
    used, total = (size(int(str(row[name]))) for name in ("used_bytes", "size_bytes"))
    held, defined = row["held_by"] or "-", "yes" if row["defined"] else "no"
    return f"{row['volume']}@{row['host']}", used, total, str(held), defined


def _delete(args: argparse.Namespace, out: Output) -> int:
    """All of them or, where one is not there or held, none."""
    import asyncio

    from agent.api.calls import DeleteVolume

    wanted = list(dict.fromkeys(split_instance(text, "volume", "kv-data@fra1") for text in args.volumes))
    with open_cloud(args) as cloud:
        answers = asyncio.run(_ask(cloud, sorted({host for _, host in wanted})))
        if tell_failures(answers.failures, out):
            return errors.FAILED
        found = _volumes(answers)
        doomed = [(_find(found, name, host), host) for name, host in wanted]
        for volume, host in doomed:
            out.line(f"{volume.volume}@{host}: {size(volume.used_bytes)} will be gone for good")
        if not confirmed("delete?", out, yes=args.yes):
            return errors.DONE
        failed = False
        for volume, host in doomed:
            outcome = asyncio.run(call_each(cloud, [host], DeleteVolume(volume.volume)))
            if tell_failures(outcome.failures, out):
                failed = True
            else:
                out.line(f"{volume.volume}@{host} deleted")
    if out.as_json and not failed:
        out.json([{"volume": volume.volume, "host": host, "freed_bytes": volume.used_bytes} for volume, host in doomed])
    return errors.FAILED if failed else errors.DONE


async def _ask(cloud: Cloud, names: list[str]) -> Answers[HostFacts]:
    from deployer.applying.fleet import Fleet

    async with Fleet(known_addresses(cloud), cloud.credentials) as fleet:
        return await fleet.each(names or fleet.hosts, lambda client: client.host())


def _volumes(answers: Answers[HostFacts]) -> Volumes:
    return {host: {volume.volume: volume for volume in facts.volumes} for host, facts in answers.results.items()}


def _defined(cloud: Cloud) -> frozenset[tuple[str, str]]:
    """The volumes of the newest release, each with the host of the process that has it."""
    definition = released_definition(cloud)
    processes = definition.process.values() if definition else ()
    return frozenset((volume, host) for one in processes for volume in one.volume.values() for host in one.hosts)


def _find(volumes: Volumes, name: str, host: str) -> VolumeStatus:
    volume = volumes[host].get(name)
    if volume is None:
        there = ", ".join(sorted(volumes[host])) or "nothing"
        raise errors.UsageError(f"{host} has no volume {name}", hint=f"it has: {there}")
    if volume.held_by:
        hint = f"take {volume.held_by} out of the definition, or its volume, and apply"
        raise errors.UsageError(f"{name}@{host} is held by {volume.held_by}", hint=hint)
    return volume
