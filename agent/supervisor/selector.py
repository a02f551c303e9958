"""Who gets a connection: the selector program of a group of SO_REUSEPORT sockets, and the group's order.

The kernel keeps the sockets that are bound to one address in an array. A program attached to it answers the index of
the socket that a new connection (or a datagram) goes to. The array's rules (`net/core/sock_reuseport.c`):

- a TCP socket joins when it listens, a UDP socket when it is bound, always as the last;
- when the socket at index i leaves, the last one moves to i;
- an index that does not exist means: choose any, by hash.

So a socket may leave only when the serving one's index stays what it is, or when only the serving one is left (then
"any" is right). `may_leave` says when; until then a socket that is not wanted stays open and gets nothing.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterable
from typing import Final, Generic, NamedTuple, TypeVar

from agent.sandbox import bpf
from agent.sandbox.bpf import Op, Program, assemble, give, if_equal, load

SO_ATTACH_REUSEPORT_CBPF: Final = 51
_NETWORK_HEADER: Final = 0xFFF00000
"""`SKF_NET_OFF`: offsets from the network header; the packet itself begins after the transport header here."""

T = TypeVar("T")


class Steer(NamedTuple):
    """Packets from exactly this address and port go to another socket than the serving one."""

    address: str
    port: int
    to: int
    """Index of that socket."""


def selector_program(family: int, serving: int, steers: Iterable[Steer] = ()) -> list[Op]:
    """Answers `serving`, or a `Steer.to` for packets from there. The port is found behind a header without IP options,
    which is what a connection within the machine has."""
    source, length = (12, 20) if family == socket.AF_INET else (8, 40)
    ops: list[Op] = []
    label: str | None = None
    for number, steer in enumerate(steers):
        after = f"after {number}"
        tests = [(_NETWORK_HEADER + length, bpf.LOAD_HALF, steer.port)]
        raw = ipaddress.ip_address(steer.address).packed
        for offset in range(0, len(raw), 4):
            (word,) = struct.unpack_from("!I", raw, offset)
            tests.append((_NETWORK_HEADER + source + offset, bpf.LOAD_WORD, word))
        for place, code, value in tests:
            ops += [load(place, code=code, label=label), if_equal(value, None, after)]
            label = None
        ops.append(give(steer.to))
        label = after
    return [*ops, give(serving, label=label)]


def attach(member: socket.socket, ops: list[Op]) -> None:
    """Replace the group's program in one step, through any of its sockets. Raises OSError."""
    program = Program(assemble(ops))
    member.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, program.struct)


class Order(Generic[T]):
    """The group's sockets in the kernel's order."""

    def __init__(self) -> None:
        self.members: list[T] = []

    def __contains__(self, member: T) -> bool:
        return member in self.members

    def __len__(self) -> int:
        return len(self.members)

    def index(self, member: T) -> int:
        return self.members.index(member)

    def join(self, member: T) -> None:
        self.members.append(member)

    def leave(self, member: T) -> None:
        index = self.members.index(member)
        last = self.members.pop()
        if index < len(self.members):
            self.members[index] = last

    def may_leave(self, member: T, serving: T) -> bool:
        """Can it leave without the program ever answering another socket than the serving one?"""
        return member is not serving and (len(self.members) <= 2 or self.members[-1] is not serving)
