"""What a plan makes of a changed field of the definition: each is named, and the weakest call that does it is made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from agent.api.processes import ProcessSpec
from deployer.applying.observe import assume
from deployer.language.fields import Shape, fields_of
from deployer.language.schema import Change, Definition, Process, Table, Update, Volume
from deployer.planning.plan import Kind, Plan, Step
from deployer.planning.planners import BUILT_IN, make_plan, version
from deployer.planning.planners.needs import definition_field
from deployer.planning.reverse import reverse
from deployer.resolving.specs import specs_of, volumes_of
from tests.deployer.worlds import BASE, BLOBS, MiB

# --- each field of the schema ---------------------------------------------------------------------------------------

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
    """The places of all fields of a table and of the tables in it."""
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
    """The only one of a plan that has no other."""
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
