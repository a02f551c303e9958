"""Which guests get a network namespace of their own. The agent decides, and says it in each guest's order.

A namespace promises what listeners on the host cannot: where a process with a UDP listener may send is limited, because
rules stand between its interface and everything else. It costs throughput, since each packet passes a second interface
and those rules (docs/performance.md), so by default only such a process has one.
"""

from __future__ import annotations

import ipaddress
from typing import Final, Literal, get_args

import msgspec

from agent.api.processes import Endpoint, ProcessSpec
from agent.runtime import Network

Mode = Literal["auto", "listeners", "namespaces"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
DEFAULT: Final[Mode] = "auto"


def network_of(spec: ProcessSpec, mode: Mode) -> Network:
    """How a guest of this specification is connected. Call it in a thread."""
    wanted = {
        "auto": any(endpoint.protocol == "udp" for endpoint in spec.listen.values()),
        "listeners": False,
        "namespaces": bool(spec.listen or spec.connect),
    }
    return "namespace" if wanted[mode] and not why_not() else "listeners"


def as_told(spec: ProcessSpec, network: Network) -> ProcessSpec:
    """The specification with its peers' addresses as the guest is told them: in a namespace a loopback address would be
    the guest's own, so it has another name there."""
    if network == "listeners":
        return spec
    from agent.supervisor.network.addressing import alias_of

    def told(endpoint: Endpoint) -> Endpoint:
        alias = alias_of(ipaddress.ip_address(endpoint.address))
        return msgspec.structs.replace(endpoint, address=str(alias))

    return msgspec.structs.replace(spec, connect={name: told(peer) for name, peer in spec.connect.items()})


def why_not() -> str:
    """Why this host cannot make namespaces; "" where it can. What that takes is loaded when it is first asked."""
    from agent.supervisor.network import trial

    return trial.why_not()
