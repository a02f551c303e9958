"""Links, addresses, routes and tracked connections, asked of the kernel by netlink.

Nine messages, written out: the library for this (pyroute2) takes 93 ms and 25 MB to import and brings an event loop,
which is more than the rest of the supervisor together. Every request is acknowledged before it returns.

Format: `linux/rtnetlink.h`, `linux/if_link.h`, `linux/netfilter/nfnetlink_conntrack.h`.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Net = ipaddress.IPv4Network | ipaddress.IPv6Network

_ROUTE: Final = 0
_NETFILTER: Final = 12
_ERROR: Final = 2
_REQUEST: Final = 0x1
_ACKNOWLEDGE: Final = 0x4
_EXCLUSIVE: Final = 0x200
_CREATE: Final = 0x400
_DUMP: Final = 0x300
_DONE: Final = 3
_HEADER: Final = struct.Struct("=IHHII")
_READ_BYTES: Final = 64 << 10
_NESTED: Final = 0x8000

_NEW_LINK, _DELETE_LINK, _GET_LINK, _NEW_ADDRESS, _NEW_ROUTE, _DELETE_ROUTE = 16, 17, 18, 20, 24, 25
_GET_TRACKED, _DELETE_TRACKED = 1 << 8 | 1, 1 << 8 | 2
"""Subsystem of connection tracking, `IPCTNL_MSG_CT_GET` and `IPCTNL_MSG_CT_DELETE`."""

_LINK: Final = struct.Struct("=BxHiII")
_UP: Final = 0x1
_RUNNING: Final = 0x40
_NO_ARP: Final = 0x80
_NO_DUPLICATE_CHECK: Final = 0x02
LOOPBACK: Final = 1
"""Index of `lo` in every namespace."""

_LOCAL_TABLE: Final = 255
_MAIN_TABLE: Final = 254
_STATIC: Final = 4
_SCOPE_LINK: Final = 253
_UNICAST, _LOCAL, _UNREACHABLE = 1, 2, 7
_LATE: Final = 4096
"""Metric: behind what the kernel has made itself."""


def attribute(kind: int, *parts: bytes) -> bytes:
    """An attribute with its padding; several parts are attributes inside it."""
    body = b"".join(parts)
    return struct.pack("=HH", 4 + len(body), kind) + body + bytes(-len(body) % 4)


def _text(kind: int, text: str) -> bytes:
    return attribute(kind, text.encode() + b"\0")


def _number(kind: int, number: int) -> bytes:
    return attribute(kind, struct.pack("=I", number))


class Netlink:
    """A socket to the kernel's tables of one network namespace. `make` opens it there."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._number = 0

    @classmethod
    def routes(cls) -> Netlink:
        """Of the namespace that this thread is in: links, addresses and routes."""
        return cls(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _ROUTE))

    @classmethod
    def tracked(cls) -> Netlink:
        """Of the namespace that this thread is in: tracked connections. To close it takes about 10 ms, in which the
        kernel waits for its readers."""
        return cls(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER))

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    # --- links ------------------------------------------------------------------------------------------------------

    def make_pair(self, name: str, *, mac: bytes, group: int, other_end_in: int) -> None:
        """Two connected interfaces of the same name: one here, which is up, and one in the namespace of a descriptor.

        They have one hardware address and no address resolution, so whatever one sends is for the other: nothing is
        asked before the first packet, and nothing can be pretended. Raises FileExistsError, OSError."""
        link, other = (_LINK.pack(0, 0, 0, flags, flags) for flags in (_UP | _NO_ARP, _NO_ARP))
        both = _text(_IFNAME, name) + attribute(_HARDWARE_ADDRESS, mac)
        peer = other + both + _number(_NAMESPACE_DESCRIPTOR, other_end_in)
        kind = _text(_INFO_KIND, "veth") + attribute(_INFO_DATA, attribute(_PEER, peer))
        body = link + both + _number(_GROUP, group) + attribute(_LINK_INFO, kind)
        self._ask(_NEW_LINK, body, _CREATE | _EXCLUSIVE)

    def delete_link(self, name: str) -> None:
        """Both ends of a pair go, if they are there. Takes about 10 ms, in which the kernel waits for its readers."""
        try:
            self._ask(_DELETE_LINK, _LINK.pack(0, 0, 0, 0, 0) + _text(_IFNAME, name))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise

    def switch_on(self, index: int) -> None:
        self._ask(_NEW_LINK, _LINK.pack(0, 0, index, _UP, _UP))

    def is_up(self, name: str) -> bool:
        """Does it carry packets yet? Only a moment after both ends were switched on; until then it drops them."""
        said = self._ask(_GET_LINK, _LINK.pack(0, 0, 0, 0, 0) + _text(_IFNAME, name))
        _, _, _, flags, _ = _LINK.unpack_from(said)
        return bool(flags & _RUNNING)

    def add_address(self, index: int, address: Address) -> None:
        """The address alone, without a network around it."""
        flags = _NO_DUPLICATE_CHECK if address.version == 6 else 0
        head = struct.pack("=BBBBI", _family(address), address.max_prefixlen, flags, 0, index)
        self._ask(_NEW_ADDRESS, head + attribute(_LOCAL_ADDRESS, address.packed) + attribute(1, address.packed))

    # --- routes -----------------------------------------------------------------------------------------------------

    def add_route(self, to: Net, index: int) -> None:
        """What is for this network leaves by this interface."""
        self._ask(_NEW_ROUTE, _route(to, _UNICAST, _MAIN_TABLE, index), _CREATE | _EXCLUSIVE)

    def add_local_route(self, to: Address, index: int) -> None:
        """What comes in by this interface for this address is for this machine."""
        self._ask(_NEW_ROUTE, _route(ipaddress.ip_network(to), _LOCAL, _LOCAL_TABLE, index, metric=_LATE), _CREATE)

    def reserve(self, block: Net) -> None:
        """Nothing that is for this network leaves the machine, but by a route to a part of it. Raises FileExistsError
        where that was said already."""
        self._ask(_NEW_ROUTE, _route(block, _UNREACHABLE, _MAIN_TABLE), _CREATE | _EXCLUSIVE)

    def free(self, block: Net) -> None:
        self._ask(_DELETE_ROUTE, _route(block, _UNREACHABLE, _MAIN_TABLE))

    # --- tracked connections ----------------------------------------------------------------------------------------

    def forget_connections(self, address: Address, *, at_once: bool = True) -> None:
        """Drop what is remembered of connections that this address has made, and of those that were led to it.
        `at_once`: where the kernel can (Linux 6.8); before, it finds them by an address but does not delete them so."""
        for wanted in _tracked_from(address):
            if not (at_once and self._forget_all(wanted)):
                self._forget_one_by_one(wanted)

    def forget_what_stands_still(self) -> None:
        """Where the kernel tracks nothing at present: drop what it still has of connections whose ends nobody changed.

        It stops with the last rule that asks for it, and what was open then stays open to it for up to five days. A new
        connection between the same two ports would be taken for that one, so rules for new ones would not see it.
        Raises OSError."""
        if not self._is_tracking():
            self._ask(_DELETE_TRACKED, _UNCHANGED)

    def _is_tracking(self) -> bool:
        """Is a datagram remembered that is sent now? Yes where it cannot be sent: then nobody knows. Raises OSError."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            try:
                sender.bind((_HERE, 0))
                own = sender.getsockname()
                sender.sendto(b"", own)
            except OSError:
                return True
            try:
                self._ask(_GET_TRACKED, _tracked_datagram(own, own))
            except FileNotFoundError:
                return False
        return True

    def _forget_all(self, wanted: bytes) -> bool:
        try:
            self._ask(_DELETE_TRACKED, wanted)
        except OSError:
            return False
        return True

    def _forget_one_by_one(self, wanted: bytes) -> None:
        for found in list(self._all(_GET_TRACKED, wanted)):
            named = b"".join(attribute(kind, body) for kind, body in _attributes(found[4:]) if kind & 0xFFF in _NAMES)
            try:
                self._ask(_DELETE_TRACKED, wanted[:4] + named)
            except FileNotFoundError:
                continue  # it has ended since

    def _all(self, kind: int, body: bytes) -> Iterator[bytes]:
        """Everything that the kernel has of this. Raises OSError."""
        self._number += 1
        size = _HEADER.size + len(body)
        self._socket.send(_HEADER.pack(size, kind, _REQUEST | _DUMP, self._number, 0) + body)
        while True:
            answer, offset = self._socket.recv(_READ_BYTES), 0
            while offset + _HEADER.size <= len(answer):
                length, said, *_ = _HEADER.unpack_from(answer, offset)
                if said == _DONE:
                    return
                if said == _ERROR:
                    (code,) = struct.unpack_from("=i", answer, offset + _HEADER.size)
                    raise OSError(-code, os.strerror(-code))
                yield answer[offset + _HEADER.size : offset + length]
                offset += max(length + 3 & ~3, _HEADER.size)

    def _ask(self, kind: int, body: bytes, flags: int = 0) -> bytes:
        """What the kernel says to it, "" where it only acknowledges. Raises OSError with the kernel's reason."""
        self._number += 1
        size = _HEADER.size + len(body)
        self._socket.send(_HEADER.pack(size, kind, _REQUEST | _ACKNOWLEDGE | flags, self._number, 0) + body)
        said = b""
        while True:
            answer = self._socket.recv(_READ_BYTES)
            _, answered, _, number, _ = _HEADER.unpack_from(answer)
            if number != self._number:
                continue
            if answered != _ERROR:
                said = answer[_HEADER.size :]
                continue
            (code,) = struct.unpack_from("=i", answer, _HEADER.size)
            if code:
                raise OSError(-code, os.strerror(-code))
            return said


_HARDWARE_ADDRESS, _IFNAME, _LINK_INFO, _GROUP, _NAMESPACE_DESCRIPTOR = 1, 3, 18, 27, 28
_INFO_KIND, _INFO_DATA = 1, 2
_PEER: Final = 1
_LOCAL_ADDRESS: Final = 2
_DESTINATION, _INTERFACE, _METRIC = 1, 4, 6
_ORIGINAL, _REPLY, _FILTER = 1, 2, 25
_NAMES: Final = (_ORIGINAL, 12, 18)
"""What tells a tracked connection from all others: its tuple, its number, its zone."""
_TUPLE_IP, _TUPLE_PROTOCOL = 1, 2
_SOURCE_V4, _DESTINATION_V4 = 1, 2
_PROTOCOL_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_ORIGINAL_FLAGS, _REPLY_FLAGS = 1, 2
_SOURCE_ADDRESS: Final = 1
_STATUS, _STATUS_MASK = 3, 26
_CHANGED_ENDS: Final = 1 << 4 | 1 << 5
"""`IPS_SRC_NAT` and `IPS_DST_NAT`."""
_UNCHANGED: Final = (
    struct.pack("!BBH", socket.AF_UNSPEC, 0, 0)
    + attribute(_STATUS, struct.pack("!I", 0))
    + attribute(_STATUS_MASK, struct.pack("!I", _CHANGED_ENDS))
)
"""A request about tracked connections of any kind whose status has neither."""
_HERE: Final = "127.0.0.1"


def _family(address: Address | Net) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _tracked_from(address: Address) -> Iterator[bytes]:
    """Requests about tracked connections of which one end is this address: made by it, and led to it."""
    source = attribute(_NESTED | _TUPLE_IP, attribute(1 if address.version == 4 else 3, address.packed))
    for kind, flags in ((_ORIGINAL, _ORIGINAL_FLAGS), (_REPLY, _REPLY_FLAGS)):
        chosen = attribute(_NESTED | _FILTER, _number(flags, _SOURCE_ADDRESS))
        yield struct.pack("!BBH", _family(address), 1, 0) + attribute(_NESTED | kind, source) + chosen


def _tracked_datagram(source: tuple[str, int], destination: tuple[str, int]) -> bytes:
    """A request about what is tracked of datagrams of IPv4 between two sockets."""
    addresses = attribute(_SOURCE_V4, socket.inet_aton(source[0])) + attribute(
        _DESTINATION_V4, socket.inet_aton(destination[0])
    )
    ports = attribute(_SOURCE_PORT, struct.pack("!H", source[1])) + attribute(
        _DESTINATION_PORT, struct.pack("!H", destination[1])
    )
    protocol = attribute(_PROTOCOL_NUMBER, bytes([socket.IPPROTO_UDP])) + ports
    both = attribute(_NESTED | _TUPLE_IP, addresses) + attribute(_NESTED | _TUPLE_PROTOCOL, protocol)
    return struct.pack("!BBH", socket.AF_INET, 0, 0) + attribute(_NESTED | _ORIGINAL, both)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind (with its flags) and content of each."""
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        yield kind, data[offset + 4 : offset + length]
        offset += max(length + 3 & ~3, 4)


def _route(to: Net, kind: int, table: int, index: int = 0, *, metric: int = 0) -> bytes:
    scope = _SCOPE_LINK if to.version == 4 and kind == _UNICAST else 0
    head = struct.pack("=BBBBBBBBI", _family(to), to.prefixlen, 0, 0, table, _STATIC, scope, kind, 0)
    parts = [attribute(_DESTINATION, to.network_address.packed)] if to.prefixlen else []
    if index:
        parts.append(_number(_INTERFACE, index))
    if metric:
        parts.append(_number(_METRIC, metric))
    return head + b"".join(parts)
