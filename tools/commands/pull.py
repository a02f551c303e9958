"""`pull`: a blob becomes a file again. The file appears whole and verified, or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tools import errors
from tools.cloud import open_cloud, shown_path

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

    from tools.output import Output, Progress

EXAMPLE = """
lowcloud pull b3:1f0e9c2ab844 -o web.wasm
lowcloud pull 1f0e9c2a -o - | sha256sum
"""

STANDARD_OUTPUT = "-"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("hash", metavar="HASH", help="the blob; at least 8 of its hex digits")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="where it goes; - is standard output")


def run(args: argparse.Namespace, out: Output) -> int:
    to_stdout = args.output == STANDARD_OUTPUT
    if to_stdout and out.as_json:
        raise errors.UsageError("--json and -o - both want standard output", hint="name a file with -o")
    with open_cloud(args) as cloud:
        digest = cloud.store.find(args.hash)
        size = cloud.store.stat(digest).size
        with out.progress("pull") as progress:
            pieces = _counted(cloud.store.stream(digest), size, progress)
            if to_stdout:
                for piece in pieces:
                    out.raw(piece)
            else:
                write_file(Path(args.output), pieces)
    if out.as_json:
        out.json({"hash": digest, "path": shown_path(args.output), "size": size})
    elif not to_stdout:
        out.line(f"{digest}  {shown_path(args.output)}")
    return errors.DONE


def _counted(pieces: Iterable[bytes], total: int, progress: Progress) -> Iterator[bytes]:
    done = 0
    for piece in pieces:
        done += len(piece)
        progress(done, total)
        yield piece


def write_file(path: Path, pieces: Iterable[bytes]) -> None:
    """A file appears whole, or not at all. What is not a regular file (a pipe, a device) is written to as it is. Raises
    OSError."""
    if path.is_dir():
        raise errors.UsageError(f"{shown_path(path)} is a directory", hint="-o names the file to write")
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            file.writelines(pieces)
        return
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
