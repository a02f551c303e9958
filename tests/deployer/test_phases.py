"""`canary` and `regions`: the calls of `minimal` in phases, which no stage crosses."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.api.processes import spec_digest
from deployer.applying.observe import HostState, Observed, assume
from deployer.language.schema import Definition, Host, Process, Region
from deployer.planning.plan import Hold, Kind, Plan, decode, encode
from deployer.planning.planners import make_plan, version
from deployer.planning.planners.canary import PROBATION_S
from deployer.resolving.specs import specs_of, volumes_of
from tests.deployer.worlds import BLOBS, World, definitions, observed_of

EXAMPLES = settings(max_examples=50)
ROOM = {"cores": 64_000, "memory": 1 << 40, "disk": 1 << 40}
REGION = {"a1": "a", "a2": "a", "b1": "b", "b2": "b", "c1": "c"}


def fleet(**processes: Process) -> Definition:
    """Five machines in three regions."""
    hosts = {
        name: Host(region=region, address=f"10.0.{n}.1:7400", **ROOM) for n, (name, region) in enumerate(REGION.items())
    }
    return Definition(name="shop", region={r: Region() for r in "abc"}, host=hosts, process=processes)


def spread(definition: Definition) -> Definition:
    """The same hosts, each in a region of its own or not, by its name."""
    hosts = {
        name: msgspec.structs.replace(host, region="a" if name == "h3" else "b")
        for name, host in definition.host.items()
    }
    return msgspec.structs.replace(definition, host=hosts, region={"a": Region(), "b": Region()})


def planned(
    planner: str, current: Definition | None, following: Definition, *, probation_s: float | None = None
) -> Plan:
    observed = assume(current) if current else Observed({host: HostState() for host in following.host})
    before = version(current) if current else None
    return make_plan(planner, before, version(following), observed, probation_s=probation_s)


def stages(plan: Plan) -> list[list[str]]:
    return [[f"{step.kind} {step.subject}@{step.host}" for step in stage] for stage in plan.stages]


@pytest.mark.parametrize("planner", ["canary", "regions"])
@EXAMPLES
@given(data=st.data(), loopback=st.booleans())
def test_a_plan_in_phases_leads_a_strict_world_from_any_state_to_the_definition(
    planner: str, data: st.DataObject, loopback: bool
) -> None:
    current, following, real = (spread(data.draw(definitions(loopback=loopback))) for _ in range(3))
    hosts = {*current.host, *following.host}
    observed = observed_of(real if data.draw(st.booleans()) else current, hosts)
    plan = make_plan(planner, version(current), version(following), observed)
    world = World(msgspec.structs.replace(following, host=current.host | following.host), observed)
    world.carry_out(plan)
    wanted = specs_of(following)
    assert world.specs() == {host: wanted.get(host, {}) for host in hosts}
    for host, volumes in volumes_of(following).items():
        assert all(world.volumes()[host][volume] >= size for volume, size in volumes.items())
    minimal = make_plan("minimal", version(current), version(following), observed)
    assert sorted(map(repr, plan.steps())) == sorted(map(repr, minimal.steps()))
    if planner == "regions":
        region = {name: host.region for name, host in {**current.host, **following.host}.items()}
        assert all(len({region[host] for host in touched}) == 1 for touched in world.touched)
    elif plan.holds and not loopback:  # hosts of one machine may have to go together
        assert len(set().union(*world.touched[: plan.holds[0].after])) == 1


def test_a_canary_is_one_host_then_its_region_then_the_rest_with_probation_between() -> None:
    before = fleet(web=Process(binary=BLOBS[0], hosts=tuple(REGION)))
    after = fleet(web=Process(binary=BLOBS[1], hosts=tuple(REGION)))
    plan = planned("canary", before, after)
    assert stages(plan) == [
        ["replace web@a1"],
        ["replace web@a2"],
        ["replace web@b1", "replace web@b2", "replace web@c1"],
    ]
    assert plan.holds == (Hold(1, PROBATION_S), Hold(2, PROBATION_S))
    assert decode(encode(plan)) == plan


def test_the_canary_is_the_host_that_meets_most_of_what_changes() -> None:
    before = fleet(web=Process(binary=BLOBS[0], hosts=tuple(REGION)), kv=Process(binary=BLOBS[0], hosts=("b2",)))
    after = fleet(web=Process(binary=BLOBS[1], hosts=tuple(REGION)), kv=Process(binary=BLOBS[1], hosts=("b2",)))
    assert stages(planned("canary", before, after)) == [
        ["replace kv@b2", "replace web@b2"],
        ["replace web@b1"],
        ["replace web@a1", "replace web@a2", "replace web@c1"],
    ]


def test_regions_come_one_after_the_other() -> None:
    before = fleet(web=Process(binary=BLOBS[0], hosts=tuple(REGION)))
    after = fleet(web=Process(binary=BLOBS[1], hosts=tuple(REGION)))
    assert stages(planned("regions", before, after)) == [
        ["replace web@a1", "replace web@a2"],
        ["replace web@b1", "replace web@b2"],
        ["replace web@c1"],
    ]


@pytest.mark.parametrize("planner", ["canary", "regions"])
def test_a_process_that_moves_ends_where_it_was_only_when_it_runs_where_it_goes(planner: str) -> None:
    before = fleet(web=Process(binary=BLOBS[0], hosts=("a1", "b1")))
    after = fleet(web=Process(binary=BLOBS[0], hosts=("b1", "c1")))
    assert stages(planned(planner, before, after)) == [["start web@c1"], ["stop web@a1"]]


def test_who_begins_to_listen_comes_before_a_canary_that_connects_to_it() -> None:
    """The new key-value server is in another region than the canary, which could not become ready without it."""
    web = Process(binary=BLOBS[0], hosts=("a1", "a2"), args=("1",))
    kv = Process(binary=BLOBS[0], hosts=("b1",), listen={"kv": "host:6379/tcp"})
    after = fleet(
        web=msgspec.structs.replace(web, args=("2",), connect={"kv": "kv@b1:6379/tcp"}),
        kv=kv,
        z=Process(binary=BLOBS[0], hosts=("a1",)),
    )
    assert stages(planned("canary", fleet(web=web), after)) == [
        ["start z@a1", "start kv@b1"],
        ["replace web@a1"],
        ["replace web@a2"],
    ]
    swapped = fleet(web=after.process["web"], kv=msgspec.structs.replace(kv, binary=BLOBS[1]))
    twice = msgspec.structs.replace(swapped.process["web"], args=("3",))
    assert stages(
        planned("canary", fleet(web=after.process["web"], kv=kv), fleet(web=twice, kv=swapped.process["kv"]))
    )[0] == ["replace web@a1"], "what listened before and still does need not come first"


def test_a_probation_takes_as_long_as_the_person_who_plans_says() -> None:
    before, after = (fleet(web=Process(binary=blob, hosts=tuple(REGION))) for blob in BLOBS[:2])
    assert [hold.hold_s for hold in planned("canary", before, after, probation_s=7.5).holds] == [7.5, 7.5]
    assert planned("minimal", before, after, probation_s=7.5).holds == ()


def test_probations_stand_between_stages_and_nowhere_else() -> None:
    before, after = (fleet(web=Process(binary=blob, hosts=tuple(REGION))) for blob in BLOBS[:2])
    plan = planned("canary", before, after)
    for holds in ((Hold(2, 1.0), Hold(1, 1.0)), (Hold(4, 1.0),), (Hold(1, 1.0), Hold(1, 2.0))):
        with pytest.raises(ValueError, match="probations"):
            msgspec.structs.replace(plan, holds=holds)


def test_a_step_carries_what_it_replaces() -> None:
    before, after = (fleet(web=Process(binary=blob, hosts=("a1",))) for blob in BLOBS[:2])
    step = next(planned("minimal", before, after).steps())
    assert step.kind is Kind.REPLACE
    assert step.was == specs_of(before)["a1"]["web"]
    assert spec_digest(step.was) == step.expect
