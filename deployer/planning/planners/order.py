"""In which order calls may be made: what has to come before what, and the stages that follow.

Some orders are forced; a call made earlier would be refused:

- a volume is made before the process that mounts it;
- who gives up a port, a volume, or room that another call on the same machine needs, does so first. Hosts with one
  address, and all loopback hosts, are one machine. Two processes that trade ports cannot do so by replacing: one of
  them is stopped and started again.

Others are kinder to clients, and give way where they would contradict each other:

- who listens comes before who connects to it;
- what ends, ends last, after everything that takes its place; and among those, who connects goes before who listens.

Everything that is not ordered happens at once, so the number of stages is the length of the longest chain.

A planner may ask for **phases** (a canary first, one region after the other): a step of a later phase comes after all
of an earlier one. A phase gives way only to what must come before its own steps: what is forced, and whoever begins to
listen where one of them connects to.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from agent.api.processes import Endpoint, ProcessSpec
from deployer.applying.observe import Observed
from deployer.language.endpoints import is_loopback, is_wildcard, overlap, parse_host_address
from deployer.language.schema import Definition
from deployer.planning.plan import Kind, Step
from deployer.planning.planners.graph import cycles, levels
from deployer.planning.planners.room import Change, Room, add, fits, positive, row

LOOPBACK: Final = "loopback"
MAKES_A_GUEST: Final = frozenset({Kind.START, Kind.REPLACE, Kind.CONFIGURE})

Place = tuple[str, int, str]
"""Machine or address, port, protocol."""
Edges = dict[int, set[int]]
DIMENSIONS: Final = 3
MOST_TANGLED: Final = 10
"""Steps that trade places with each other, of which the fewest that must be split are still searched."""


class Fleet(NamedTuple):
    """What the order needs to know of the hosts."""

    observed: Observed
    capacity: dict[str, Room]
    """What processes of a host may be given."""
    address: dict[str, str]


def fleet_of(current: Definition | None, following: Definition, observed: Observed) -> Fleet:
    hosts = {**(current.host if current else {}), **following.host}
    return Fleet(
        observed,
        {name: (int(host.cores), int(host.memory), int(host.disk)) for name, host in following.host.items()},
        {name: parse_host_address(host.address).address for name, host in hosts.items()},
    )


def regions_of(current: Definition | None, following: Definition) -> dict[str, str]:
    """The region of every host of these definitions, by its name."""
    return {name: host.region for name, host in {**(current.host if current else {}), **following.host}.items()}


Phase = Callable[[Step, bool], int]
"""The phase of a step; the second argument tells whether it is one that ends a process and that nothing waits for."""


def stages_of(steps: Iterable[Step], fleet: Fleet) -> tuple[tuple[Step, ...], ...]:
    """The steps in stages, every step as early as the rules let it. A step that cannot keep its form (see above) is
    split."""
    return tuple(stage for _, stage in phased_stages(steps, fleet, lambda _step, _ends: 0))


def phased_stages(steps: Iterable[Step], fleet: Fleet, phase_of: Phase) -> list[tuple[int, tuple[Step, ...]]]:
    """As `stages_of`, each stage with its phase, in order of the phases."""
    remaining = list(steps)
    while True:
        graph = _Graph(remaining, fleet)
        tangled = graph.tangled()
        if not tangled:
            return graph.stages(phase_of)
        remaining = [part for n, step in enumerate(remaining) for part in (_split(step) if n in tangled else (step,))]


class _Graph:
    """Steps as nodes, numbered as in the list; further nodes are barriers, which take no time of their own."""

    def __init__(self, steps: list[Step], fleet: Fleet) -> None:
        self._steps = steps
        self._fleet = fleet
        self._nodes = len(steps)
        self._before = [_runs_now(step, fleet.observed) for step in steps]
        self._mixed: set[int] = set()
        self._forced: Edges = {}
        self._kind: Edges = {}
        self._needed: Edges = {}
        """Who begins to listen before who connects there: kind, but stronger than a phase."""
        self._ends: set[int] = set()
        self._by_host: dict[str, list[int]] = {}
        for number, step in enumerate(steps):
            self._by_host.setdefault(step.host, []).append(number)
        self._order_volumes()
        self._order_ports()
        self._order_room()
        self._order_restarted()
        self._order_connections()
        self._order_ends()

    def tangled(self) -> set[int]:
        """Steps that must be split, because no order of the steps as they are would work: as few as can be of each
        tangle, where it is small enough to search it; otherwise one, which may leave a smaller one for the next
        look."""
        found = set(self._mixed)
        for cycle in cycles(self._nodes, self._forced):
            found |= self._to_split([n for n in cycle if n < len(self._steps) and self._can_be_split(n)], cycle)
        return found

    def _to_split(self, candidates: list[int], tangle: list[int]) -> set[int]:
        if len(candidates) > MOST_TANGLED:
            return {candidates[0]}
        for size in range(1, len(candidates) + 1):
            for chosen in itertools.combinations(candidates, size):
                left = set(tangle).difference(chosen)
                edges = {node: self._forced.get(node, set()) & left for node in left}
                if not cycles(self._nodes, edges, among=sorted(left)):
                    return set(chosen)
        return set(candidates)

    def stages(self, phase_of: Phase) -> list[tuple[int, tuple[Step, ...]]]:
        edges = self._without_cycles()
        phases = self._phases(phase_of)
        for node, after in edges.items():
            edges[node] = {other for other in after if phases[other] == phases[node]}
        weights = [1] * len(self._steps) + [0] * (self._nodes - len(self._steps))
        found: dict[tuple[int, int], list[Step]] = {}
        for number, level in enumerate(levels(self._nodes, edges, weights)[: len(self._steps)]):
            found.setdefault((phases[number], level), []).append(self._steps[number])
        return [(place[0], tuple(sorted(found[place], key=_position))) for place in sorted(found)]

    def _without_cycles(self) -> Edges:
        """All orders; where they contradict each other, without those that are only kind."""
        edges = {node: set(after) for node, after in self._forced.items()}
        for node, after in self._kind.items():
            edges.setdefault(node, set()).update(after)
        for cycle in cycles(self._nodes, edges):
            members = set(cycle)
            for node in cycle:
                optional = self._kind.get(node, set()) - self._forced.get(node, set())
                edges.get(node, set()).difference_update(optional & members)
        return edges

    def _phases(self, phase_of: Phase) -> list[int]:
        """The phase of each node: its own, or that of the first one that cannot do without it."""
        own = [phase_of(step, n in self._ends) for n, step in enumerate(self._steps)]
        own += [max(own, default=0)] * (self._nodes - len(own))
        if len(set(own)) < 2:
            return own
        before: dict[int, list[int]] = {}
        for needed in (self._forced, self._needed):
            for node, after in needed.items():
                for other in after:
                    before.setdefault(other, []).append(node)
        phases = list(own)
        seen: set[int] = set()
        for first in sorted(range(self._nodes), key=own.__getitem__):
            waiting = [first]
            while waiting:
                node = waiting.pop()
                if node not in seen:
                    seen.add(node)
                    phases[node] = own[first]
                    waiting += before.get(node, ())
        return phases

    # --- forced orders ---

    def _order_volumes(self) -> None:
        for numbers in self._by_host.values():
            made = {self._steps[n].subject: n for n in numbers if self._steps[n].kind is Kind.CREATE_VOLUME}
            given_up: dict[str, int] = {}
            for n in numbers:
                old, new = self._before[n], self._steps[n].spec
                if old is not None and self._steps[n].kind is not Kind.START:
                    kept = set(new.volume.values()) if new else set()
                    given_up |= {volume: n for volume in old.volume.values() if volume not in kept}
            for n in numbers:
                for volume in _volumes(self._steps[n].spec):
                    self._force(made.get(volume), n)
                    self._force(given_up.get(volume), n)

    def _order_ports(self) -> None:
        given_up: dict[Place, list[tuple[str, int]]] = {}
        for n, step in enumerate(self._steps):
            old = self._before[n]
            if old is not None and step.kind is not Kind.START:
                kept = set(step.spec.listen.values()) if step.spec else set()
                for endpoint in set(old.listen.values()) - kept:
                    given_up.setdefault(self._port(step.host, endpoint), []).append((endpoint.address, n))
        for n, step in enumerate(self._steps):
            old = self._before[n]
            held = set(old.listen.values()) if old and step.kind is not Kind.START else set()
            for endpoint in set(step.spec.listen.values()) - held if step.spec else ():
                for address, other in given_up.get(self._port(step.host, endpoint), []):
                    if overlap(address, endpoint.address):
                        self._force(other, n)

    def _order_room(self) -> None:
        """Where a host is too small for everything old and new at once, what frees comes before what takes. What does
        both, one thing against another, counts as taking if there is room for that; if not, such changes follow one
        another (`deployer.planning.planners.room`)."""
        for host, numbers in self._by_host.items():
            capacity = self._fleet.capacity.get(host)
            if capacity is None:
                continue
            used = self._used(host)
            growth = {n: self._growth(n) for n in numbers}
            most = add(used, *(positive(change) for change in growth.values()))
            scarce = [d for d in range(DIMENSIONS) if most[d] > capacity[d]]
            if not scarce:
                continue
            takes = {n for n, change in growth.items() if any(change[d] > 0 for d in scarce)}
            frees = {n for n, change in growth.items() if any(change[d] < 0 for d in scarce)}
            freed = add(used, *(growth[n] for n in frees - takes))
            groups = [frees - takes, takes]
            if not fits(freed, capacity, add(*(positive(growth[n]) for n in takes))):
                mixed = {n: Change(_size(self._before[n]), growth[n]) for n in takes & frees}
                order, split = row(freed, capacity, mixed)
                self._mixed |= split
                groups = [frees - takes, *({n} for n in order), takes - frees]
            self._one_after_the_other([group for group in groups if group])

    def _one_after_the_other(self, groups: list[set[int]]) -> None:
        for first, then in itertools.pairwise(groups):
            barrier = self._barrier()
            for n in first:
                self._force(n, barrier)
            for n in then:
                self._force(barrier, n)

    def _used(self, host: str) -> Room:
        state = self._fleet.observed.hosts[host]
        cores, memory, disk = add(*(_size(running.spec) for running in state.processes.values()))
        return cores, memory, disk + sum(state.volumes.values())

    def _order_restarted(self) -> None:
        stopped = {(s.host, s.subject): n for n, s in enumerate(self._steps) if s.kind is Kind.STOP}
        for n, step in enumerate(self._steps):
            if step.kind is Kind.START:
                self._force(stopped.get((step.host, step.subject)), n)

    # --- kind orders ---

    def _order_connections(self) -> None:
        listening: dict[Place, list[tuple[int, bool]]] = {}
        for n, step in enumerate(self._steps):
            if step.spec is not None and step.kind in MAKES_A_GUEST:
                old = set() if step.kind is Kind.START else set(self._reachable(step.host, self._before[n]))
                for place in self._reachable(step.host, step.spec):
                    listening.setdefault(place, []).append((n, place not in old))
        for n, step in enumerate(self._steps):
            if step.spec is not None and step.kind in MAKES_A_GUEST:
                for place in self._reached(step.host, step.spec):
                    for other, begins in listening.get(place, ()):
                        self._prefer(other, n)
                        if begins and other != n:
                            self._needed.setdefault(other, set()).add(n)

    def _order_ends(self) -> None:
        ends = [n for n, step in enumerate(self._steps) if step.kind is Kind.STOP and not self._forced.get(n)]
        if not ends:
            return
        barrier = self._barrier()
        self._ends = set(ends)
        for n in range(len(self._steps)):
            self._prefer(barrier, n) if n in self._ends else self._prefer(n, barrier)
        listening: dict[Place, list[int]] = {}
        for n in ends:
            for place in self._reachable(self._steps[n].host, self._before[n]):
                listening.setdefault(place, []).append(n)
        for n in ends:
            for place in self._reached(self._steps[n].host, self._before[n]):
                for other in listening.get(place, ()):
                    self._prefer(n, other)

    # --- parts ---

    def _force(self, first: int | None, then: int) -> None:
        if first is not None and first != then:
            self._forced.setdefault(first, set()).add(then)

    def _prefer(self, first: int, then: int) -> None:
        if first != then:
            self._kind.setdefault(first, set()).add(then)

    def _barrier(self) -> int:
        self._nodes += 1
        return self._nodes - 1

    def _can_be_split(self, number: int) -> bool:
        return self._steps[number].kind in (Kind.REPLACE, Kind.CONFIGURE)

    def _growth(self, number: int) -> Room:
        """What a step takes more than there was before, in each dimension."""
        step = self._steps[number]
        if step.kind is Kind.CREATE_VOLUME:
            has = self._fleet.observed.hosts[step.host].volumes.get(step.subject, 0)
            return 0, 0, max((step.size_bytes or 0) - has, 0)
        old = _size(None if step.kind is Kind.START else self._before[number])
        new = _size(step.spec)
        return new[0] - old[0], new[1] - old[1], new[2] - old[2]

    def _machine(self, host: str) -> str:
        address = self._fleet.address.get(host, host)
        return LOOPBACK if _on_loopback(address) else address

    def _port(self, host: str, endpoint: Endpoint) -> Place:
        return self._machine(host), endpoint.port, endpoint.protocol

    def _reachable(self, host: str, spec: ProcessSpec | None) -> Iterator[Place]:
        """The places under which a process's listeners can be reached."""
        machine = self._machine(host)
        for endpoint in spec.listen.values() if spec else ():
            if is_wildcard(endpoint.address):
                yield f"{LOOPBACK} of {machine}", endpoint.port, endpoint.protocol
                yield machine, endpoint.port, endpoint.protocol
            else:
                yield self._address(host, endpoint), endpoint.port, endpoint.protocol

    def _reached(self, host: str, spec: ProcessSpec | None) -> Iterator[Place]:
        """The places that a process connects to."""
        for endpoint in spec.connect.values() if spec else ():
            yield self._address(host, endpoint), endpoint.port, endpoint.protocol
            if _on_loopback(endpoint.address):
                yield f"{LOOPBACK} of {self._machine(host)}", endpoint.port, endpoint.protocol

    def _address(self, host: str, endpoint: Endpoint) -> str:
        """An address as every machine understands it: a loopback address means another place on each."""
        own = _on_loopback(endpoint.address)
        return f"{endpoint.address} of {self._machine(host)}" if own else endpoint.address


# --- single steps ---------------------------------------------------------------------------------------------------


def _split(step: Step) -> tuple[Step, Step]:
    stop = msgspec.structs.replace(step, kind=Kind.STOP, spec=None)
    return stop, msgspec.structs.replace(step, kind=Kind.START, expect=None)


def _runs_now(step: Step, observed: Observed) -> ProcessSpec | None:
    if step.kind is Kind.CREATE_VOLUME:
        return None
    runs = observed.hosts[step.host].processes.get(step.subject)
    return runs.spec if runs else None


def _size(spec: ProcessSpec | None) -> Room:
    return (spec.cores_milli, spec.memory_bytes, spec.disk_bytes) if spec else (0, 0, 0)


def _volumes(spec: ProcessSpec | None) -> Iterable[str]:
    return spec.volume.values() if spec else ()


def _on_loopback(address: str) -> bool:
    """False also for what is no address: a host may run what no definition of ours has put there."""
    try:
        return is_loopback(address)
    except ValueError:
        return False


def _position(step: Step) -> tuple[str, str, str]:
    return step.host, step.subject, step.kind
