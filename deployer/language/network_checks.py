"""What must hold between the addresses, listeners and connections of a definition.

Two hosts may share an address (several agents on one machine); then they also share its ports. All loopback addresses
are taken to be the machine that the agents run on, so a definition for `lowcloud up` is checked as one machine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from deployer.language import endpoints
from deployer.language.endpoints import OWN_HOST, EndpointError, HostAddress, Listener, ProcessTarget, Target
from deployer.language.positions import Path
from deployer.language.reading import Finding, declared
from deployer.language.schema import Definition, Ready
from deployer.language.wording import near_hint, quoted

Read = TypeVar("Read")


def check(definition: Definition, broken: frozenset[Path]) -> list[Finding]:
    """Mistakes in addresses, ports and readiness rules."""
    network = _Network(definition, broken)
    findings = network.findings
    findings += [*_host_addresses(network), *_ports(network), *_targets(network), *_ready(network)]
    return findings


def reached_address(listener: Listener, *, there: str, from_here: str) -> str | None:
    """The address under which a listener on a host with the address `there` is reached from one with the address
    `from_here`; None where it cannot be."""
    address = there if listener.address == OWN_HOST else listener.address
    if endpoints.is_wildcard(address):
        return there if endpoints.overlap(address, there) else None
    one_machine = there == from_here or (endpoints.is_loopback(there) and endpoints.is_loopback(from_here))
    return None if endpoints.is_loopback(address) and not one_machine else address


class _Bound(NamedTuple):
    """A listener as one host has it."""

    process: str
    name: str
    host: str
    listener: Listener
    address: str
    """Without the token `host`."""


class _Network:
    """A definition with its endpoints read. What cannot be read has a finding and is left out."""

    def __init__(self, definition: Definition, broken: frozenset[Path]) -> None:
        self.definition = definition
        self.broken = broken
        self.findings: list[Finding] = []
        self.addresses: dict[str, HostAddress] = {}
        self.listeners: dict[str, dict[str, Listener]] = {}
        self.targets: dict[str, dict[str, Target]] = {}
        for name, host in definition.host.items():
            address = self.read(endpoints.parse_host_address, host.address, ("host", name, "address"))
            if address is not None:
                self.addresses[name] = address
        for name, process in definition.process.items():
            self.listeners[name] = self.read_all(endpoints.parse_listener, process.listen, ("process", name, "listen"))
            self.targets[name] = self.read_all(endpoints.parse_target, process.connect, ("process", name, "connect"))

    def read(self, parse: Callable[[str], Read], text: str, path: Path) -> Read | None:
        try:
            return parse(text)
        except EndpointError as error:
            self.findings.append(Finding(path, str(error), error.hint))
            return None

    def read_all(self, parse: Callable[[str], Read], texts: dict[str, str], path: Path) -> dict[str, Read]:
        found = {name: self.read(parse, text, (*path, name)) for name, text in texts.items()}
        return {name: one for name, one in found.items() if one is not None}

    def bound(self) -> Iterator[_Bound]:
        """Every listener on every host whose address is known, in the order of the file."""
        for process, listeners in self.listeners.items():
            for host in dict.fromkeys(self.definition.process[process].hosts):
                if host in self.addresses:
                    own = self.addresses[host].address
                    for name, listener in listeners.items():
                        address = own if listener.address == OWN_HOST else listener.address
                        yield _Bound(process, name, host, listener, address)

    def machine(self, host: str) -> str:
        """What two hosts have in common if they share ports."""
        address = self.addresses[host].address
        return "loopback" if endpoints.is_loopback(address) else address


def _host_addresses(network: _Network) -> Iterator[Finding]:
    first: dict[HostAddress, str] = {}
    for name, address in network.addresses.items():
        if address in first:
            yield Finding(
                ("host", name, "address"),
                f"{address} is the address of host {first[address]} already",
                "each agent needs an address and port of its own",
            )
        first.setdefault(address, name)


def _ports(network: _Network) -> Iterator[Finding]:
    """No two listeners of one machine may receive the same connection, nor one that is meant for an agent."""
    agents: dict[tuple[str, int], list[str]] = defaultdict(list)
    for name, address in network.addresses.items():
        agents[(network.machine(name), address.port)].append(name)
    taken: dict[tuple[str, int, str], dict[str, _Bound]] = defaultdict(dict)
    told: set[Path] = set()
    for one in network.bound():
        path: Path = ("process", one.process, "listen", one.name)
        machine, port, protocol = network.machine(one.host), one.listener.port, one.listener.protocol
        if path in told:
            continue
        for agent in agents[(machine, port)] if protocol == "tcp" else ():
            if endpoints.overlap(one.address, network.addresses[agent].address):
                told.add(path)
                yield Finding(path, f"{one.listener} is where the agent of host {agent} listens", "use another port")
        others = taken[(machine, port, protocol)]
        other = _overlapping(one.address, others)
        if other is not None and path not in told:
            told.add(path)
            yield _collision(network, one, other)
        others.setdefault(one.address, one)


def _overlapping(address: str, others: dict[str, _Bound]) -> _Bound | None:
    """One of the listeners (by address) that would receive what is meant for this address. Thousands of hosts may share
    a machine in a test; only a wildcard looks at all of them."""
    if endpoints.is_wildcard(address):
        return next((one for taken, one in others.items() if endpoints.overlap(taken, address)), None)
    return others.get(address) or others.get("::" if ":" in address else "0.0.0.0")


def _collision(network: _Network, one: _Bound, other: _Bound) -> Finding:
    whose = "this process" if one.process == other.process else f"process {other.process}"
    place = f"on host {one.host}"
    hint = "use another port"
    if one.host != other.host:
        place = f"on host {other.host}, which is on the same machine as host {one.host}"
        hint = f"listen on the host's own address: {OWN_HOST}:{one.listener.port}/{one.listener.protocol}"
        if network.addresses[one.host].address == network.addresses[other.host].address:
            hint = "use another port, or give the hosts different addresses"
    return Finding(
        ("process", one.process, "listen", one.name),
        f"{one.listener} is taken {place} by {other.listener}, listener {other.name} of {whose}",
        hint,
    )


def _targets(network: _Network) -> Iterator[Finding]:
    for process, targets in network.targets.items():
        for name, target in targets.items():
            if isinstance(target, ProcessTarget):
                complaint = _target(network, process, target)
                if complaint is not None:
                    yield Finding(("process", process, "connect", name), *complaint)


def _target(network: _Network, process: str, target: ProcessTarget) -> tuple[str, str] | None:
    """What is wrong with a connection to a process, and a hint."""
    known = network.definition.process
    if ("process", target.process) in network.broken:
        return None
    if target.process not in known:
        names = sorted(declared("process", network.definition, network.broken))
        return f"there is no process {quoted(target.process)}", near_hint(target.process, names, "processes")
    from_hosts = known[process].hosts
    for host in from_hosts if target.host == OWN_HOST else (target.host,):
        complaint = _target_on(network, host, target)
        if complaint is not None:
            return complaint
    for here in from_hosts:
        there = here if target.host == OWN_HOST else target.host
        if here in network.addresses and there in network.addresses and not _reachable(network, target, there, here):
            return (
                f"{target.process} on host {there} cannot be reached from host {here}: "
                f"it listens on {_listening(network, target.process)}",
                "let it listen on 0.0.0.0, [::] or the host's own address",
            )
    return None


def _target_on(network: _Network, host: str, target: ProcessTarget) -> tuple[str, str] | None:
    known = network.definition.host
    placed = network.definition.process[target.process].hosts
    if host not in known and ("host", host) not in network.broken:
        return f"there is no host {quoted(host)}", near_hint(host, sorted(known), "hosts")
    if host not in placed:
        return (
            f"process {target.process} does not run on host {host}",
            f"it runs on {', '.join(placed)}: write {target._replace(host=placed[0])}",
        )
    listeners = network.listeners[target.process]
    unread = len(listeners) < len(network.definition.process[target.process].listen)
    if unread or any(_fits(one, target) for one in listeners.values()):
        return None
    if not listeners:
        return f"process {target.process} listens nowhere", f"give it [process.{target.process}.listen]"
    return (
        f"process {target.process} has no listener at port {target.port}/{target.protocol}",
        f"its listeners: {_listening(network, target.process)}",
    )


def _reachable(network: _Network, target: ProcessTarget, there: str, here: str) -> bool:
    candidates = [one for one in network.listeners[target.process].values() if _fits(one, target)]
    theirs, ours = network.addresses[there].address, network.addresses[here].address
    return not candidates or any(reached_address(one, there=theirs, from_here=ours) for one in candidates)


def _fits(listener: Listener, target: ProcessTarget) -> bool:
    return (listener.port, listener.protocol) == (target.port, target.protocol)


def _listening(network: _Network, process: str) -> str:
    return ", ".join(f"{name} at {one}" for name, one in network.listeners[process].items())


def _ready_without_listener(process: str, ready: Ready) -> Iterator[Finding]:
    if ready.path is not None:
        hint = "add `tcp` with the name of a listener"
        yield Finding(("process", process, "ready", "path"), "needs a listener to be asked over", hint)
    elif not ready.run:
        hint = 'write { tcp = "LISTENER" } or { run = ["ARGUMENT"] }'
        yield Finding(("process", process, "ready"), "names neither a listener nor a command", hint, of_key=True)


def _ready(network: _Network) -> Iterator[Finding]:
    for name, process in network.definition.process.items():
        if process.ready is None or ("process", name) in network.broken:
            continue
        path: Path = ("process", name, "ready", "tcp")
        wanted = process.ready.tcp
        if wanted is None:
            yield from _ready_without_listener(name, process.ready)
        elif wanted not in process.listen:
            hint = near_hint(wanted, process.listen, "listeners") or f"give it [process.{name}.listen]"
            yield Finding(path, f"there is no listener {quoted(wanted)}", hint)
        elif wanted in network.listeners[name] and network.listeners[name][wanted].protocol != "tcp":
            yield Finding(
                path,
                f"listener {wanted} is UDP, and only TCP can show that a process is ready",
                "name a TCP listener, or leave [ready] out",
            )
