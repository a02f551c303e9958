"""What the kernel tracks of guests in network namespaces: a flip leaves each answer to who was asked, and what is
forgotten is a guest's own."""

from __future__ import annotations

import socket
import struct

import pytest

from agent.api.processes import Endpoint
from agent.supervisor.network import netlink
from agent.supervisor.network.namespace import inside
from agent.supervisor.network.netlink import Netlink
from agent.supervisor.network.nftables import Nftables
from tests.agent.runtime.machine import (
    CLIENT,
    LAN,
    Agent,
    carries,
    connected_from,
    datagrams_at,
    is_empty,
    listener_in,
    machine,
    wait_until,
)
from tests.agent.runtime.support import needs_namespaces

pytestmark = needs_namespaces


def test_a_datagram_goes_to_who_serves_now_and_the_one_before_still_answers_what_it_had() -> None:
    endpoint = Endpoint("0.0.0.0", 53, "udp")
    with machine() as client:
        agent = Agent("0123456789abcdef")
        old, new = agent.guest(listen={"dns": endpoint}), agent.guest(listen={"dns": endpoint})
        with inside(client):
            asking = datagrams_at(CLIENT)
        with datagrams_at("0.0.0.0", 53, old) as first, datagrams_at("0.0.0.0", 53, new) as second, asking:
            agent.networks.move({endpoint: (old, 53)})
            asking.sendto(b"one", (LAN, 53))
            held, peer = first.recvfrom(100)
            assert (held, peer) == (b"one", asking.getsockname())
            agent.networks.move({endpoint: (new, 53)})
            asking.sendto(b"two", (LAN, 53))  # from the same port
            assert second.recvfrom(100) == (b"two", asking.getsockname())
            first.sendto(b"late", peer)
            assert asking.recvfrom(100) == (b"late", (LAN, 53))
            second.sendto(b"answer", peer)
            assert asking.recvfrom(100) == (b"answer", (LAN, 53))
            assert is_empty(first)
        for guest in (old, new):
            guest.let_go()
        agent.networks.close()


@pytest.mark.parametrize("at_once", [True, False])
def test_what_was_tracked_of_a_guest_is_forgotten_and_nothing_else(at_once: bool) -> None:
    endpoint = Endpoint("0.0.0.0", 53, "udp")
    with machine() as client:
        agent = Agent("0123456789abcdef")
        old, other = agent.guest(listen={"dns": endpoint}), agent.guest(listen={"dns": endpoint})
        with inside(client):
            asking = datagrams_at(CLIENT)
        with datagrams_at("0.0.0.0", 53, old) as first, datagrams_at("0.0.0.0", 53, other) as second, asking:
            for guest, server in ((old, first), (other, second)):
                agent.networks.move({endpoint: (guest, 53)})
                asking.sendto(b"ask", (LAN, 53))
                assert server.recv(100) == b"ask"
            with Netlink.tracked() as tracked:
                tracked.forget_connections(old.block.address(old.slot, 4), at_once=at_once)
            first.sendto(b"forgotten", asking.getsockname())  # nobody asked it, as far as anybody remembers
            second.sendto(b"remembered", asking.getsockname())
            assert asking.recvfrom(100) == (b"remembered", (LAN, 53))
            assert is_empty(asking)
        for guest in (old, other):
            guest.let_go()
        agent.networks.close()


def tracked_to(tracked: Netlink, port: int) -> int:
    """How many connections to this port the kernel remembers."""
    everything = tracked._all(netlink._GET_TRACKED, struct.pack("!BBH", socket.AF_INET, 0, 0))
    wanted = netlink.attribute(netlink._DESTINATION_PORT, struct.pack("!H", port))
    tuples = (dict(netlink._attributes(entry[4:]))[netlink._NESTED | netlink._ORIGINAL] for entry in everything)
    return sum(wanted in made for made in tuples)


@pytest.mark.parametrize("address", [LAN, "0.0.0.0"])
def test_a_connection_that_tracking_ended_in_the_middle_of_keeps_no_later_one_from_a_guest(address: str) -> None:
    endpoint = Endpoint(address, 80)
    with machine() as client, Netlink.tracked() as tracked:
        agent = Agent("0123456789abcdef")
        tracking = agent.guest()
        with listener_in(None, 80) as here, connected_from(client, 4000, here):
            tracking.let_go()
            agent.pass_time()
            wait_until(lambda: not tracked._is_tracking())
        guest = agent.guest(listen={"http": endpoint})
        agent.networks.move({endpoint: (guest, 80)})
        with listener_in(guest, 80) as inside_it, connected_from(client, 4000, inside_it) as (asking, serving):
            assert carries(asking, serving)
        guest.let_go()
        agent.networks.close()


def test_what_is_tracked_for_somebody_else_is_not_forgotten() -> None:
    with machine() as client, Netlink.tracked() as tracked:
        others = Nftables()
        others.run("table inet others { chain seen { type filter hook input priority 0; ct state invalid drop; }; }")
        agent = Agent("0123456789abcdef")
        with listener_in(None, 80) as here, connected_from(client, 4000, here) as (asking, serving):
            assert carries(asking, serving)
            guest = agent.guest(listen={"http": Endpoint(LAN, 80)})
            assert tracked_to(tracked, 80) == 1
            guest.let_go()
            agent.networks.close()
            others.run("delete table inet others")
            wait_until(lambda: not tracked._is_tracking())  # the kernel stops it a moment after its last rule
            guest = agent.guest(listen={"http": Endpoint(LAN, 80)})
            assert tracked_to(tracked, 80) == 0
            assert carries(asking, serving)
            assert tracked_to(tracked, 80) == 1
        others.close()
        guest.let_go()
        agent.networks.close()
