"""`unbundle`: the other side of `bundle`. Stores what the file holds; what runs, and what should run, is untouched."""

from __future__ import annotations

import contextlib
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tools import errors
from tools.cloud import open_cloud
from tools.output import counted, printable, shorten, size
from tools.standard_input import StandardInput

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from deployer.cloud.cloud import Cloud
    from deployer.history.release import ReleaseStore
    from tools.output import Output

EXAMPLE = """
lowcloud unbundle shop-2.bundle
lowcloud unbundle shop-2.bundle --expect 41c7be90     # no other release than the one that was announced
lowcloud unbundle shop-2.bundle --ref                 # the history follows: it is the same cloud, elsewhere
"""

STANDARD_INPUT = "-"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="what `bundle` wrote; - is standard input")
    parser.add_argument("--expect", metavar="RELEASE", help="refuse a bundle of another release")
    parser.add_argument("--ref", action="store_true", help="move this cloud's history to it, which must lead there")
    parser.add_argument("--store", metavar="DIR", help="into a store alone, which is made where there is none")


def run(args: argparse.Namespace, out: Output) -> int:
    from cas.digest import abbreviation

    if args.expect is not None and abbreviation(args.expect) is None:
        raise errors.UsageError(f"--expect {args.expect} is no release's hash", hint="at least 8 hex digits")
    if args.store is None:
        with open_cloud(args) as cloud:
            return _take(args, out, cloud.store, cloud)
    if args.ref:
        raise errors.UsageError("--ref is for a cloud, and --store names a store")
    from cas.store import Store

    with Store.open(Path(args.store)) as store:
        return _take(args, out, store, None)


def _take(args: argparse.Namespace, out: Output, store: ReleaseStore, cloud: Cloud | None) -> int:
    from deployer.history import bundling

    with _opened(args.file) as file, out.progress("unbundle") as progress:
        link, head, received = bundling.unpack(store, file, expected=args.expect, tell=progress)
    moved = args.ref and cloud is not None and bundling.advance(store, cloud.ref, link)
    if out.as_json:
        out.json(
            {
                "release": link.digest,
                "since": head.since,
                "definition": link.release.definition,
                "blobs": received.blobs,
                "of_blobs": len(head.blobs),
                "raw_bytes": received.raw_bytes,
                "ref": cloud.ref if moved and cloud is not None else None,
            }
        )
        return errors.DONE
    said = printable(link.release.message) or "no message"
    out.line(f"{link.digest}  by {printable(link.release.by.removeprefix('operator:'))}: {said}")
    missing = f"{received.blobs} of {counted(len(head.blobs), 'blob')}"
    out.line(f"missing here: {missing}; stored and verified: {size(received.raw_bytes)}")
    if moved and cloud is not None:
        out.line(f"{cloud.ref} is at this release now; no host has been called")
    elif cloud is not None:
        out.remark(f"nothing runs it yet: `lowcloud apply {shorten(link.digest)}` makes it what should run here")
    return errors.DONE


@contextlib.contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    with BufferedReader(StandardInput()) if path == STANDARD_INPUT else Path(path).open("rb") as file:
        yield file
