"""A small web server in plain Python: asyncio's streams, a health path, a greeting from its configuration file.

Built into a component by componentize-py (docs/guests.md); nothing in it knows of lowcloud but the names of the
environment's variables. What it imports has to be imported here at the top, because the build takes a snapshot of the
interpreter after the imports, and the component has no files to import from later.
"""

import asyncio
import json
import os
from pathlib import Path

from wit_world import exports

VERSION = "1.0"
CONFIG = Path("/etc/greeter.json")
MAX_HEAD_BYTES = 16384


def response(status: str, body: str) -> bytes:
    content = body.encode()
    head = f"HTTP/1.1 {status}\r\nserver: greeter/{VERSION}\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


def answer(path: str, greeting: str) -> bytes:
    if path == "/health":
        return response("200 OK", "well\n")
    if path == "/":
        return response("200 OK", f"{greeting} from python {VERSION}\n")
    return response("404 Not Found", "nothing here\n")


async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, greeting: str) -> None:
    """One connection, request after request, until the client ends it."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            _, path, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
            writer.write(answer(path, greeting))
            await writer.drain()
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, ConnectionError):
        pass
    finally:
        writer.close()


async def serve(host: str, port: int, greeting: str) -> None:
    server = await asyncio.start_server(
        lambda reader, writer: serve_one(reader, writer, greeting), host, port, limit=MAX_HEAD_BYTES, backlog=1024
    )
    print(f"greeter {VERSION} listens on {host}:{port}", flush=True)
    await server.serve_forever()


class Run(exports.Run):
    def run(self) -> None:
        greeting = json.loads(CONFIG.read_text())["greeting"]
        host, _, port = os.environ["LOWCLOUD_LISTEN_HTTP"].rpartition(":")
        asyncio.run(serve(host, int(port), greeting))
