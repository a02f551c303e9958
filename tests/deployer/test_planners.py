"""Planners: from any state to any definition, by calls that a strict host accepts in any order within a stage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.api.processes import ProcessSpec, spec_digest
from cas.digest import digest_of
from deployer.applying.observe import HostState, Observed, assume, running
from deployer.errors import PlannerBroken, PlannerMissing
from deployer.language.fields import Shape, fields_of
from deployer.language.schema import Change, Definition, Host, Process, Ready, Region, Secret, Table, Update, Volume
from deployer.planning.plan import Kind, Plan, Step, decode, encode
from deployer.planning.planners import BUILT_IN, Version, find, make_plan, names, version
from deployer.planning.planners.needs import definition_field
from deployer.planning.reverse import reverse
from deployer.resolving.specs import specs_of, volumes_of
from tests.deployer.worlds import BLOBS, MiB, World, definitions, observed_of

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


# --- each field of the schema ---------------------------------------------------------------------------------------

BASE = Definition(
    name="shop",
    region={"fra": Region(), "ams": Region()},
    host={
        "h1": Host(region="fra", address="10.0.0.1:7400", cores=8000, memory=1 << 30, disk=1 << 30),
        "h2": Host(region="fra", address="10.0.0.2:7400", cores=8000, memory=1 << 30, disk=1 << 30),
    },
    process={
        "web": Process(
            binary=BLOBS[0],
            hosts=("h1",),
            args=("--port",),
            env={"LOG": "info"},
            config={"/etc/web": BLOBS[1]},
            listen={"http": "host:8080/tcp"},
            connect={"kv": "kv@h1:6379/tcp"},
            ready=Ready(tcp="http", path="/"),
            secret={"/run/secrets/db": "db"},
        ),
        "kv": Process(binary=BLOBS[0], hosts=("h1",), volume={"/data": "kv-data"}, listen={"kv": "0.0.0.0:6379/tcp"}),
    },
    volume={"kv-data": Volume(size=MiB), "other": Volume(size=MiB)},
    secret={name: Secret(sealed={"h1": BLOBS[1], "h2": BLOBS[1]}) for name in ("db", "other")},
)

OTHER_VALUES: dict[str, Any] = {
    "name": "market",
    "region": "ams",
    "address": "10.0.0.9:7400",
    "title": "Frankfurt",
    "binary": BLOBS[2],
    "hosts": ("h1", "h2"),
    "args": ("--other",),
    "env": {"LOG": "debug"},
    "restart": "never",
    "config": {"/etc/web": BLOBS[2]},
    "volume": {"/data": "other"},
    "connect": {},
    "ready": None,
    "tcp": "more",
    "path": "/healthz",
    "run": ("--check",),
    "order": "stop-first",
    "on_failure": "pause",
    "secret": {"/run/secrets/db": "other"},
    "sealed": {"h1": BLOBS[2], "h2": BLOBS[1]},
    "gpu": "webgpu",
    "require": ("disk",),
}
"""Another value for every field that is not a number; a number gets one more of its unit."""


def other_value(name: str, now: Any) -> Any:
    if now == "restart":
        return "reload"
    if name == "listen":
        return {**now, "more": "0.0.0.0:8081/tcp"}
    return OTHER_VALUES[name] if name in OTHER_VALUES else now + 1000


def changed_once(value: Table, path: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """Every field of a table and of the tables in it: its place in the schema, its path, and the table with only this
    field changed."""
    for name, field in fields_of(type(value)).items():
        now = getattr(value, name)
        if field.shape is Shape.TABLES:
            for key, item in now.items():
                for place, inner, other in changed_once(item, (*path, name, key)):
                    yield place, inner, msgspec.structs.replace(value, **{name: now | {key: other}})
            continue
        if field.shape is Shape.TABLE and now is not None:
            for place, inner, other in changed_once(now, (*path, name)):
                yield place, inner, msgspec.structs.replace(value, **{name: other})
            if name not in OTHER_VALUES:
                continue
        other = other_value(name, now)
        if other != now:
            yield f"{type(value).__name__}.{name}", (*path, name), msgspec.structs.replace(value, **{name: other})


def all_fields(table: type[Table]) -> Iterator[str]:
    for name, field in fields_of(table).items():
        if field.shape in (Shape.TABLE, Shape.TABLES):
            yield from all_fields(field.table)
        if field.shape is not Shape.TABLES and not (field.shape is Shape.TABLE and name not in OTHER_VALUES):
            yield f"{table.__name__}.{name}"


CHANGED = list(changed_once(BASE))


def test_every_field_of_the_schema_is_changed_below() -> None:
    assert {place for place, _, _ in CHANGED} == set(all_fields(Definition))


@pytest.mark.parametrize(
    ("path", "following"), [(path, other) for _, path, other in CHANGED], ids=lambda v: str(v)[:60]
)
@pytest.mark.parametrize("planner", BUILT_IN)
def test_a_field_that_is_changed_is_named_by_the_plan(
    planner: str, path: tuple[str, ...], following: Definition
) -> None:
    plan = make_plan(planner, version(BASE), version(following), assume(BASE))
    named = [change for change in plan.changes if change.path[: len(path)] == path]
    assert named
    assert len(named) == len(plan.changes)
    before, after = specs_of(BASE), specs_of(following)
    if before == after and volumes_of(BASE) == volumes_of(following):
        assert plan.is_empty
    else:
        assert any(cause.path[: len(path)] == path for step in plan.steps() for cause in step.causes)
        assert not any(cause.drift for step in plan.steps() for cause in step.causes)
    if all(change.change is Change.NONE for change in named):
        assert plan.is_empty


def test_every_field_of_a_specification_comes_from_a_field_of_the_definition() -> None:
    for info in msgspec.structs.fields(ProcessSpec):
        if info.name != "name":
            assert definition_field(info.name) in fields_of(Process)


# --- which call -----------------------------------------------------------------------------------------------------


def plan_of(process: str, **changes: Any) -> Plan:
    """The plan for a change of one process of the base."""
    changed = msgspec.structs.replace(BASE.process[process], **changes)
    following = msgspec.structs.replace(BASE, process={**BASE.process, process: changed})
    return make_plan("minimal", version(BASE), version(following), assume(BASE))


def the_step(plan: Plan) -> Step:
    steps = list(plan.steps())
    assert len(steps) == 1
    return steps[0]


def test_fields_that_are_hot_need_no_new_guest() -> None:
    step = the_step(plan_of("web", cores=2000, restart="never", update=Update(drain=1)))
    assert (step.kind, step.change) == (Kind.RESIZE, Change.HOT)
    assert {cause.path[2] for cause in step.causes} == {"cores", "restart", "update"}


def test_configuration_files_alone_are_configured() -> None:
    step = the_step(plan_of("web", config={"/etc/web": BLOBS[2]}))
    assert (step.kind, step.change) == (Kind.CONFIGURE, Change.RESTART)
    assert [cause.path for cause in step.causes] == [("process", "web", "config", "/etc/web")]


def test_a_configuration_file_and_a_hot_field_are_one_call() -> None:
    step = the_step(plan_of("web", config={}, cores=2000))
    assert (step.kind, step.change) == (Kind.REPLACE, Change.RESTART)


def test_the_strongest_change_names_the_step() -> None:
    step = the_step(plan_of("web", binary=BLOBS[2], cores=2000, args=()))
    assert (step.kind, step.change) == (Kind.REPLACE, Change.REPLACE)


def test_every_hot_field_is_one_that_resize_can_change() -> None:
    hot = {name for name, field in fields_of(Process).items() if field.change is Change.HOT}
    assert hot == {"cores", "memory", "restart", "restart_limit", "ready", "update"}


def test_another_host_is_a_start_there_and_then_a_stop_here() -> None:
    plan = plan_of("web", hosts=("h2",), connect={})
    assert [[(step.kind, step.host) for step in stage] for stage in plan.stages] == [
        [(Kind.START, "h2")],
        [(Kind.STOP, "h1")],
    ]
    assert {step.change for step in plan.steps()} == {Change.MOVE}


def test_a_volume_that_moves_is_told_to_begin_empty() -> None:
    before = msgspec.structs.replace(BASE, process={"kv": BASE.process["kv"]})
    after = msgspec.structs.replace(BASE, process={"kv": msgspec.structs.replace(BASE.process["kv"], hosts=("h2",))})
    plan = make_plan("minimal", version(before), version(after), assume(before))
    assert any("begins empty on h2; its data stays on h1" in note for note in plan.notes)
    assert any("no longer used" in note for note in plan.notes)


def test_a_volume_that_should_shrink_keeps_its_size_and_the_plan_says_so() -> None:
    following = msgspec.structs.replace(BASE, volume={**BASE.volume, "kv-data": Volume(size=MiB // 2)})
    plan = make_plan("minimal", version(BASE), version(following), assume(BASE))
    assert plan.is_empty
    assert [change.path for change in plan.changes] == [("volume", "kv-data", "size")]
    assert any("never shrinks" in note for note in plan.notes)


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


@pytest.mark.parametrize(
    ("memory", "kind", "change"), [(65 * MiB, Kind.RESIZE, Change.HOT), (63 * MiB, Kind.REPLACE, Change.RESTART)]
)
def test_more_memory_is_given_in_place_and_less_from_the_next_start(memory: int, kind: Kind, change: Change) -> None:
    plan = plan_of("web", memory=memory)
    step = the_step(plan)
    assert (step.kind, step.change) == (kind, change)
    assert [one.change for one in plan.changes] == [change]
    back = reverse(plan, definition=BLOBS[0], from_release=None)
    assert (the_step(back).spec, back.changes[0].change) == (step.was, the_step(back).change)
    assert {(one.kind, one.change) for one in (step, the_step(back))} == {
        (Kind.RESIZE, Change.HOT),
        (Kind.REPLACE, Change.RESTART),
    }


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
