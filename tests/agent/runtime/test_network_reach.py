"""Network namespaces of guests, from outside and from inside: who reaches whom, and under which address."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
from pathlib import Path

import pytest

from agent.api.processes import Endpoint
from agent.supervisor.network import namespace
from agent.supervisor.network.namespace import inside
from agent.supervisor.network.netlink import Netlink
from tests.agent.runtime.machine import CLIENT, LAN, Agent, datagrams_at, is_empty, listener_in, machine, plug_in
from tests.agent.runtime.support import DEADLINE_S, needs_namespaces

pytestmark = needs_namespaces

LAN_V6 = ("fd00:87:9::1", "fd00:87:9::2")


def test_a_client_elsewhere_is_seen_under_its_own_address_and_one_on_loopback_under_the_gateways() -> None:
    endpoint, local = Endpoint(LAN, 80), Endpoint("127.0.0.1", 81)
    with machine() as client:
        agent = Agent("0123456789abcdef")
        guest = agent.guest(listen={"http": endpoint, "local": local})
        with listener_in(guest, 80) as server, listener_in(guest, 81) as inner:
            agent.networks.move({endpoint: (guest, 80), local: (guest, 81)})
            with inside(client), socket.create_connection((LAN, 80), DEADLINE_S) as far:
                assert server.accept()[1][0] == CLIENT
                assert far.getpeername() == (LAN, 80)
            with socket.create_connection((LAN, 80), DEADLINE_S):
                assert server.accept()[1][0] == LAN
            with socket.create_connection(("127.0.0.1", 81), DEADLINE_S):
                assert server.getsockname()[1] == 80
                assert inner.accept()[1][0] == str(guest.block.address(1, 4))
        guest.let_go()
        agent.networks.close()


def test_a_guest_is_reached_by_its_endpoints_only() -> None:
    endpoint = Endpoint("0.0.0.0", 80)
    with machine() as client:
        agent = Agent("0123456789abcdef")
        guest = agent.guest(listen={"http": endpoint})
        own = str(guest.block.address(guest.slot, 4))
        with listener_in(guest, 80):
            agent.networks.move({endpoint: (guest, 80)})
            for target in ("127.0.0.1", "127.0.0.7", LAN):
                socket.create_connection((target, 80), DEADLINE_S).close()
            with pytest.raises(OSError, match="refused"):  # the dark version must not be met by anybody
                socket.create_connection((own, 80), DEADLINE_S)
            with inside(client):
                with Netlink.routes() as there:
                    there.add_route(guest.block.v4, socket.if_nametoindex("lan0"))
                with pytest.raises(TimeoutError):
                    socket.create_connection((own, 80), 0.2)
        guest.let_go()
        agent.networks.close()


def test_an_endpoint_on_loopback_is_reached_by_nobody_on_the_network() -> None:
    """Whoever is on the same network may send here what is for any address, and take any answer."""
    endpoints = {"four": Endpoint("127.0.0.1", 80), "six": Endpoint("::1", 80)}
    with machine() as client:
        with Netlink.routes() as here:
            plug_in(here, *LAN_V6)
        agent = Agent("0123456789abcdef")
        guest = agent.guest(listen=endpoints)
        with guest.socket(socket.AF_INET6, socket.SOCK_STREAM) as server:
            server.bind(("::", 80))
            server.listen()
            agent.networks.move(dict.fromkeys(endpoints.values(), (guest, 80)))
            for endpoint in endpoints.values():
                socket.create_connection((endpoint.address, 80), DEADLINE_S).close()
            with inside(client), Netlink.routes() as there:
                plug_in(there, *reversed(LAN_V6))
                for general in ("all", "lan0"):
                    Path(namespace._ROUTE_LOCALNET.format(general)).write_text("1")
                for target in ("127.0.0.1", "241.0.0.1", "fd6c:6f77:6c6f::1"):
                    there.add_route(ipaddress.ip_network(target), socket.if_nametoindex("lan0"))
                    with pytest.raises(TimeoutError):
                        socket.create_connection((target, 80), 0.2)
        guest.let_go()
        agent.networks.close()


def test_out_of_a_namespace_leads_only_what_is_declared_under_its_own_address() -> None:
    with machine() as client, datagrams_at("127.0.0.1") as loopback, datagrams_at(LAN) as here:
        with inside(client):
            far, other = datagrams_at(CLIENT), datagrams_at(CLIENT)
        peers = {
            "far": Endpoint(CLIENT, far.getsockname()[1], "udp"),
            "local": Endpoint("127.0.0.1", loopback.getsockname()[1], "udp"),
        }
        agent = Agent("0123456789abcdef")
        guest, neighbour = agent.guest(connect=peers), agent.guest()
        closed = datagrams_at("0.0.0.0", 53, neighbour)
        attacker = guest.socket(socket.AF_INET, socket.SOCK_DGRAM)
        raw = guest.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        with far, other, closed, attacker, raw:
            unreached = [
                other.getsockname(), here.getsockname(), loopback.getsockname(),
                (str(neighbour.block.address(neighbour.slot, 4)), 53), (str(guest.block.address(1, 4)), 53),
            ]  # fmt: skip
            for target in unreached:
                with contextlib.suppress(OSError):
                    attacker.sendto(b"out", target)
            for spoofed in ("10.87.9.77", "127.0.0.1", LAN, str(neighbour.block.address(neighbour.slot, 4))):
                raw.sendto(datagram(spoofed, far.getsockname()), (CLIENT, 0))
            attacker.sendto(b"declared", far.getsockname())
            assert far.recvfrom(100)[0] == b"declared"
            attacker.sendto(b"declared", (guest.outside("127.0.0.1"), loopback.getsockname()[1]))
            assert loopback.recvfrom(100)[0] == b"declared"
            assert all(is_empty(sock) for sock in (far, other, here, loopback, closed))
            raw.sendto(datagram(str(guest.block.address(guest.slot, 4)), far.getsockname()), (CLIENT, 0))
            assert far.recvfrom(100)[0] == b"spoofed"  # so what was forged would have come, had it been let out
        guest.let_go()
        neighbour.let_go()
        agent.networks.close()


def datagram(source: str, target: tuple[str, int]) -> bytes:
    """A UDP packet with a source address of one's own choice."""
    payload = b"spoofed"
    udp = struct.pack("!HHHH", 4000, target[1], 8 + len(payload), 0) + payload
    addresses = socket.inet_aton(source) + socket.inet_aton(target[0])
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, socket.IPPROTO_UDP, 0) + addresses + udp
