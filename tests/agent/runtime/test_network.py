"""Network namespaces of guests, from outside: who reaches whom, what a flip does, and that nothing is left.

Most of it runs in a machine of its own: the test steps into an empty network namespace, which is then the host.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import ipaddress
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from agent.api.processes import Endpoint, ProcessSpec, Ready
from agent.daemon import networking
from agent.daemon.networking import Mode, as_told, network_of
from agent.daemon.usage import connections
from agent.runtime import GuestOrder, Network, local_address
from agent.sandbox import linux
from agent.supervisor.client import connect
from agent.supervisor.event_loop import Loop
from agent.supervisor.network import namespace, netlink, ruleset
from agent.supervisor.network.addressing import Block, alias_of, behind, ports_inside
from agent.supervisor.network.forwarding import Changed, Forwarding
from agent.supervisor.network.namespace import Namespace, inside
from agent.supervisor.network.netlink import LOOPBACK, Netlink
from agent.supervisor.network.networks import LINGER_S, LOOK_S, Networks
from agent.supervisor.network.nftables import Nftables, RulesRefused
from benchmarks import swap
from tests.agent.runtime.support import (
    DEADLINE_S,
    http_get,
    is_alive,
    needs_namespaces,
    order,
    supervisor,
    swap_under_load,
    until,
)
from tests.ports import free_port

pytestmark = needs_namespaces

LAN = "10.87.9.1"
CLIENT = "10.87.9.2"
LAN_V6 = ("fd00:87:9::1", "fd00:87:9::2")
READY_S = 10.0
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
    index = socket.if_nametoindex("lan0")
    link.add_address(index, ipaddress.ip_address(own))
    link.add_route(ipaddress.ip_network(other), index)


def an_order(**endpoints: dict[str, Endpoint]) -> GuestOrder:
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
        made = self.networks.make(an_order(**endpoints)).hold()
        wait_until(made.is_up)
        return made

    def pass_time(self) -> None:
        self.now += 2 * LINGER_S
        self._loop.after(0, lambda: None)
        self._loop.run_once()


def listener_in(guest: Namespace | None, port: int) -> socket.socket:
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


def tracked_to(tracked: Netlink, port: int) -> int:
    """How many connections to this port the kernel remembers."""
    everything = tracked._all(netlink._GET_TRACKED, struct.pack("!BBH", socket.AF_INET, 0, 0))
    wanted = netlink.attribute(netlink._DESTINATION_PORT, struct.pack("!H", port))
    tuples = (dict(netlink._attributes(entry[4:]))[netlink._NESTED | netlink._ORIGINAL] for entry in everything)
    return sum(wanted in made for made in tuples)


def carries(asking: socket.socket, serving: socket.socket) -> bool:
    """In both directions."""
    asking.sendall(b"ask")
    serving.sendall(serving.recv(100) + b"ed")
    return asking.recv(100) == b"asked"


def datagrams_at(address: str, port: int = 0, place: Namespace | None = None) -> socket.socket:
    sock = (place.socket if place else socket.socket)(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(DEADLINE_S)
    sock.bind((address, port))
    return sock


def is_empty(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        sock.recv(100)
    except BlockingIOError:
        return True
    finally:
        sock.settimeout(DEADLINE_S)
    return False


def rules_and_links() -> tuple[list[str], list[str]]:
    filter_ = Nftables()
    tables = filter_.tables()
    filter_.close()
    return tables, [name for _, name in socket.if_nameindex() if name.startswith("lc")]


# --- who is reached, and as whom ------------------------------------------------------------------------------------


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


# --- what is there, and what is left --------------------------------------------------------------------------------


def test_agents_of_one_machine_have_blocks_of_their_own_and_the_last_one_leaves_nothing() -> None:
    with machine():
        before = rules_and_links()
        one, other = Agent("0123456789abcdef"), Agent("fedcba9876543def")  # of the same first choice
        first, second = one.guest(), other.guest()
        assert {one.networks.block, other.networks.block} == {0xDEF, 0xDF0}
        assert SWITCH.read_text().strip() == "1"
        first.let_go()
        one.pass_time()
        assert one.networks.block is None
        assert SWITCH.read_text().strip() == "1"
        assert "lowcloud" in rules_and_links()[0]
        second.let_go()
        other.pass_time()
        assert SWITCH.read_text().strip() == "0"
        assert rules_and_links() == before
        assert "244." not in Path("/proc/thread-self/net/fib_trie").read_text()
        assert one.said == other.said == []
        assert not Forwarding(Nftables())._file().exists()


def test_a_machine_that_forwards_already_is_left_alone_and_one_that_did_not_forwards_nothing_else() -> None:
    with machine():
        SWITCH.write_text("1")
        agent = Agent("0123456789abcdef")
        guest = agent.guest()
        assert ruleset.GUARD_TABLE not in rules_and_links()[0]
        guest.let_go()
        agent.pass_time()
        assert SWITCH.read_text().strip() == "1"


def test_an_agent_that_begins_while_the_last_other_one_ends_has_packets_forwarded(tmp_path: Path) -> None:
    with machine(), (tmp_path / "lowcloud-forwarding.lock").open("w") as held:
        filter_ = Nftables()
        Forwarding(filter_, run=tmp_path).switch_on(4)
        fcntl.flock(held, fcntl.LOCK_EX)  # the other one has seen nobody else's rules
        beginning = threading.Thread(target=Forwarding(Nftables(), run=tmp_path).switch_on, args=(4,))
        beginning.start()
        SWITCH.write_text("0")
        fcntl.flock(held, fcntl.LOCK_UN)
        beginning.join()
        assert SWITCH.read_text().strip() == "1"
        filter_.close()


def test_where_routers_are_listened_to_that_goes_on_while_ipv6_is_forwarded(tmp_path: Path) -> None:
    run, settings = tmp_path / "run", tmp_path / "net"
    values = {"ipv6/conf/all/forwarding": "0", "ipv6/conf/eth0/accept_ra": "1", "ipv6/conf/eth1/accept_ra": "0"}
    run.mkdir()
    for name, value in values.items():
        (settings / name).parent.mkdir(parents=True, exist_ok=True)
        (settings / name).write_text(value)
    (settings / "ipv6/conf/all/accept_ra").write_text("1")
    with machine():
        filter_ = Nftables()
        Forwarding(filter_, run=run, settings=settings).switch_on(6)
        said = {name: (settings / name).read_text() for name in values}
        assert said == {**values, "ipv6/conf/all/forwarding": "1", "ipv6/conf/eth0/accept_ra": "2"}
        (kept,) = run.glob("lowcloud-forwarding-*[0-9]")
        assert msgspec.json.decode(kept.read_bytes(), type=Changed) == Changed([6], [], ["ipv6/conf/eth0/accept_ra"])
        Forwarding(filter_, run=run, settings=settings).switch_off_after_last()
        assert {name: (settings / name).read_text() for name in values} == values
        filter_.close()


def test_an_interface_for_which_packets_were_forwarded_keeps_that() -> None:
    lan = Path("/proc/sys/net/ipv4/conf/lan0/forwarding")
    with machine():
        lan.write_text("1")
        agent = Agent("0123456789abcdef")
        guest = agent.guest()
        filter_ = Nftables()
        assert 'iifname "lan0" accept' in filter_.run(f"list table inet {ruleset.GUARD_TABLE}")
        filter_.close()
        guest.let_go()
        agent.pass_time()
        assert (SWITCH.read_text().strip(), lan.read_text().strip()) == ("0", "1")


def test_what_a_killed_supervisor_left_is_swept_by_its_successor_and_the_block_is_the_same() -> None:
    with machine():
        before = rules_and_links()
        killed = Agent("0123456789abcdef")
        killed.guest(connect={"kv": Endpoint("127.0.0.1", 1)})
        block = killed.networks.block
        successor = Agent("0123456789abcdef", block)
        again = successor.guest()
        assert successor.networks.block == block
        again.let_go()
        successor.pass_time()
        assert rules_and_links() == before
        third = Agent("0123456789abcdef", block)
        third.networks.sweep()
        assert rules_and_links() == before
        assert third.said == successor.said == []


def test_rules_that_the_kernel_does_not_take_change_nothing() -> None:
    with machine():
        agent = Agent("0123456789abcdef")
        guest = agent.guest(listen={"http": Endpoint(LAN, 80)})
        with pytest.raises(RulesRefused, match="nftables"):
            agent.networks.move({Endpoint(LAN, 80): (guest, 80), Endpoint("10.0.0.1", 90): (guest, 1 << 20)})
        agent.networks.move({Endpoint(LAN, 80): (guest, 80)})
        guest.let_go()
        agent.networks.close()


def test_rules_that_somebody_has_removed_are_laid_down_again_soon() -> None:
    endpoint = Endpoint(LAN, 80)
    with machine() as client:
        agent = Agent("0123456789abcdef")
        guest = agent.guest(listen={"http": endpoint})
        agent.networks.move({endpoint: (guest, 80)})
        tables, _ = rules_and_links()
        filter_ = Nftables()
        for _ in range(2):
            filter_.run("flush ruleset")
            agent.now += LOOK_S
            agent.pass_time()
            assert sorted(rules_and_links()[0]) == sorted(tables)
        filter_.close()
        with listener_in(guest, 80), inside(client):
            socket.create_connection((LAN, 80), DEADLINE_S).close()
        guest.let_go()
        agent.networks.close()
        assert rules_and_links() == ([], [])


def test_rules_that_somebody_has_removed_are_laid_down_again_with_the_next_change() -> None:
    endpoint, other = Endpoint(LAN, 80), Endpoint(LAN, 81)
    with machine() as client, datagrams_at(LAN) as here:
        agent = Agent("0123456789abcdef")
        peer = Endpoint(LAN, here.getsockname()[1], "udp")
        guest = agent.guest(listen={"http": endpoint, "other": other}, connect={"here": peer})
        agent.networks.move({endpoint: (guest, 80)})
        filter_ = Nftables()
        filter_.run("flush ruleset")
        filter_.close()
        agent.networks.move({other: (guest, 81)})
        with listener_in(guest, 80), listener_in(guest, 81), inside(client):
            for port in (80, 81):
                socket.create_connection((LAN, port), DEADLINE_S).close()
        with guest.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
            sending.sendto(b"declared", here.getsockname())
            assert here.recv(100) == b"declared"
        assert [line for line in agent.said if "laid down again" in line] == agent.said
        guest.let_go()
        agent.networks.close()


# --- with guests ----------------------------------------------------------------------------------------------------


def test_versions_in_the_hosts_network_and_in_namespaces_take_turns_and_lose_no_connection(tmp_path: Path) -> None:
    swap_under_load(tmp_path, lambda number: "listeners" if number % 2 else "namespace")


@pytest.mark.parametrize("second", [("::1", 0), ("127.0.0.2", 0), ("::", 1)], ids=str)
def test_a_guest_with_several_listeners_changes_over_at_all_of_them(tmp_path: Path, second: tuple[str, int]) -> None:
    port = free_port()
    listen = {"one": Endpoint("127.0.0.1", port), "two": Endpoint(second[0], free_port() if second[1] else port)}
    args = [word for endpoint in listen.values() for word in (str(endpoint.port), endpoint.address)]
    near = [Endpoint(local_address(endpoint), endpoint.port) for endpoint in listen.values()]

    async def scenario() -> None:
        async with supervisor(tmp_path) as client:
            for number in range(3):
                await client.spawn(
                    order(tmp_path, f"both-{number}", "probe", "listen-both", *args, listen=listen, network="namespace")
                )
                for name in listen:
                    await client.wait_ready(f"both-{number}", Ready(name, "/"), deadline_s=READY_S)
                await client.flip(f"both-{number}")
                if number:
                    assert await client.drain(f"both-{number - 1}", deadline_s=5)
                    await client.kill(f"both-{number - 1}")
                assert [await asyncio.to_thread(http_get, endpoint) for endpoint in near] == ["probe\n", "probe\n"]

    asyncio.run(scenario())


def test_open_connections_of_a_guest_are_counted_wherever_its_listener_is(tmp_path: Path) -> None:
    endpoint = Endpoint("127.0.0.1", free_port())

    async def scenario() -> None:
        async with supervisor(tmp_path) as client:
            connected: list[Network] = ["listeners", "namespace", "listeners"]
            for number, network in enumerate(connected):
                # Each takes the listener of the one before over, which was ended.
                made = order(tmp_path, f"web-{number}", "web-1", listen={"http": endpoint}, network=network)
                state = await client.spawn(made)
                await client.wait_ready(state.guest, Ready("http", "/"), deadline_s=READY_S)
                await until(lambda pid=state.pid: connections(pid, {}) == 0, "the probe's connection has ended")
                with socket.create_connection((endpoint.address, endpoint.port), DEADLINE_S) as kept:
                    kept.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
                    assert await asyncio.to_thread(kept.recv, 100)
                    assert connections(state.pid, {}) == 1
                await client.kill(state.guest)

    asyncio.run(scenario())


def test_a_supervisor_killed_under_load_costs_no_connection_and_its_successor_goes_on_swapping(tmp_path: Path) -> None:
    endpoint = Endpoint("127.0.0.1", free_port())

    def version(number: int) -> GuestOrder:
        program, listen = f"web-{1 + number % 2}", {"http": endpoint}
        return order(tmp_path, f"web-{number}", program, listen=listen, network="namespace")

    async def scenario() -> None:
        first = await connect(tmp_path)
        await first.spawn(version(0))
        await first.wait_ready("web-0", Ready("http", "/"), deadline_s=READY_S)
        load = await swap.start_load(endpoint.address, endpoint.port, 200.0, 4.0)
        await swap.swap_often(first, version, 2, 0.1)
        os.kill(first.supervisor_pid, signal.SIGKILL)
        await first.close()
        await until(lambda: not is_alive(first.supervisor_pid), "the supervisor is dead")
        async with supervisor(tmp_path) as second:
            assert set(await second.guests()) == {"web-2"}
            took = await swap.swap_often(second, lambda number: version(number + 2), 3, 0.1)
            seen = await swap.end_load(load)
        assert seen.errors == {}
        assert seen.served > 300
        assert took.not_drained == 0

    asyncio.run(scenario())


# --- pure -----------------------------------------------------------------------------------------------------------


def test_addresses_are_told_apart_by_block_and_slot() -> None:
    last = Block(0xFFF)
    assert str(last.address(2, 4)) == "247.255.192.2"
    assert str(last.address(2, 6)) == "fd6c:6f77:636c:fff::2"
    assert last.slot_of(last.link_name(77)) == 77
    assert last.slot_of("lo") is last.slot_of("lcfff-x") is Block(0).slot_of(last.link_name(77)) is None
    assert len(last.link_name(0x3FFF)) <= 15


@pytest.mark.parametrize(
    ("address", "alias"), [("127.0.1.1", "241.0.1.1"), ("::1", "fd6c:6f77:6c6f::1"), ("10.0.0.1", "10.0.0.1")]
)
def test_only_loopback_addresses_have_an_alias(address: str, alias: str) -> None:
    assert str(alias_of(ipaddress.ip_address(address))) == alias
    assert str(behind(ipaddress.ip_address(alias))) == address
    spec = ProcessSpec(name="web", binary="b3:" + "0" * 64, connect={"kv": Endpoint(address, 1)})
    assert as_told(spec, "namespace").connect == {"kv": Endpoint(alias, 1)}
    assert as_told(spec, "listeners") is spec


def test_endpoints_that_differ_in_the_address_alone_have_ports_of_their_own_inside() -> None:
    endpoints = [Endpoint("127.0.0.1", 80), Endpoint("10.0.0.1", 80), Endpoint("::1", 80), Endpoint("10.0.0.1", 79)]
    found = ports_inside([*endpoints, Endpoint("10.0.0.1", 80, "udp")])
    assert found[Endpoint("10.0.0.1", 80, "udp")] == found[Endpoint("::1", 80)] == 80
    assert len({found[endpoint] for endpoint in endpoints if endpoint.address != "::1"}) == 3


@pytest.mark.parametrize(
    ("mode", "listen", "connect", "network"),
    [
        ("auto", "tcp", "udp", "listeners"),
        ("auto", "udp", "", "namespace"),
        ("listeners", "udp", "", "listeners"),
        ("namespaces", "tcp", "", "namespace"),
        ("namespaces", "", "tcp", "namespace"),
        ("namespaces", "", "", "listeners"),
    ],
)
def test_the_mode_and_what_a_process_needs_decide(mode: Mode, listen: str, connect: str, network: Network) -> None:
    def one(protocol: str) -> dict[str, Endpoint]:
        return {"x": Endpoint("127.0.0.1", 1, protocol)} if protocol in ("tcp", "udp") else {}  # type: ignore[arg-type]

    spec = ProcessSpec(name="web", binary="b3:" + "0" * 64, listen=one(listen), connect=one(connect))
    assert network_of(spec, mode) == network


def test_where_namespaces_cannot_be_had_a_guest_has_listeners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networking, "why_not", lambda: "not here")
    spec = ProcessSpec(name="dns", binary="b3:" + "0" * 64, listen={"dns": Endpoint("127.0.0.1", 53, "udp")})
    assert network_of(spec, "auto") == "listeners"
