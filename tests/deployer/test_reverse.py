"""The way back: a plan followed by its reverse leaves a strict world as it was."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas.digest import digest_of
from deployer.applying.observe import HostState
from deployer.errors import NotReversible
from deployer.language.schema import Host
from deployer.planning.plan import Kind, advance, decode, encode
from deployer.planning.planners import BUILT_IN, make_plan, version
from deployer.planning.reverse import reverse
from tests.deployer.worlds import World, definitions, observed_of

RELEASE = digest_of(b"the release that the plan has made")


def as_large_as_what_runs(host: Host, state: HostState) -> Host:
    """A host that runs something has the room for it, whatever the next definition says it is."""
    specs = [runs.spec for runs in state.processes.values()]
    cores, memory = (sum(spec.cores_milli for spec in specs), sum(spec.memory_bytes for spec in specs))
    return msgspec.structs.replace(host, cores=max(host.cores, cores), memory=max(host.memory, memory))


@pytest.mark.parametrize("planner", BUILT_IN)
@settings(max_examples=40)
@given(data=st.data(), loopback=st.booleans())
def test_a_plan_followed_by_its_reverse_is_the_identity(planner: str, data: st.DataObject, loopback: bool) -> None:
    """Each call of the way back, too, is one that a strict host accepts whichever others of its stage came first."""
    current, following, real = (data.draw(definitions(loopback=loopback)) for _ in range(3))
    hosts = {*current.host, *following.host}
    observed = observed_of(real if data.draw(st.booleans()) else current, hosts)
    plan = decode(encode(make_plan(planner, version(current), version(following), observed)))
    room = {name: as_large_as_what_runs(host, observed.hosts[name]) for name, host in following.host.items()}
    world = World(msgspec.structs.replace(following, host=room), observed)
    before = {host: dict(processes) for host, processes in world.specs().items()}
    world.carry_out(plan)
    back = reverse(plan, definition=version(current).digest, from_release=RELEASE)
    world.carry_out(back)
    assert world.specs() == before
    assert advance(back.expect, back.steps()) == plan.expect
    assert (back.definition, back.from_definition) == (plan.from_definition, plan.definition)
    there_again = reverse(back, definition=plan.definition, from_release=RELEASE)
    changing = [tuple(step for step in stage if step.kind is not Kind.CREATE_VOLUME) for stage in plan.stages]
    assert there_again.stages == tuple(stage for stage in changing if stage)


def test_a_plan_of_an_older_lowcloud_has_no_reverse_and_says_so() -> None:
    from tests.deployer.test_records import PLAN

    with pytest.raises(NotReversible, match="web@fra1"):
        reverse(PLAN, definition=digest_of(b"before"), from_release=RELEASE)
