"""The rules of one agent's guests in namespaces, as text for nftables. Pure: what holds is a function of what is served
by whom and who may reach whom.

One table for each agent. Its maps say which guest an endpoint is served by, its sets whom a guest may connect to; the
rules never change. What they do, in the order in which a packet meets them:

- **zones** (raw): UDP for an endpoint is tracked in a zone of the guest that serves it now. So each datagram goes to
  the guest that serves, as with a socket on the host, although clients keep their ports; and the guest before still
  answers what it had.
- **leaving**: what comes out of a guest's interface must have the guest's own address and be an answer, or go where its
  definition says. Everything else is dropped before it is routed, so it reaches neither this host nor another guest.
  What comes from elsewhere for a guest's own address is dropped as well: guests are reached by endpoints only. So is
  what a network brings for a loopback address or its alias: the kernel would refuse it only once it was led to a guest.
- **serving** (dnat): a new connection to an endpoint goes to the guest. Only packets that open one are looked at
  (a lone SYN), so connections that were there before the rules, or before a flip, stay where they are.
- **loopback** (dnat): an alias that no guest serves is this host's loopback.
- **returning** (snat): what comes from the host's loopback, or from the guest itself, could not be answered under its
  own address, so it gets the gateway's; what leaves the machine gets the host's. All others keep their address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from agent.api.processes import Endpoint
from agent.supervisor.network.addressing import (
    ALIAS_V4,
    ALIAS_V6,
    GATEWAY_SLOT,
    LOOPBACK_V4,
    LOOPBACK_V6,
    Block,
    alias_of,
)
from agent.supervisor.place import PROBE_MARK

INTERFACE_GROUP: Final = 0x6C63
"""Of every guest's interface on the host, whichever agent's; rules of the host's own firewall may name it."""

_TABLE: Final = """
table inet {table} {{
  map served4 {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
  map served6 {{ type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }}
  map anywhere4 {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
  map anywhere6 {{ type inet_proto . inet_service : ipv6_addr . inet_service; }}
  map zone4 {{ typeof ip daddr . udp dport : ct zone; }}
  map zone6 {{ typeof ip6 daddr . udp dport : ct zone; }}
  map zone_anywhere4 {{ typeof udp dport : ct zone; }}
  map zone_anywhere6 {{ typeof udp dport : ct zone; }}
  set peers4 {{ type ifname . ipv4_addr . inet_proto . inet_service; }}
  set peers6 {{ type ifname . ipv6_addr . inet_proto . inet_service; }}
  set itself4 {{ type ipv4_addr . ipv4_addr; }}
  set itself6 {{ type ipv6_addr . ipv6_addr; }}

  chain zones {{
    ct original zone set ip daddr . udp dport map @zone4
    ct original zone set ip6 daddr . udp dport map @zone6
    meta nfproto ipv4 jump zones_anywhere4
    meta nfproto ipv6 jump zones_anywhere6
  }}
  chain zones_anywhere4 {{
    fib daddr type != local ip daddr != {alias4} return
    ct original zone set udp dport map @zone_anywhere4
  }}
  chain zones_anywhere6 {{
    fib daddr type != local ip6 daddr != {alias6} return
    ct original zone set udp dport map @zone_anywhere6
  }}
  chain zones_in {{ type filter hook prerouting priority raw; meta l4proto udp jump zones; }}
  chain zones_out {{ type filter hook output priority raw; meta l4proto udp jump zones; }}

  chain leaving {{
    type filter hook prerouting priority mangle;
    iifname != "{prefix}*" ip daddr {block4} ct state new drop
    iifname != "{prefix}*" ip6 daddr {block6} ct state new drop
    iifname != "lo" iifgroup != {group} ip daddr {{ {loopback4}, {alias4} }} ct state new drop
    iifname != "lo" iifgroup != {group} ip6 daddr {{ {loopback6}, {alias6} }} ct state new drop
    iifname != "{prefix}*" accept
    fib saddr . iif oif missing drop
    ct state established,related accept
    ct state new iifname . ip daddr . meta l4proto . th dport @peers4 accept
    ct state new iifname . ip6 daddr . meta l4proto . th dport @peers6 accept
    drop
  }}

  chain serving {{
    meta l4proto tcp tcp flags & (fin | syn | rst | ack) != syn return
    dnat ip to ip daddr . meta l4proto . th dport map @served4
    dnat ip6 to ip6 daddr . meta l4proto . th dport map @served6
    meta nfproto ipv4 jump serving_anywhere4
    meta nfproto ipv6 jump serving_anywhere6
  }}
  chain serving_anywhere4 {{
    fib daddr type != local ip daddr != {alias4} return
    dnat ip to meta l4proto . th dport map @anywhere4
  }}
  chain serving_anywhere6 {{
    fib daddr type != local ip6 daddr != {alias6} return
    dnat ip6 to meta l4proto . th dport map @anywhere6
  }}
  chain serving_in {{ type nat hook prerouting priority dstnat - 2; jump serving; }}
  chain serving_out {{ type nat hook output priority -102; meta mark != {probe_mark} jump serving; }}
  chain loopback {{
    type nat hook prerouting priority dstnat - 1;
    dnat ip prefix to ip daddr map {{ {alias4} : {loopback4} }}
    ip6 daddr {alias6} dnat ip6 to {loopback6}
  }}
  chain local {{
    type filter hook output priority filter;
    ct status dnat accept
    ip daddr {block4} ct state new reject
    ip6 daddr {block6} ct state new reject
  }}

  chain returning {{
    type nat hook postrouting priority srcnat;
    oifname "{prefix}*" ip saddr {loopback4} snat ip to {gateway4}
    oifname "{prefix}*" ip6 saddr {loopback6} snat ip6 to {gateway6}
    ip saddr . ip daddr @itself4 snat ip to {gateway4}
    ip6 saddr . ip6 daddr @itself6 snat ip6 to {gateway6}
    ip saddr {block4} oifgroup != {group} masquerade
    ip6 saddr {block6} oifgroup != {group} masquerade
  }}
}}
"""

GUARD_TABLE: Final = "lowcloud"


class Target(NamedTuple):
    """Where in a namespace an endpoint is served."""

    slot: int
    port: int


class Exit(NamedTuple):
    """Whom the guest behind an interface may connect to."""

    slot: int
    peers: frozenset[Endpoint]


def guard(forwarded: Iterable[str]) -> str:
    """For a host that did not forward packets: it goes on to forward nothing but guests', and what comes in by the
    interfaces for which it did."""
    others = "".join(f'    iifname "{name}" accept\n' for name in forwarded)
    return f"""
table inet {GUARD_TABLE} {{
  chain forward {{
    type filter hook forward priority filter;
    iifgroup {INTERFACE_GROUP} accept
    oifgroup {INTERFACE_GROUP} accept
{others}    drop
  }}
}}
"""


def table(name: str, block: Block) -> str:
    """The table as it begins; one of this name that was there is replaced in the same step."""
    text = _TABLE.format(
        table=name,
        prefix=block.prefix,
        group=INTERFACE_GROUP,
        probe_mark=PROBE_MARK,
        block4=block.v4,
        block6=block.v6,
        alias4=ALIAS_V4,
        alias6=ALIAS_V6,
        loopback4=LOOPBACK_V4,
        loopback6=LOOPBACK_V6,
        gateway4=block.address(GATEWAY_SLOT, 4),
        gateway6=block.address(GATEWAY_SLOT, 6),
    )
    return f"table inet {name}\ndelete table inet {name}\n{text}"


def moved(name: str, block: Block, was: Mapping[Endpoint, Target], changes: Mapping[Endpoint, Target | None]) -> str:
    """What makes these endpoints be served elsewhere, or by no guest of a namespace."""
    lines = []
    for endpoint, target in changes.items():
        if endpoint in was:
            lines += [f"delete element inet {name} {one}" for one in _served(block, endpoint, was[endpoint])]
        if target is not None:
            lines += [f"add element inet {name} {one}" for one in _served(block, endpoint, target)]
    return "\n".join(lines)


def opened(name: str, block: Block, leaving: Exit) -> str:
    """What lets a guest out to its peers."""
    return "\n".join(f"add element inet {name} {one}" for one in _let_out(block, leaving))


def closed(name: str, block: Block, leaving: Exit) -> str:
    """What takes that back."""
    return "\n".join(f"delete element inet {name} {one}" for one in _let_out(block, leaving))


def _served(block: Block, endpoint: Endpoint, target: Target) -> Iterator[str]:
    """The elements that say where one endpoint is served: of a loopback address, under its alias too."""
    address = ipaddress.ip_address(endpoint.address)
    version, port, protocol = address.version, endpoint.port, endpoint.protocol
    to = f"{block.address(target.slot, version)} . {target.port}"
    if address.is_unspecified:
        yield f"anywhere{version} {{ {protocol} . {port} : {to} }}"
        if protocol == "udp":
            yield f"zone_anywhere{version} {{ {port} : {target.slot} }}"
        return
    for name in dict.fromkeys((address, alias_of(address))):
        yield f"served{version} {{ {name} . {protocol} . {port} : {to} }}"
        if protocol == "udp":
            yield f"zone{version} {{ {name} . {port} : {target.slot} }}"


def _let_out(block: Block, leaving: Exit) -> Iterator[str]:
    for version in (4, 6):
        own = block.address(leaving.slot, version)
        yield f"itself{version} {{ {own} . {own} }}"
    for version, peers in _by_version(leaving.peers):
        for peer in peers:
            name = alias_of(ipaddress.ip_address(peer.address))
            yield f'peers{version} {{ "{block.link_name(leaving.slot)}" . {name} . {peer.protocol} . {peer.port} }}'


def _by_version(peers: Iterable[Endpoint]) -> Iterator[tuple[int, list[Endpoint]]]:
    ordered = sorted(peers, key=str)
    for version in (4, 6):
        yield version, [peer for peer in ordered if ipaddress.ip_address(peer.address).version == version]
