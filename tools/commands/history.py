"""`history`: the releases of this cloud, newest first. Reads nothing but the chain, so it starts fast.

With `-w` the newest comes last, and the command goes on with those that come, whoever makes them, until Ctrl-C.
"""

from __future__ import annotations

from itertools import islice, takewhile
from typing import TYPE_CHECKING

from tools import errors
from tools.cloud import open_cloud
from tools.output import iso_time, local_time, printable, shorten

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from cas.digest import Digest
    from deployer.cloud.cloud import Cloud
    from deployer.history.release import Link, Release
    from tools.output import Output

EXAMPLE = """
lowcloud history
lowcloud history -n 5 --json
lowcloud history -n 1 -w
"""

HEAD = ("RELEASE", "TIME", "BY", "KIND", "DEFINITION", "MESSAGE")
ALIGNED_ROWS = 500
"""With so many rows before it is a row aligned that comes later; `-w` begins with at most so many."""
SHOWN_HOSTS = 3
"""So many of the hosts that a release did not reach are named in a row."""
RETRY_S = 1.0
"""Between two attempts to watch a history whose engine does not answer."""

SHORT = True


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", dest="limit", type=int, metavar="N", help="at most so many, the newest")
    parser.add_argument("-w", "--watch", action="store_true", help="go on with those that come, until Ctrl-C")


def run(args: argparse.Namespace, out: Output) -> int:
    from deployer.history import release

    if args.limit is not None and args.limit < 1:
        raise errors.UsageError("-n wants a number from 1")
    with open_cloud(args) as cloud:
        if args.watch:
            return _watch(cloud, args.limit, out)
        links = list(islice(release.chain(cloud.store, cloud.store.read_ref(cloud.ref)), args.limit))
    if out.as_json:
        out.json([_as_dict(link) for link in links])
    elif links:
        out.table(HEAD, [_row(link) for link in links])
    else:
        out.remark("no releases yet; `lowcloud apply` makes the first")
    return errors.DONE


def _watch(cloud: Cloud, limit: int | None, out: Output) -> int:
    """Each release on a line of its own, the oldest first; with --json an object on each line. Does not end."""
    import gc
    from collections import deque

    from deployer.history import release
    from tools.output import table_lines

    gc.enable()
    last: Digest | None = None
    shown: deque[tuple[str, ...]] = deque(maxlen=ALIGNED_ROWS)
    for number, head in enumerate(_heads(cloud, out)):
        links = release.chain(cloud.store, head)
        new = list(islice(links, limit)) if number == 0 else list(_newer(links, last))
        shown.extend(map(_row, reversed(new)))
        if out.as_json:
            for link in reversed(new):
                out.json(_as_dict(link))
        else:
            lines = list(table_lines(HEAD, shown))
            for line in lines[len(lines) - min(len(new), len(shown)) - (number == 0) :]:
                out.line(line)
        out.flush()
        last = head
    return errors.DONE


def _newer(links: Iterator[Link], seen: Digest | None) -> Iterator[Link]:
    return takewhile(lambda link: link.digest != seen, links)


def _heads(cloud: Cloud, out: Output) -> Iterator[Digest | None]:
    """The newest release, and then each time there is another. Watching goes on when the engine is back."""
    import time

    from cas.engines.errors import EngineUnreachable
    from cas.engines.shared import SharedStore
    from cas.watching import watch

    store = cloud.store
    if not isinstance(store, SharedStore):
        yield from watch(store, cloud.ref)
        return
    yield store.read_ref(cloud.ref)
    lost = False
    while True:
        try:
            for head in store.watch(cloud.ref):
                if lost:
                    out.remark("the history can be read again")
                lost = False
                yield head
        except EngineUnreachable as error:
            if not lost:
                out.remark(f"warning: {printable(str(error))}; trying again until it answers")
            lost = True
            time.sleep(RETRY_S)


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
        "behind": list(release.behind),
        "leaving": sorted(release.leaving),
        "signed": release.signed,
        "signed_by": release.signed_by or None,
    }


def _who(release: Release) -> str:
    by = release.by.removeprefix("operator:")
    return f"{by}, signed by {release.signed_by.removeprefix('operator:')}" if release.signed_by else by


def _row(link: Link) -> tuple[str, ...]:
    release = link.release
    message = release.message.split("\n", 1)[0]
    if release.restores and not message:
        message = f"restores {shorten(release.restores)}"
    if release.behind:
        message += f" (without {', '.join(release.behind[:SHOWN_HOSTS])}{' …' * (len(release.behind) > SHOWN_HOSTS)})"
    return (
        shorten(link.digest),
        local_time(release.at_unix_ns),
        _who(release),
        release.kind,
        shorten(release.definition),
        message,
    )
