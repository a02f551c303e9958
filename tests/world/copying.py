"""The yardstick of a world's lines: so many bytes from one of its machines to another, over a bare socket."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

from tests.world.ground import World

RECEIVE: Final = """
import socket, sys
listener = socket.create_server(("0.0.0.0", 9000))
print("up", flush=True)
taken, _ = listener.accept()
while taken.recv(1 << 18):
    pass
"""
SEND: Final = """
import os, socket, sys, time
data = os.urandom(int(sys.argv[2]))
began = time.perf_counter()
made = socket.create_connection((sys.argv[1], 9000))
made.sendall(data)
made.shutdown(socket.SHUT_WR)
made.recv(1)
print(time.perf_counter() - began)
"""


def bare_copy_s(world: World, source: str, sink: str, size: int) -> float:
    """How long it takes, from the greeting until the sender knows that all of it has arrived."""
    receive = world.inside(sink, [sys.executable, "-c", RECEIVE])
    receiver = subprocess.Popen(receive, stdout=subprocess.PIPE)
    try:
        assert receiver.stdout is not None
        receiver.stdout.readline()
        words = [sys.executable, "-c", SEND, world.addresses[sink], str(size)]
        done = subprocess.run(world.inside(source, words), capture_output=True, text=True, check=True)
        return float(done.stdout)
    finally:
        receiver.kill()
        receiver.communicate()
