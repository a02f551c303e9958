"""Ports for servers that a test starts.

A port that the kernel hands out for "any" may be taken by somebody's outgoing connection, or by a test beside this one,
before the server has it. These come from below the kernel's own range, each once, from a part of it that belongs to
this process.
"""

from __future__ import annotations

import itertools
import os
import socket

FIRST = 12_000
PER_WORKER = 6_000
WORKERS = 3
"""12,000 to 30,000; the kernel's own range begins at 32,768."""

_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS
_candidates = itertools.count(os.getpid() * 97)


def free_port(address: str = "127.0.0.1") -> int:
    """A TCP port that nothing uses on any address of this family, and that this process gets only once."""
    family, everywhere = (socket.AF_INET6, "::") if ":" in address else (socket.AF_INET, "0.0.0.0")
    for number in itertools.islice(_candidates, PER_WORKER):
        port = FIRST + _worker * PER_WORKER + number % PER_WORKER
        with socket.socket(family) as probe:
            try:
                probe.bind((everywhere, port))
            except OSError:
                continue
            return port
    raise RuntimeError("every port of this process's range is in use")
