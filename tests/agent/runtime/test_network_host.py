"""What an agent makes and changes in its host for network namespaces: blocks, rules and links of its own, which it lays
down again when somebody removes them, forwarding for guests alone; and that nothing of it is left in the end."""

from __future__ import annotations

import fcntl
import socket
import threading
from pathlib import Path

import msgspec
import pytest

from agent.api.processes import Endpoint
from agent.supervisor.network import namespace, ruleset
from agent.supervisor.network.forwarding import Changed, Forwarding
from agent.supervisor.network.namespace import inside
from agent.supervisor.network.netlink import Netlink
from agent.supervisor.network.networks import LOOK_S
from agent.supervisor.network.nftables import Nftables, RulesRefused
from tests.agent.runtime.machine import LAN, SWITCH, Agent, datagrams_at, listener_in, machine, rules_and_links
from tests.agent.runtime.support import DEADLINE_S, needs_namespaces

pytestmark = needs_namespaces

MEETINGS = 200
"""So often settings are read while an interface may be going."""


# --- rules and links ------------------------------------------------------------------------------------------------


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


# --- forwarding -----------------------------------------------------------------------------------------------------


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


def test_interfaces_that_come_and_go_meanwhile_are_in_nobodys_way(tmp_path: Path) -> None:
    """Such as those of another agent's guests."""
    enough = threading.Event()

    def come_and_go() -> None:
        with Netlink.routes() as links:
            while not enough.is_set():
                links.make_pair("other0", mac=bytes.fromhex("026c6300000a"), group=0, other_end_in=client)
                links.delete_link("other0")

    with machine() as client:
        filter_ = Nftables()
        forwarding = Forwarding(filter_, run=tmp_path)
        others = threading.Thread(target=come_and_go)
        others.start()
        try:
            for version in [*namespace.versions()] * MEETINGS:
                forwarding.switch_on(version)
                forwarding.switch_off_after_last()
        finally:
            enough.set()
            others.join()
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
