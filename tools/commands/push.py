"""`push`: files become blobs. The same bytes are the same hash everywhere; a new version costs its delta.

A file that cannot be read does not keep the others from being stored; the exit code tells. What is pushed is protected
from collection for a week, because nothing refers to it until it is deployed.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from tools import errors
from tools.cloud import blob_name, open_cloud, shown_path
from tools.output import printable
from tools.standard_input import StandardInput

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from cas.interface import Stored
    from deployer.cloud.cloud import Cloud
    from tools.output import Output, Progress

EXAMPLE = """
lowcloud push build/web.wasm conf/web.toml
gzip -dc web.wasm.gz | lowcloud push --name build/web.wasm -
lowcloud push --json build/*.wasm
"""

STANDARD_INPUT = "-"
CHUNK_BYTES = 1 << 20
HOLD_S = 7 * 86400.0
OWNER = "push"
"""Who leases what has been pushed; `gc --pushed` ends these leases."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="a file to store; - is standard input")
    parser.add_argument("--name", help="what the store calls this blob and its next versions (default: the path)")


def run(args: argparse.Namespace, out: Output) -> int:
    if args.name is not None and len(args.files) > 1:
        raise errors.UsageError("--name goes with one file", hint="push the files one by one")
    rows = []
    failed = False
    with open_cloud(args) as cloud:
        for path in args.files:
            try:
                stored = _push(cloud, path, args.name, out)
            except OSError as error:
                if isinstance(error, BrokenPipeError):
                    raise
                failed = True
                errors.report(error, sys.stderr, as_json=out.as_json)
                continue
            rows.append(
                {
                    "path": shown_path(path),
                    "hash": stored.digest,
                    "size": stored.size,
                    "new": stored.new,
                    "stored_bytes": stored.stored_bytes,
                }
            )
            out.line(f"{stored.digest}  {printable(shown_path(path))}")
    if out.as_json:
        out.json(rows)
    return errors.FAILED if failed else errors.DONE


def _push(cloud: Cloud, path: str, name: str | None, out: Output) -> Stored:
    with _open(path) as file, out.progress(f"push {shown_path(path)}") as progress:
        stored = cloud.store.put_stream(_chunks(file, progress), name=name or _name_of(cloud, path))
    cloud.store.lease([stored.digest], owner=OWNER, ttl_s=HOLD_S)
    return stored


def _open(path: str) -> FileIO:
    """Unbuffered: a buffer would read on after Ctrl-C, until it is full. Raises OSError, also for a directory or a
    device, which may never end."""
    if path == STANDARD_INPUT:
        return StandardInput()
    file = FileIO(path)
    if stat.S_ISCHR(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "a device, not a file (to store what it gives, pipe it to `push -`)", path)
    return file


def _name_of(cloud: Cloud, path: str) -> str | None:
    return None if path == STANDARD_INPUT else shown_path(blob_name(cloud, Path(path)))


def _chunks(file: FileIO, progress: Progress) -> Iterator[bytes]:
    total = os.fstat(file.fileno()).st_size or None
    done = 0
    while chunk := file.read(CHUNK_BYTES):
        done += len(chunk)
        progress(done, total)
        yield chunk
