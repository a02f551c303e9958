"""Addresses of listeners, connections and hosts."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.language.endpoints import (
    EndpointError,
    HostAddress,
    Listener,
    ProcessTarget,
    overlap,
    parse_host_address,
    parse_listener,
    parse_target,
)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("0.0.0.0:8080/tcp", Listener("0.0.0.0", 8080, "tcp")),
        ("[::]:53/udp", Listener("::", 53, "udp")),
        ("[2001:DB8:0:0::1]:1/tcp", Listener("2001:db8::1", 1, "tcp")),
        ("host:80/tcp", Listener("host", 80, "tcp")),
    ],
)
def test_a_listener_is_an_address_a_port_and_a_protocol(text: str, meaning: Listener) -> None:
    assert parse_listener(text) == meaning
    assert parse_listener(str(meaning)) == meaning


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("kv@fra1:6379/tcp", ProcessTarget("kv", "fra1", 6379, "tcp")),
        ("kv@host:6379/udp", ProcessTarget("kv", "host", 6379, "udp")),
        ("10.0.0.1:53/udp", Listener("10.0.0.1", 53, "udp")),
    ],
)
def test_a_target_is_a_process_or_an_address(text: str, meaning: Listener | ProcessTarget) -> None:
    assert parse_target(text) == meaning
    assert str(meaning) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no protocol"),
        ("0.0.0.0:80", "no protocol"),
        ("0.0.0.0:80/sctp", "unknown protocol"),
        ("0.0.0.0:80/TCP", "unknown protocol"),
        ("0.0.0.0/tcp", "no port"),
        (":80/tcp", "no port"),
        ("0.0.0.0:0/tcp", "no valid port"),
        ("0.0.0.0:65536/tcp", "no valid port"),
        ("0.0.0.0:٣/tcp", "no valid port"),
        ("0.0.0.0:8 0/tcp", "no valid port"),
        ("::1:80/tcp", "not an IP address"),
        ("[::1]/tcp", "no port"),
        ("[fe80::1%eth0]:80/tcp", "not an IP address"),
        ("localhost:80/tcp", "not an IP address"),
        ("010.0.0.1:80/tcp", "not an IP address"),
    ],
)
def test_a_text_that_is_no_listener_says_why(text: str, message: str) -> None:
    with pytest.raises(EndpointError, match=message) as caught:
        parse_listener(text)
    assert caught.value.hint


@pytest.mark.parametrize("text", ["0.0.0.0:80/tcp", "[::]:80/tcp", "@fra1:80/tcp", "kv@:80/tcp", "kv@fra1/tcp"])
def test_nothing_connects_to_every_address_or_to_nobody(text: str) -> None:
    with pytest.raises(EndpointError):
        parse_target(text)


def test_a_host_has_an_address_that_others_can_reach() -> None:
    assert parse_host_address("[::1]:7400") == HostAddress("::1", 7400)
    for text in ("0.0.0.0:7400", "10.0.0.1", "10.0.0.1:", "fra1.example:7400", "host:7400", "10.0.0.1:7400/tcp"):
        with pytest.raises(EndpointError):
            parse_host_address(text)


def test_a_wildcard_overlaps_every_address_of_its_family() -> None:
    assert overlap("0.0.0.0", "10.0.0.1")
    assert overlap("::1", "::")
    assert not overlap("::", "10.0.0.1")
    assert not overlap("10.0.0.1", "10.0.0.2")


@given(st.text(max_size=30))
def test_any_text_is_an_endpoint_or_an_error(text: str) -> None:
    for parse in (parse_listener, parse_target, parse_host_address):
        with contextlib.suppress(EndpointError):
            assert parse(str(parse(text))) == parse(text)
