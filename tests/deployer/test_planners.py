"""Planners: from any state to any definition, by calls that a strict host accepts in any order within a stage."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.api.processes import ProcessSpec, spec_digest
from cas.digest import digest_of
from deployer.applying.observe import HostState, Observed, assume, running
from deployer.errors import PlannerBroken, PlannerMissing
from deployer.language.schema import Definition, Host, Process, Region
from deployer.planning.plan import Kind, Plan, decode, encode
from deployer.planning.planners import Version, find, make_plan, names, version
from deployer.resolving.specs import specs_of, volumes_of
from tests.deployer.worlds import BASE, BLOBS, MiB, World, definitions, observed_of

PLANNERS = ["minimal", "rolling"]
EXAMPLES = settings(max_examples=80)


@pytest.mark.parametrize("planner", PLANNERS)
@EXAMPLES
@given(data=st.data(), loopback=st.booleans())
def test_a_plan_leads_a_strict_world_from_any_state_to_the_definition(
    planner: str, data: st.DataObject, loopback: bool
) -> None:
    """Whatever ran before, whether or not it is what the history says."""
    current, following, real = (data.draw(definitions(loopback=loopback)) for _ in range(3))
    hosts = {*current.host, *following.host}
    observed = observed_of(real if data.draw(st.booleans()) else current, hosts)
    plan = make_plan(planner, version(current), version(following), observed)
    world = World(msgspec.structs.replace(following, host=current.host | following.host), observed)
    world.carry_out(plan)
    wanted = specs_of(following)
    assert world.specs() == {host: wanted.get(host, {}) for host in hosts}
    for host, volumes in volumes_of(following).items():
        assert all(world.volumes()[host][volume] >= size for volume, size in volumes.items())
    if planner == "rolling":
        assert all(len(touched) == 1 for touched in world.touched)


@pytest.mark.parametrize("planner", PLANNERS)
@EXAMPLES
@given(definition=definitions())
def test_nothing_is_planned_where_everything_is_as_it_should_be(planner: str, definition: Definition) -> None:
    plan = make_plan(planner, version(definition), version(definition), assume(definition))
    assert plan.is_empty
    assert plan.changes == ()


@EXAMPLES
@given(data=st.data(), loopback=st.booleans())
def test_minimal_never_calls_a_process_that_need_not_change(data: st.DataObject, loopback: bool) -> None:
    current, following = (data.draw(definitions(loopback=loopback)) for _ in range(2))
    observed = observed_of(current, {*current.host, *following.host})
    plan = make_plan("minimal", version(current), version(following), observed)
    before, after = specs_of(current), specs_of(following)
    for step in plan.steps():
        if step.kind is not Kind.CREATE_VOLUME:
            old = before.get(step.host, {}).get(step.subject)
            new = after.get(step.host, {}).get(step.subject)
            assert old != new
    called = [(step.host, step.subject) for step in plan.steps() if step.kind is not Kind.CREATE_VOLUME]
    twice = {call for call in called if called.count(call) > 1}
    for host, subject in twice:
        steps = [step for step in plan.steps() if (step.host, step.subject) == (host, subject)]
        kinds = [step.kind for step in steps if step.kind is not Kind.CREATE_VOLUME]
        assert kinds == [Kind.STOP, Kind.START]


@EXAMPLES
@given(data=st.data())
def test_a_plan_is_the_same_blob_every_time_and_reads_back_as_itself(data: st.DataObject) -> None:
    current, following = (data.draw(definitions(loopback=False)) for _ in range(2))
    observed = observed_of(current, {*current.host, *following.host})
    plan = make_plan("minimal", version(current), version(following), observed)
    assert encode(plan) == encode(make_plan("minimal", version(current), version(following), observed))
    assert decode(encode(plan)) == plan


@EXAMPLES
@given(data=st.data(), loopback=st.booleans())
def test_every_call_names_its_cause_and_without_drift_the_cause_is_a_changed_field(
    data: st.DataObject, loopback: bool
) -> None:
    current, following = (data.draw(definitions(loopback=loopback)) for _ in range(2))
    observed = observed_of(current, {*current.host, *following.host})
    plan = make_plan("minimal", version(current), version(following), observed)
    changed = {change.path for change in plan.changes}
    for step in plan.steps():
        assert step.causes
        for cause in step.causes:
            assert not cause.drift
            assert cause.path in changed


# --- order ----------------------------------------------------------------------------------------------------------


def test_the_first_plan_makes_volumes_then_listeners_then_who_connects() -> None:
    hosts = Observed({host: HostState() for host in BASE.host})
    plan = make_plan("minimal", None, version(BASE), hosts)
    assert [[(step.kind, step.subject) for step in stage] for stage in plan.stages] == [
        [(Kind.CREATE_VOLUME, "kv-data")],
        [(Kind.START, "kv")],
        [(Kind.START, "web")],
    ]
    assert all(step.causes for step in plan.steps())


def test_who_connects_ends_before_who_listens() -> None:
    following = msgspec.structs.replace(BASE, process={}, volume={})
    plan = make_plan("minimal", version(BASE), version(following), assume(BASE))
    assert [[step.subject for step in stage] for stage in plan.stages] == [["web"], ["kv"]]


def test_two_processes_that_trade_ports_are_not_both_replaced() -> None:
    def definition(one: int, two: int) -> Definition:
        listeners = {"a": f"0.0.0.0:{one}/tcp", "b": f"0.0.0.0:{two}/tcp"}
        processes = {
            name: Process(binary=BLOBS[0], hosts=("h1",), listen={"main": text}) for name, text in listeners.items()
        }
        return msgspec.structs.replace(BASE, process=processes, volume={})

    before, after = definition(1, 2), definition(2, 1)
    plan = make_plan("minimal", version(before), version(after), assume(before))
    assert [[(step.kind, step.subject) for step in stage] for stage in plan.stages] == [
        [(Kind.STOP, "a")],
        [(Kind.REPLACE, "b")],
        [(Kind.START, "a")],
    ]


def test_a_host_that_is_full_frees_before_it_takes() -> None:
    small = {"h1": Host(region="fra", address="10.0.0.1:7400", cores=1000, memory=1 << 30, disk=1 << 30)}

    def definition(name: str) -> Definition:
        return Definition(
            name="shop",
            region={"fra": Region()},
            host=small,
            process={name: Process(binary=BLOBS[0], hosts=("h1",), cores=1000)},
        )

    plan = make_plan("minimal", version(definition("a")), version(definition("b")), assume(definition("a")))
    assert [step.kind for step in plan.steps()] == [Kind.STOP, Kind.START]


def test_a_process_that_takes_one_thing_and_frees_another_is_only_stopped_where_nothing_else_works() -> None:
    def definition(memory: int, cores: int, **sizes: tuple[int, int]) -> Definition:
        return Definition(
            name="shop",
            region={"fra": Region()},
            host={"h1": Host(region="fra", address="10.0.0.1:7400", cores=cores, memory=memory * MiB, disk=0)},
            process={
                name: Process(binary=BLOBS[0], hosts=("h1",), memory=size * MiB, cores=milli)
                for name, (size, milli) in sizes.items()
            },
        )

    def kinds(before: Definition, after: Definition) -> list[list[str]]:
        plan = make_plan("minimal", version(before), version(after), assume(before))
        return [[f"{step.kind} {step.subject}" for step in stage] for stage in plan.stages]

    roomy = definition(4, 2000, a=(1, 1000), b=(2, 500))
    assert kinds(roomy, definition(2, 1000, a=(2, 500))) == [["stop b"], ["resize a"]]
    tight = definition(3, 1500, a=(1, 1000), b=(2, 500))
    assert kinds(tight, definition(3, 1500, a=(2, 500), b=(1, 1000))) == [["stop a"], ["replace b"], ["start a"]]


# --- what is observed counts ----------------------------------------------------------------------------------------


def test_a_process_that_drifted_is_planned_back_and_the_field_is_named() -> None:
    specs = specs_of(BASE)
    other = msgspec.structs.replace(specs["h1"]["web"], args=("--by-hand",))
    stranger = ProcessSpec(name="stranger", binary=BLOBS[0])
    observed = Observed(
        {
            "h1": HostState({"web": running(other), "stranger": running(stranger)}, {"kv-data": MiB}),
            "h2": HostState(),
        }
    )
    plan = make_plan("minimal", version(BASE), version(BASE), observed)
    steps = {step.subject: step for step in plan.steps()}
    assert {subject: step.kind for subject, step in steps.items()} == {
        "web": Kind.REPLACE,
        "stranger": Kind.STOP,
        "kv": Kind.START,
    }
    assert all(cause.drift for step in steps.values() for cause in step.causes)
    assert steps["web"].causes[0].path == ("process", "web", "args")


def test_a_host_that_has_it_already_is_not_called() -> None:
    following = msgspec.structs.replace(
        BASE, process={**BASE.process, "web": msgspec.structs.replace(BASE.process["web"], args=())}
    )
    plan = make_plan("minimal", version(BASE), version(following), assume(following))
    assert plan.is_empty
    assert [change.path for change in plan.changes] == [("process", "web", "args")]


def test_a_host_that_does_not_answer_is_left_alone_and_named() -> None:
    observed = Observed({"h1": HostState()}, {"h2": "no route"})
    plan = make_plan("minimal", None, version(BASE), observed)
    assert plan.unreachable == ("h2",)
    assert plan.hosts() == ("h1",)
    assert "h2 does not answer and is left alone" in plan.notes


def test_processes_of_a_host_that_is_no_longer_defined_are_stopped() -> None:
    before = msgspec.structs.replace(BASE, process={**BASE.process, "extra": Process(binary=BLOBS[0], hosts=("h2",))})
    following = msgspec.structs.replace(BASE, host={"h1": BASE.host["h1"]})
    plan = make_plan("minimal", version(before), version(following), assume(before))
    assert [(step.kind, step.subject, step.host) for step in plan.steps()] == [(Kind.STOP, "extra", "h2")]


# --- finding planners, and not believing them -----------------------------------------------------------------------


def test_planners_are_found_by_name() -> None:
    assert set(PLANNERS) <= set(names())
    assert find("minimal")(None, BASE, Observed()).planner == "minimal"


def test_an_unknown_planner_is_told_with_those_there_are() -> None:
    with pytest.raises(PlannerMissing) as caught:
        find("magic")
    assert "minimal" in caught.value.hint


@pytest.mark.parametrize("broken", ["empty", "elsewhere", "unexpected", "other state"])
def test_a_planner_that_does_not_lead_to_the_definition_is_not_believed(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planner(current: Definition | None, following: Definition, observed: Observed) -> Plan:
        plan = find_minimal(current, following, observed)
        step = next(plan.steps())
        match broken:
            case "empty":
                return msgspec.structs.replace(plan, stages=())
            case "elsewhere":
                there = msgspec.structs.replace(step, host="h9")
                return msgspec.structs.replace(plan, stages=(*plan.stages, (there,)))
            case "unexpected":
                return msgspec.structs.replace(plan, stages=(*plan.stages, *plan.stages))
        return msgspec.structs.replace(plan, expect={})

    find_minimal = find("minimal")
    monkeypatch.setattr("deployer.planning.planners.find", lambda _: planner)
    first = msgspec.structs.replace(BASE, process={"a": Process(binary=BLOBS[0], hosts=("h1",))}, volume={})
    with pytest.raises(PlannerBroken):
        make_plan("broken", None, version(first), Observed({host: HostState() for host in first.host}))


def test_a_plan_names_the_bytes_of_the_definition_that_it_was_given() -> None:
    old_bytes = digest_of(b"the same definition, as an older program wrote it")
    plan = make_plan("minimal", version(BASE), Version(old_bytes, BASE), assume(BASE))
    assert plan.definition == old_bytes
    assert plan.from_definition == version(BASE).digest


def test_a_large_fleet_is_planned_in_linear_time() -> None:
    """10 processes on each of 300 hosts, all of them replaced: seconds would mean that something is quadratic."""
    hosts = {
        f"h{n}": Host(region="fra", address=f"10.0.{n // 250}.{n % 250 + 1}:7400", cores=64000, memory=1 << 40, disk=0)
        for n in range(300)
    }

    def definition(blob: str) -> Definition:
        processes = {
            f"p{n}": Process(
                binary=blob,
                hosts=tuple(sorted(hosts)),
                listen={"main": f"0.0.0.0:{8000 + n}/tcp"},
                connect={"next": f"p{n - 1}@h0:{8000 + n - 1}/tcp"} if n else {},
            )
            for n in range(10)
        }
        return Definition(name="shop", region={"fra": Region()}, host=hosts, process=processes)

    before, after = definition(BLOBS[0]), definition(BLOBS[1])
    plan = make_plan("minimal", version(before), version(after), assume(before))
    assert len(list(plan.steps())) == 3000
    assert {spec_digest(step.spec) for step in plan.steps() if step.spec} == {
        runs for of_host in assume(after).state().values() for runs in of_host.values()
    }
    assert set(plan.hosts()) == set(hosts)
