"""Which addresses guests get, and what stands for a loopback address outside its namespace. Pure.

Guests' addresses are private to the machine: clients see the endpoint of the definition, peers see the host. They are
from 240.0.0.0/4, which nobody routes and Linux accepts, so no network that a host is in can contain them; and from a
unique local network of IPv6 (RFC 4193).

    244.0.0.0/6                 guests: 12 bits say which agent's block, 14 which guest
    fd6c:6f77:636c:BLOCK::/64   the same for IPv6
    241.0.0.0/8                 241.a.b.c is this machine's 127.a.b.c, as a guest says it
    fd6c:6f77:6c6f::1           likewise ::1

In a namespace 127.0.0.1 is the guest's own loopback. So a connection that is declared to a loopback address is made to
its alias, and led back to the address outside. The alias is the same for every agent of a machine.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final, NamedTuple

from agent.api.processes import Endpoint
from agent.supervisor.network.netlink import Address, Net

BLOCKS: Final = 1 << 12
SLOTS: Final = 1 << 14
GATEWAY_SLOT: Final = 1
FIRST_SLOT: Final = 2
_SLOT_BITS: Final = 14
_GUESTS_V4: Final = ipaddress.IPv4Network("244.0.0.0/6")
_GUESTS_V6: Final = ipaddress.IPv6Network("fd6c:6f77:636c::/48")
LOOPBACK_V4: Final = ipaddress.IPv4Network("127.0.0.0/8")
LOOPBACK_V6: Final = ipaddress.IPv6Address("::1")
ALIAS_V4: Final = ipaddress.IPv4Network("241.0.0.0/8")
ALIAS_V6: Final = ipaddress.IPv6Address("fd6c:6f77:6c6f::1")


class Block(NamedTuple):
    """The addresses of one agent's guests."""

    number: int

    @property
    def v4(self) -> ipaddress.IPv4Network:
        first = int(_GUESTS_V4.network_address) + (self.number << _SLOT_BITS)
        return ipaddress.IPv4Network((first, 32 - _SLOT_BITS))

    @property
    def v6(self) -> ipaddress.IPv6Network:
        return ipaddress.IPv6Network((int(_GUESTS_V6.network_address) + (self.number << 64), 64))

    def network(self, version: int) -> Net:
        return self.v4 if version == 4 else self.v6

    def address(self, slot: int, version: int) -> Address:
        return self.network(version)[slot]

    @property
    def prefix(self) -> str:
        """What the names of this agent's interfaces begin with."""
        return f"lc{self.number:03x}-"

    def link_name(self, slot: int) -> str:
        return f"{self.prefix}{slot:04x}"

    def slot_of(self, link_name: str) -> int | None:
        """The other way round; None for a name of something else."""
        number = link_name.removeprefix(self.prefix)
        try:
            return int(number, 16) if link_name.startswith(self.prefix) else None
        except ValueError:
            return None


def alias_of(address: Address) -> Address:
    """What a guest says for this address; the address itself where it is not this machine's loopback."""
    if not address.is_loopback:
        return address
    if isinstance(address, ipaddress.IPv6Address):
        return ALIAS_V6
    return ALIAS_V4[int(address) - int(LOOPBACK_V4.network_address)]


def behind(address: Address) -> Address:
    """The loopback address that this is the alias of; the address itself where it is none."""
    if address == ALIAS_V6:
        return LOOPBACK_V6
    if isinstance(address, ipaddress.IPv4Address) and address in ALIAS_V4:
        return LOOPBACK_V4[int(address) - int(ALIAS_V4.network_address)]
    return address


def ports_inside(endpoints: Iterable[Endpoint]) -> dict[Endpoint, int]:
    """On which port of its namespace a guest listens for each endpoint: its own, but for all but the first of those
    that differ in the address alone, because there all addresses are one."""
    taken: set[tuple[bool, str, int]] = set()
    found: dict[Endpoint, int] = {}
    for endpoint in sorted(set(endpoints), key=str):
        is_v6, port = ":" in endpoint.address, endpoint.port
        while (is_v6, endpoint.protocol, port) in taken:
            port = port - 1 if port > 1 else 65535
        taken.add((is_v6, endpoint.protocol, port))
        found[endpoint] = port
    return found
