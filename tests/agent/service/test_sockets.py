"""What the sockets of a client say of what has arrived, and what becomes of what has not."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator

import pytest

from agent.sockets import Sockets

SENT_BYTES = 100_000

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what was acknowledged")

Pair = tuple[Sockets, socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """The two ends of a connection over loopback; the first is one of the sockets."""
    sockets = Sockets()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        with sockets.make((socket.AF_INET, socket.SOCK_STREAM, 0, "", address)) as ours:
            ours.connect(address)
            theirs, _ = server.accept()
            with theirs:
                yield sockets, ours, theirs


def test_what_the_other_side_has_taken_counts_until_the_connection_ends(pair: Pair) -> None:
    sockets, ours, theirs = pair
    before = sockets.acknowledged_bytes()
    assert before is not None
    ours.sendall(bytes(SENT_BYTES))
    assert len(theirs.recv(SENT_BYTES, socket.MSG_WAITALL)) == SENT_BYTES
    theirs.sendall(b"taken")
    assert ours.recv(5, socket.MSG_WAITALL) == b"taken"  # and with it came what acknowledges the rest
    assert sockets.acknowledged_bytes() == before + SENT_BYTES
    ours.close()
    assert sockets.acknowledged_bytes() == 0


def test_what_is_forgotten_is_cut_off(pair: Pair) -> None:
    sockets, ours, theirs = pair
    sockets.forget_unsent()
    ours.close()
    with pytest.raises(ConnectionResetError):
        theirs.recv(1)
