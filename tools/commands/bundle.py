"""`bundle`: a release as a file, for a place that no network leads to. `unbundle` takes it in there."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tools import errors
from tools.cloud import open_cloud, shown_path
from tools.commands.pull import STANDARD_OUTPUT, write_file
from tools.output import counted, shorten, size

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

    from deployer.cloud.cloud import Cloud
    from deployer.history.release import Link
    from tools.output import Output, Progress

EXAMPLE = """
lowcloud bundle 8d2f01aa -o shop-1.bundle
lowcloud bundle 41c7be90 --since 8d2f01aa -o shop-2.bundle     # where 8d2f01aa runs already
lowcloud bundle prod -o - | ssh far 'lowcloud -C shop unbundle -'
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("release", metavar="RELEASE", help="its hash, or the ref's name for the newest")
    parser.add_argument("--since", metavar="RELEASE", help="what the other side runs already (default: nothing)")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="where it goes; - is standard output")


def run(args: argparse.Namespace, out: Output) -> int:
    from cas import bundle
    from deployer.history import bundling

    to_stdout = args.output == STANDARD_OUTPUT
    if to_stdout and out.as_json:
        raise errors.UsageError("--json and -o - both want standard output", hint="name a file with -o")
    with open_cloud(args) as cloud:
        to = _release(cloud, args.release)
        since = None if args.since is None else _release(cloud, args.since)
        with tempfile.TemporaryFile(dir=cloud.state) as spool:
            with out.progress("bundle") as progress:
                head = bundling.pack(cloud.store, to, since, spool, tell=progress)
            total = len(bundle.encode(head)) + head.stream.size
            with out.progress("write") as progress:
                chunks = _counted(bundle.write(head, spool), total, progress)
                if to_stdout:
                    for chunk in chunks:
                        out.raw(chunk)
                else:
                    write_file(Path(args.output), chunks)
    if out.as_json:
        out.json(
            {
                "release": head.release,
                "since": head.since,
                "path": shown_path(args.output),
                "bytes": total,
                "blobs": len(head.blobs),
                "needs": len(head.needs),
            }
        )
    elif not to_stdout:
        builds_on = f", for where {shorten(head.since)} is" if head.since else ""
        out.line(
            f"{head.release}  {shown_path(args.output)}: {counted(len(head.blobs), 'blob')}, {size(total)}{builds_on}"
        )
    return errors.DONE


def _release(cloud: Cloud, text: str) -> Link:
    from deployer.history import bundling, release

    if text == cloud.ref:
        newest = release.head(cloud.store, cloud.ref)
        if newest is None:
            raise errors.UsageError(f"nothing has been released on {text!r} yet", hint="`lowcloud apply` does")
        return newest
    return bundling.find(cloud.store, cloud.ref, text)


def _counted(chunks: Iterable[bytes], total: int, progress: Progress) -> Iterator[bytes]:
    done = 0
    for chunk in chunks:
        done += len(chunk)
        progress(done, total)
        yield chunk
