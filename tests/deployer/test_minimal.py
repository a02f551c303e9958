"""`minimal` is minimal: on small worlds a search through all sequences of calls finds none that is shorter.

Either places are scarce (processes trade ports and volumes) or room is. Where both are scarce on one host at once, a
process may be stopped and started although some clever order would have spared it: the planner orders room without
looking at places.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from agent.api.processes import ProcessSpec, spec_digest
from deployer.applying.observe import Observed
from deployer.language import schema
from deployer.language.schema import Definition
from deployer.planning.plan import Kind, Step
from deployer.planning.planners import make_plan, version
from deployer.planning.planners.room import NOTHING, Change, Room, add, fits, negative, row
from deployer.resolving.specs import specs_of, volumes_of
from tests.deployer.worlds import BLOBS, Refused, World, definitions, observed_of

MOST_INSTANCES = 4
"""Processes that differ; each may be as it was, not there, or as it should be: 3^4 states."""
MOST_VOLUMES = 2

Place = tuple[str, str]
State = tuple[int, ...]
"""For each place that differs and each volume that is missing: 0 as it was, 1 not there, 2 as it should be."""


class Search:
    """Every sequence of calls that a strict host accepts, the shorter ones first."""

    def __init__(self, definition: Definition, following: Definition, observed: Observed) -> None:
        self._definition = definition
        self._observed = observed
        hosts = observed.hosts
        wanted = {host: specs_of(following).get(host, {}) for host in hosts}
        self._old: dict[Place, ProcessSpec | None] = {}
        self._new: dict[Place, ProcessSpec | None] = {}
        for host, state in hosts.items():
            for name in sorted({*state.processes, *wanted[host]}):
                runs = state.processes.get(name)
                old, new = runs.spec if runs else None, wanted[host].get(name)
                if old != new:
                    self._old[host, name], self._new[host, name] = old, new
        self.places = list(self._old)
        self.volumes = [
            (host, volume, size)
            for host, of_host in sorted(volumes_of(following).items())
            for volume, size in of_host.items()
            if host in hosts and hosts[host].volumes.get(volume, 0) < size
        ]

    def fewest_calls(self) -> int:
        start = tuple(1 if self._old[place] is None else 0 for place in self.places) + (0,) * len(self.volumes)
        goal = tuple(1 if self._new[place] is None else 2 for place in self.places) + (2,) * len(self.volumes)
        seen, edge, calls = {start}, [start], 0
        while goal not in seen:
            edge = [after for state in edge for after in self._next(state) if after not in seen]
            assert edge, "there is no way at all"
            edge = list(dict.fromkeys(edge))
            seen.update(edge)
            calls += 1
        return calls

    def _next(self, state: State) -> Iterator[State]:
        for number in range(len(state)):
            for value in (1, 2) if number < len(self.places) else (2,):
                if value != state[number] and self._is_possible(state, number, value):
                    yield (*state[:number], value, *state[number + 1 :])

    def _is_possible(self, state: State, number: int, value: int) -> bool:
        step = self._step(state, number, value)
        if step is None:
            return False
        world = World(self._definition, self._observed)
        for place, at in zip(self.places, state, strict=False):
            spec = self._spec(place, at)
            processes = world.specs()[place[0]]
            processes.pop(place[1], None)
            if spec is not None:
                processes[place[1]] = spec
        for (host, volume, size), at in zip(self.volumes, state[len(self.places) :], strict=True):
            if at == 2:
                world.volumes()[host][volume] = size
        try:
            world.carry_out_stage((step,))
        except Refused:
            return False
        return True

    def _spec(self, place: Place, at: int) -> ProcessSpec | None:
        return (self._old[place], None, self._new[place])[at]

    def _step(self, state: State, number: int, value: int) -> Step | None:
        if number >= len(self.places):
            host, volume, size = self.volumes[number - len(self.places)]
            return Step(
                host=host, subject=volume, kind=Kind.CREATE_VOLUME, change=schema.Change.HOT, causes=(), size_bytes=size
            )
        host, name = place = self.places[number]
        runs, wanted = self._spec(place, state[number]), self._spec(place, value)
        if wanted is None and runs is None:
            return None
        kind = Kind.STOP if wanted is None else Kind.START if runs is None else Kind.REPLACE
        return Step(
            host=host,
            subject=name,
            kind=kind,
            change=schema.Change.MOVE,
            causes=(),
            spec=wanted,
            expect=spec_digest(runs) if runs else None,
        )


def roomy(definition: Definition) -> Definition:
    """With room for everything at once."""
    hosts = {
        name: msgspec.structs.replace(host, cores=1 << 20, memory=1 << 40) for name, host in definition.host.items()
    }
    return msgspec.structs.replace(definition, host=hosts)


def placeless(definition: Definition) -> Definition:
    """Without anything that two processes could want to have."""
    processes = {
        name: msgspec.structs.replace(process, listen={}, connect={}, ready=None, volume={})
        for name, process in definition.process.items()
    }
    return msgspec.structs.replace(definition, process=processes, volume={})


@pytest.mark.parametrize("world", [roomy, placeless])
@settings(max_examples=60, suppress_health_check=[HealthCheck.filter_too_much])
@given(data=st.data(), loopback=st.booleans())
def test_no_sequence_of_calls_is_shorter(
    world: Callable[[Definition], Definition], data: st.DataObject, loopback: bool
) -> None:
    current, following = (world(data.draw(definitions(loopback=loopback))) for _ in range(2))
    observed = observed_of(current, {*current.host, *following.host})
    definition = msgspec.structs.replace(following, host=current.host | following.host)
    search = Search(definition, following, observed)
    assume(0 < len(search.places) <= MOST_INSTANCES and len(search.volumes) <= MOST_VOLUMES)
    plan = make_plan("minimal", version(current), version(following), observed)
    assert len(list(plan.steps())) == search.fewest_calls()


# --- rows of changes on a full host ---------------------------------------------------------------------------------

ROOMS = st.tuples(*[st.integers(0, 3)] * 3)


@settings(max_examples=60)
@given(changes=st.lists(st.tuples(ROOMS, ROOMS), max_size=4), slack=ROOMS)
def test_a_row_fits_at_every_step_and_splits_as_few_as_any_row(changes: list[tuple[Room, Room]], slack: Room) -> None:
    numbered = {n: Change(old, add(new, negative(old))) for n, (old, new) in enumerate(changes)}
    used = add(NOTHING, *(old for old, _ in changes))
    after = add(NOTHING, *(new for _, new in changes))
    capacity = add(slack, (max(used[0], after[0]), max(used[1], after[1]), max(used[2], after[2])))
    found = row(used, capacity, numbered)
    assert sorted([*found.order, *found.split]) == sorted(numbered)
    assert works(used, capacity, numbered, found.order, found.split)
    for size in range(len(found.split)):
        for split in itertools.combinations(numbered, size):
            others = [n for n in numbered if n not in split]
            assert not any(works(used, capacity, numbered, order, split) for order in itertools.permutations(others))


def works(used: Room, capacity: Room, changes: dict[int, Change], order: Sequence[int], split: Iterable[int]) -> bool:
    used = add(used, *(negative(changes[n].before) for n in split))
    for number in order:
        if not fits(used, capacity, changes[number].growth):
            return False
        used = add(used, changes[number].growth)
    return True


def test_of_three_that_trade_ports_only_the_one_in_the_middle_is_stopped() -> None:
    """`a` and `c` each trade with `b`, not with each other."""

    def definition(**ports: tuple[int, ...]) -> Definition:
        host = schema.Host(region="r", address="10.0.0.1:7400", cores=1 << 20, memory=1 << 40, disk=0)
        processes = {
            name: schema.Process(
                binary=BLOBS[0], hosts=("h1",), listen={f"p{n}": f"0.0.0.0:{port}/tcp" for n, port in enumerate(of)}
            )
            for name, of in ports.items()
        }
        return Definition(name="shop", region={"r": schema.Region()}, host={"h1": host}, process=processes)

    before = definition(a=(1,), b=(2, 3), c=(4,))
    after = definition(a=(2,), b=(1, 4), c=(3,))
    plan = make_plan("minimal", version(before), version(after), observed_of(before, ["h1"]))
    assert [[f"{step.kind} {step.subject}" for step in stage] for stage in plan.stages] == [
        ["stop b"],
        ["replace a", "replace c"],
        ["start b"],
    ]
