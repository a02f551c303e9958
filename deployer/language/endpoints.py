"""The texts that say where a process listens and whom it may connect to.

    listener  = address ":" port "/" protocol
    target    = listener | process "@" host ":" port "/" protocol
    address   = IPv4 | "[" IPv6 "]" | "host"
    protocol  = "tcp" | "udp"

The token `host` is the host that the process runs on: as an address, that host's own; after `@`, the instance that runs
beside it. Names are never looked up: what a definition says is an address or a process of the same definition.
"""

from __future__ import annotations

import functools
import re
from ipaddress import IPv6Address, ip_address
from typing import Literal, NamedTuple

from deployer.language.wording import quoted

OWN_HOST = "host"
"""Reserved: no host may have this name."""

MAX_PORT = 65535
REMEMBERED = 1 << 14
"""Texts whose meaning is kept: every host that a process is on asks for the same ones."""

Protocol = Literal["tcp", "udp"]
_PROTOCOLS: dict[str, Protocol] = {"tcp": "tcp", "udp": "udp"}

_EXAMPLE = "0.0.0.0:8080/tcp"


class EndpointError(ValueError):
    """A text that is no endpoint. The message says what is wrong with it, `hint` what to write."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Listener(NamedTuple):
    """Where a process listens; also an address that a process may connect to."""

    address: str
    """An IP address in its shortest form, without brackets, or the token `host`."""
    port: int
    protocol: Protocol

    def __str__(self) -> str:
        return f"{bracketed(self.address)}:{self.port}/{self.protocol}"


class ProcessTarget(NamedTuple):
    """A listener of a process of this definition."""

    process: str
    host: str
    """The host's name, or the token `host`."""
    port: int
    protocol: Protocol

    def __str__(self) -> str:
        return f"{self.process}@{self.host}:{self.port}/{self.protocol}"


Target = Listener | ProcessTarget


class HostAddress(NamedTuple):
    """Where an agent listens."""

    address: str
    port: int

    def __str__(self) -> str:
        return f"{bracketed(self.address)}:{self.port}"


def bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


@functools.lru_cache(maxsize=REMEMBERED)
def parse_listener(text: str) -> Listener:
    """Raises EndpointError."""
    rest, protocol = _split_protocol(text, _EXAMPLE)
    address, port = _split_port(rest, text)
    return Listener(_address(address, text, own_host=True), _port(port, text), protocol)


@functools.lru_cache(maxsize=REMEMBERED)
def parse_target(text: str) -> Target:
    """Raises EndpointError."""
    if "@" not in text:
        listener = parse_listener(text)
        if is_wildcard(listener.address):
            raise EndpointError(
                f"{quoted(text)} is no address that can be connected to",
                hint="name the address, or process@host:port/tcp",
            )
        return listener
    rest, protocol = _split_protocol(text, "kv@fra1:6379/tcp")
    process, _, place = rest.partition("@")
    host, port = _split_port(place, text)
    if not process or not host:
        raise EndpointError(
            f"{quoted(text)} names no {'host' if process else 'process'}", hint="write kv@fra1:6379/tcp"
        )
    return ProcessTarget(process, host, _port(port, text), protocol)


@functools.lru_cache(maxsize=REMEMBERED)
def parse_host_address(text: str) -> HostAddress:
    """Raises EndpointError."""
    address, port = _split_port(text, text)
    found = HostAddress(_address(address, text, own_host=False), _port(port, text))
    if is_wildcard(found.address):
        raise EndpointError(f"{quoted(text)} is no address that others can reach", hint="write the host's own address")
    return found


def is_wildcard(address: str) -> bool:
    return address in ("0.0.0.0", "::")


@functools.lru_cache(maxsize=REMEMBERED)
def is_loopback(address: str) -> bool:
    return address != OWN_HOST and ip_address(address).is_loopback


def overlap(a: str, b: str) -> bool:
    """Whether two addresses (no tokens) of one machine can receive the same packet. `::` takes only IPv6 here: guests'
    IPv6 sockets are never dual."""
    if (":" in a) != (":" in b):
        return False
    return a == b or is_wildcard(a) or is_wildcard(b)


def _split_protocol(text: str, example: str) -> tuple[str, Protocol]:
    rest, slash, name = text.rpartition("/")
    if not slash:
        raise EndpointError(f"{quoted(text)} has no protocol", hint=f"end it in /tcp or /udp, as in {example}")
    protocol = _PROTOCOLS.get(name)
    if protocol is None:
        raise EndpointError(f"{quoted(text)} has the unknown protocol {name!r}", hint="the protocols are tcp and udp")
    return rest, protocol


def _split_port(rest: str, text: str) -> tuple[str, str]:
    address, colon, port = rest.rpartition(":")
    if not colon or not address or "]" in port:
        raise EndpointError(
            f"{quoted(text)} has no port" if rest else f"{quoted(text)} is empty", hint="write address:port"
        )
    return address, port


def _port(text: str, whole: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= MAX_PORT:
        raise EndpointError(
            f"{quoted(whole)} has no valid port: {text!r}", hint=f"a port is a number from 1 to {MAX_PORT}"
        )
    return int(text)


def _address(text: str, whole: str, *, own_host: bool) -> str:
    if own_host and text == OWN_HOST:
        return OWN_HOST
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    bare_six = inner == text and ":" in text
    try:
        address = ip_address(inner)
    except ValueError:
        address = None
    if address is None or (isinstance(address, IPv6Address) and (bare_six or address.scope_id is not None)):
        hint = "an IPv6 address stands in brackets: [::1]:8080" if bare_six else "names are not looked up"
        raise EndpointError(f"{quoted(whole)}: {text!r} is not an IP address", hint=hint)
    return str(address)
