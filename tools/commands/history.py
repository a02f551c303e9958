"""`history`: the releases of this cloud, newest first. Reads nothing but the chain, so it starts fast."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from tools import errors
from tools.cloud import open_cloud
from tools.output import iso_time, local_time, shorten

if TYPE_CHECKING:
    import argparse

    from deployer.release import Link
    from tools.output import Output

EXAMPLE = """
lowcloud history
lowcloud history -n 5 --json
"""

SHORT = True


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", dest="limit", type=int, metavar="N", help="at most so many, the newest")


def run(args: argparse.Namespace, out: Output) -> int:
    from deployer import release

    if args.limit is not None and args.limit < 1:
        raise errors.UsageError("-n wants a number from 1")
    with open_cloud(args) as cloud:
        links = list(islice(release.chain(cloud.store, cloud.store.read_ref(cloud.ref)), args.limit))
    if out.as_json:
        out.json([_as_dict(link) for link in links])
    elif links:
        out.table(("RELEASE", "TIME", "BY", "KIND", "DEFINITION", "MESSAGE"), [_row(link) for link in links])
    else:
        out.remark("no releases yet; `lowcloud apply` makes the first")
    return errors.DONE


def _as_dict(link: Link) -> dict[str, object]:
    release = link.release
    return {
        "release": link.digest,
        "parent": release.parent,
        "at": iso_time(release.at_unix_ns),
        "by": release.by,
        "message": release.message,
        "definition": release.definition,
        "plan": release.plan,
        "kind": release.kind,
        "restores": release.restores,
    }


def _row(link: Link) -> tuple[str, ...]:
    release = link.release
    message = release.message.split("\n", 1)[0]
    if release.restores and not message:
        message = f"restores {shorten(release.restores)}"
    return (
        shorten(link.digest),
        local_time(release.at_unix_ns),
        release.by.removeprefix("operator:"),
        release.kind,
        shorten(release.definition),
        message,
    )
