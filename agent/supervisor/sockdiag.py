"""The kernel's TCP sockets, by `NETLINK_SOCK_DIAG`: needs no privilege, and unlike `/proc/net/tcp` it filters in the
kernel, which under load (thousands of sockets in TIME_WAIT) is the difference between 0.1 ms and 15 ms.

Format: `struct inet_diag_req_v2`, `struct inet_diag_msg` and the filter byte code of `linux/inet_diag.h`.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from agent.supervisor.place import HOST, Place

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_REQUEST_DUMP: Final = 0x301
_ERROR: Final = 2
_DONE: Final = 3

_SOURCE_PORT_AT_LEAST: Final = 2
_SOURCE_PORT_AT_MOST: Final = 3
_DESTINATION_PORT_AT_LEAST: Final = 4
_DESTINATION_PORT_AT_MOST: Final = 5
_TEST_BYTES: Final = 8

_HEADER_BYTES: Final = 16
_MESSAGE_BYTES: Final = 72
_READ_BYTES: Final = 256 << 10

ESTABLISHED: Final = 1
SYN_RECEIVED: Final = 3
FIN_WAIT_1: Final = 4
FIN_WAIT_2: Final = 5
CLOSE_WAIT: Final = 8
LAST_ACK: Final = 9
LISTEN: Final = 10
CLOSING: Final = 11
NEW_SYN_RECEIVED: Final = 12

HALF_OPEN: Final = frozenset({SYN_RECEIVED, NEW_SYN_RECEIVED})
OPEN: Final = frozenset({ESTABLISHED, FIN_WAIT_1, FIN_WAIT_2, CLOSE_WAIT, LAST_ACK, CLOSING})
"""A connection in one of these may still carry bytes."""


class TcpSocket(NamedTuple):
    state: int
    local: tuple[bytes, int]
    """Address (4 or 16 bytes) and port."""
    peer: tuple[bytes, int]
    inode: int
    """0 where no process holds it: half open, or waiting to be accepted."""


def tcp_sockets(
    family: int, port: int, states: frozenset[int], place: Place = HOST, *, peer_port: int | None = None
) -> list[TcpSocket]:
    """The TCP sockets with this local port. Raises OSError."""
    tests = [(_SOURCE_PORT_AT_LEAST, port), (_SOURCE_PORT_AT_MOST, port)]
    if peer_port is not None:
        tests += [(_DESTINATION_PORT_AT_LEAST, peer_port), (_DESTINATION_PORT_AT_MOST, peer_port)]
    filter_code = _byte_code(tests)
    mask = sum(1 << state for state in states)
    body = struct.pack("BBBBI", family, socket.IPPROTO_TCP, 0, 0, mask) + bytes(48)
    body += struct.pack("HH", 4 + len(filter_code), 1) + filter_code
    request = struct.pack("IHHII", _HEADER_BYTES + len(body), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0) + body
    with place.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        netlink.send(request)
        return [found for found in _answers(netlink) if found.local[1] == port]


def _byte_code(tests: list[tuple[int, int]]) -> bytes:
    """All tests must hold. Each is an operation and a pseudo-operation whose `no` field is the port; `no` of the
    operation jumps past the end, which means: leave this socket out."""
    total = _TEST_BYTES * len(tests)
    code = b""
    for index, (operation, port) in enumerate(tests):
        code += struct.pack("BBH", operation, _TEST_BYTES, total - index * _TEST_BYTES + 4)
        code += struct.pack("BBH", 0, 0, port)
    return code


def _answers(netlink: socket.socket) -> Iterator[TcpSocket]:
    while True:
        data = netlink.recv(_READ_BYTES)
        offset = 0
        while offset + _HEADER_BYTES <= len(data):
            length, kind = struct.unpack_from("IH", data, offset)
            if kind == _DONE:
                return
            if kind == _ERROR:
                (code,) = struct.unpack_from("i", data, offset + _HEADER_BYTES)
                raise OSError(-code, f"sock_diag: {os.strerror(-code)}")
            if length >= _HEADER_BYTES + _MESSAGE_BYTES:
                yield _parse(data[offset + _HEADER_BYTES : offset + length])
            offset += max((length + 3) & ~3, _HEADER_BYTES)


def _parse(message: bytes) -> TcpSocket:
    family, state = message[0], message[1]
    size = 4 if family == socket.AF_INET else 16
    local_port, peer_port = struct.unpack_from("!HH", message, 4)
    (inode,) = struct.unpack_from("I", message, 68)
    return TcpSocket(state, (message[8 : 8 + size], local_port), (message[24 : 24 + size], peer_port), inode)


def half_open_peers(family: int, port: int, place: Place = HOST) -> set[tuple[bytes, int]]:
    """Who is in the middle of a handshake with this port."""
    return {found.peer for found in tcp_sockets(family, port, HALF_OPEN, place)}


def is_accepted(family: int, port: int, peer_port: int, place: Place = HOST) -> bool:
    """Has a process accepted the connection that came from this port of the same place?"""
    return any(found.inode for found in tcp_sockets(family, port, OPEN, place, peer_port=peer_port))


def connections_of(inodes: set[int], family: int, port: int, place: Place = HOST) -> int:
    """How many open connections of a port are held by a process with these socket inodes."""
    return sum(found.inode in inodes for found in tcp_sockets(family, port, OPEN, place))


def waiting_in(listener: socket.socket) -> int:
    """Connections that wait in a listener to be accepted: `tcpi_unacked`, which for a listener is its queue's
    length."""
    information = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    (waiting,) = struct.unpack_from("I", information, 24)
    return int(waiting)
