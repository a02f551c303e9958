"""Which network a guest is given, the addresses that it has there or is told, and the ports inside."""

from __future__ import annotations

import ipaddress

import pytest

from agent.api.processes import Endpoint, ProcessSpec
from agent.daemon import networking
from agent.daemon.networking import Mode, as_told, network_of
from agent.runtime import Network
from agent.supervisor.network.addressing import Block, alias_of, behind, ports_inside
from tests.agent.runtime.support import needs_namespaces

pytestmark = needs_namespaces


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
