"""`logs`: what the guests of a process have written to standard output and standard error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools import errors
from tools.cloud import open_cloud
from tools.hosts import known_addresses, split_instance
from tools.output import printable

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator

    from deployer.cloud.cloud import Cloud
    from tools.output import Output

EXAMPLE = """
lowcloud logs web@fra1
lowcloud logs web@fra1 -f
lowcloud logs web@fra1 --tail 1000000 > web.log
"""

DEFAULT_TAIL_BYTES = 64 << 10
MAX_LINE_BYTES = 64 << 10
"""A longer line is cut into pieces."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("process", metavar="NAME@HOST", help="the process, such as web@fra1")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what comes, until Ctrl-C")
    parser.add_argument(
        "--tail", type=int, default=DEFAULT_TAIL_BYTES, metavar="BYTES", help="how much of the past (default: 64 KiB)"
    )


def run(args: argparse.Namespace, out: Output) -> int:
    import asyncio

    process, host = split_instance(args.process)
    if args.tail < 0:
        raise errors.UsageError("--tail wants a number of bytes from 0")
    with open_cloud(args) as cloud:
        asyncio.run(_print(cloud, process, host, args, out))
    return errors.DONE


async def _print(cloud: Cloud, process: str, host: str, args: argparse.Namespace, out: Output) -> None:
    from deployer.applying.fleet import Fleet

    async with Fleet(known_addresses(cloud), cloud.credentials) as fleet:
        client = await fleet.client(host)
        pieces = client.output(process, follow=args.follow, tail_bytes=args.tail)
        if not (out.as_json or out.on_terminal):
            async for piece in pieces:
                out.raw(piece)
            return
        async for line in _lines(pieces):
            text = line.decode(errors="replace").removesuffix("\n")
            if out.as_json:
                out.json({"process": process, "host": host, "line": text})
            out.line("\t".join(printable(part) for part in text.split("\t")))
            out.flush()


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes cut at line ends; on a terminal, what a guest writes is text and never a command to it."""
    held = b""
    async for piece in pieces:
        held += piece
        while (end := held.find(b"\n", 0, MAX_LINE_BYTES) + 1) or len(held) >= MAX_LINE_BYTES:
            cut = end or MAX_LINE_BYTES
            yield held[:cut]
            held = held[cut:]
    if held:
        yield held
