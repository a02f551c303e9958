"""A machine of its own for tests of network namespaces: the test steps into an empty one, which is then the host.

With the networks of an agent there, and sockets in the host, in guests and on another machine.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from agent.api.processes import Endpoint
from agent.runtime import GuestOrder
from agent.sandbox import linux
from agent.supervisor.event_loop import Loop
from agent.supervisor.network import namespace
from agent.supervisor.network.namespace import Namespace, inside
from agent.supervisor.network.netlink import LOOPBACK, Netlink
from agent.supervisor.network.networks import LINGER_S, Networks
from agent.supervisor.network.nftables import Nftables
from tests.agent.runtime.support import DEADLINE_S

LAN = "10.87.9.1"
CLIENT = "10.87.9.2"
SWITCH = Path("/proc/sys/net/ipv4/ip_forward")


@contextlib.contextmanager
def machine() -> Iterator[int]:
    """A host with an address on a network, and one other machine there; the descriptor of that one's namespace."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    linux.own_network()
    client = -1
    try:
        SWITCH.write_text("0")  # a new namespace has it from the one that the machine began with
        client = namespace._make_empty()
        with Netlink.routes() as here:
            here.switch_on(LOOPBACK)
            here.make_pair("lan0", mac=bytes.fromhex("026c63000009"), group=0, other_end_in=client)
            plug_in(here, LAN, CLIENT)
        with inside(client), Netlink.routes() as there:
            there.switch_on(socket.if_nametoindex("lan0"))
            plug_in(there, CLIENT, LAN)
            wait_until(lambda: there.is_up("lan0"))
        with Netlink.routes() as here:
            wait_until(lambda: here.is_up("lan0"))
        yield client
    finally:
        linux.join_network(home)
        os.close(home)
        if client >= 0:
            os.close(client)


def wait_until(holds: Callable[[], bool]) -> None:
    """Until an interface is up it drops what it is to carry."""
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline


def plug_in(link: Netlink, own: str, other: str) -> None:
    """`lan0` has the address `own` from now on, and leads to the address `other`."""
    index = socket.if_nametoindex("lan0")
    link.add_address(index, ipaddress.ip_address(own))
    link.add_route(ipaddress.ip_network(other), index)


def an_order(**endpoints: dict[str, Endpoint]) -> GuestOrder:
    """For a guest that nobody starts: its namespace is made by what it listens at and connects to."""
    return GuestOrder(
        guest="web-1", process="web", code_path="", code_kind="component", args=(), env={}, preopens=(),
        listen=endpoints.get("listen", {}), connect=endpoints.get("connect", {}), memory_bytes=1, cpus=(),
        output_path="", network="namespace",
    )  # fmt: skip


class Agent:
    """The networks of one agent, without its guests. `pass_time` lets a namespace be buried that nobody holds."""

    def __init__(self, name: str, block: int | None = None) -> None:
        self.now = 0.0
        self._loop = Loop(clock=lambda: self.now)
        self.said: list[str] = []
        self.networks = Networks(name, self._loop, self.said.append, block)

    def guest(self, **endpoints: dict[str, Endpoint]) -> Namespace:
        """A namespace that is held and carries packets; `listen` and `connect` as in an order."""
        made = self.networks.make(an_order(**endpoints)).hold()
        wait_until(made.is_up)
        return made

    def pass_time(self) -> None:
        self.now += 2 * LINGER_S
        self._loop.after(0, lambda: None)
        self._loop.run_once()


def listener_in(guest: Namespace | None, port: int) -> socket.socket:
    """A TCP listener at every address there; without a guest, of the host itself."""
    server = (guest.socket if guest else socket.socket)(socket.AF_INET, socket.SOCK_STREAM)
    server.settimeout(DEADLINE_S)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("0.0.0.0", port))
    server.listen()
    return server


@contextlib.contextmanager
def connected_from(client: int, port: int, server: socket.socket) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection from this port of the other machine: its end there, and the server's. Reset in the end."""
    with inside(client):
        asking = socket.create_connection((LAN, 80), DEADLINE_S, source_address=(CLIENT, port))
    with asking, server.accept()[0] as serving:
        serving.settimeout(DEADLINE_S)
        yield asking, serving
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def carries(asking: socket.socket, serving: socket.socket) -> bool:
    """In both directions."""
    asking.sendall(b"ask")
    serving.sendall(serving.recv(100) + b"ed")
    return asking.recv(100) == b"asked"


def datagrams_at(address: str, port: int = 0, place: Namespace | None = None) -> socket.socket:
    """A UDP socket in this namespace; without one, where the test is."""
    sock = (place.socket if place else socket.socket)(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(DEADLINE_S)
    sock.bind((address, port))
    return sock


def is_empty(sock: socket.socket) -> bool:
    """Nothing has come that was not read."""
    sock.setblocking(False)
    try:
        sock.recv(100)
    except BlockingIOError:
        return True
    finally:
        sock.settimeout(DEADLINE_S)
    return False


def rules_and_links() -> tuple[list[str], list[str]]:
    """What agents have made in this network: the nftables tables that are there, and the names of the links."""
    filter_ = Nftables()
    tables = filter_.tables()
    filter_.close()
    return tables, [name for _, name in socket.if_nameindex() if name.startswith("lc")]
