"""One guest's network namespace: made, entered for the moment of making a socket, and left to the kernel.

The supervisor has one thread, so it can step into a namespace, make a socket there, and step back: a socket belongs to
the namespace that it was made in, whoever holds it later. So listeners, datagram sockets, readiness probes and
questions about connections are the same code for a guest in a namespace as for one on the host.

A namespace lives while anything is in it or holds its descriptor: the guest's process, our descriptor, a listener
whose guest has died and whose queue waits for the next one.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from agent.api.processes import Endpoint
from agent.sandbox import linux
from agent.supervisor.network.addressing import LOOPBACK_V6, Block, alias_of, behind
from agent.supervisor.network.netlink import LOOPBACK, Net, Netlink
from agent.supervisor.network.ruleset import INTERFACE_GROUP

_MAC: Final = bytes.fromhex("026c63000001")
"""Of both ends of every pair; locally administered (IEEE 802)."""
_OWN_NAMESPACE: Final = "/proc/thread-self/ns/net"
_ROUTE_LOCALNET: Final = "/proc/sys/net/ipv4/conf/{}/route_localnet"
IPV6: Final = Path("/proc/sys/net/ipv6")
_EVERYWHERE: Final[tuple[Net, ...]] = (ipaddress.IPv4Network("0.0.0.0/0"), ipaddress.IPv6Network("::/0"))


class Namespace:
    """A guest's. `ports`: where in it each endpoint is served. Whoever uses it holds it; `on_unused` is called when
    nobody does any more."""

    def __init__(
        self,
        block: Block,
        slot: int,
        descriptor: int,
        ports: Mapping[Endpoint, int],
        on_unused: Callable[[Namespace], None],
    ) -> None:
        self.block = block
        self.slot = slot
        self.descriptor = descriptor
        self.inode = os.fstat(descriptor).st_ino
        self.ports = dict(ports)
        self._holders = 0
        self._on_unused = on_unused

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        with inside(self.descriptor):
            return socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)

    def is_up(self) -> bool:
        """Do packets pass in both directions yet? If the interface is gone there is nothing to wait for."""
        name = self.block.link_name(self.slot)
        try:
            with Netlink.routes() as here:
                if not here.is_up(name):
                    return False
            with inside(self.descriptor), Netlink.routes() as there:
                return there.is_up(name)
        except OSError:
            return True

    def outside(self, address: str) -> str:
        """How somebody in here says an address of a definition."""
        return str(alias_of(ipaddress.ip_address(address)))

    def declared(self, address: str) -> str:
        """The other way round."""
        return str(behind(ipaddress.ip_address(address)))

    def hold(self) -> Namespace:
        self._holders += 1
        return self

    def let_go(self) -> None:
        self._holders -= 1
        if self._holders == 0:
            self._on_unused(self)

    def close(self) -> None:
        os.close(self.descriptor)


@contextmanager
def inside(descriptor: int) -> Iterator[None]:
    """This thread is in another namespace meanwhile. Raises OSError."""
    home = os.open(_OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        linux.join_network(descriptor)
        try:
            yield
        finally:
            linux.join_network(home)
    finally:
        os.close(home)


def make(block: Block, slot: int) -> int:
    """A namespace with an interface, addresses and routes; its descriptor. Raises FileExistsError where the slot's
    interface exists already, OSError."""
    descriptor = _make_empty()
    try:
        name = block.link_name(slot)
        with Netlink.routes() as here:
            here.make_pair(name, mac=_MAC, group=INTERFACE_GROUP, other_end_in=descriptor)
            _lead_to(here, block, slot, socket.if_nametoindex(name))
        Path(_ROUTE_LOCALNET.format(name)).write_text("1")
        with inside(descriptor), Netlink.routes() as there:
            _lead_out(there, block, slot, socket.if_nametoindex(name))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def versions() -> tuple[int, ...]:
    """The versions of IP that this machine has."""
    return (4, 6) if IPV6.exists() else (4,)


def _make_empty() -> int:
    home = os.open(_OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        linux.own_network()
        try:
            return os.open(_OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
        finally:
            linux.join_network(home)
    finally:
        os.close(home)


def _lead_to(here: Netlink, block: Block, slot: int, index: int) -> None:
    """On the host: the guest's addresses are behind its interface."""
    for version in versions():
        here.add_route(ipaddress.ip_network(block.address(slot, version)), index)
    if 6 in versions():
        # The kernel takes what comes for ::1 only by a route of that very interface; IPv4 has `route_localnet`.
        here.add_local_route(LOOPBACK_V6, index)


def _lead_out(there: Netlink, block: Block, slot: int, index: int) -> None:
    """In the namespace: everything is behind the one interface."""
    there.switch_on(LOOPBACK)
    there.switch_on(index)
    for version, everywhere in zip(versions(), _EVERYWHERE, strict=False):
        there.add_address(index, block.address(slot, version))
        there.add_route(everywhere, index)
