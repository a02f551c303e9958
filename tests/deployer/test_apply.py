"""Applying on real hosts: what is planned happens, what fails goes back, and what is told is what the hosts report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Literal

import msgspec
import pytest

from agent.api.calls import Envelope, Replace
from agent.client.client import AgentClient
from cas.digest import digest_of
from deployer.applying.drift import drift
from deployer.applying.observe import assume
from deployer.applying.outcome import Applied, HostEnd, Outcome
from deployer.applying.progress import Phase, Quiet
from deployer.applying.site import Site
from deployer.applying.transfer import estimate
from deployer.errors import ApplyRaced, HostsUnreachable, PlanAltered, StagingFailed, TransferFailed, WorldMoved
from deployer.history import release as releases
from deployer.language.schema import Definition, Update
from deployer.planning.plan import Plan, Step, blobs_by_host, decode, encode
from deployer.planning.planners import make_plan, version
from deployer.planning.rollback import plan_rollback, rollback, target
from deployer.resolving.canonical import version_of
from tests.deployer.ground import Ground, replaced


def planned(plan: Plan) -> list[str]:
    return sorted(f"{step.kind} {step.subject}@{step.host}" for step in plan.steps())


def called(applied: Applied) -> list[str]:
    return sorted(f"{call.kind} {call.subject}@{call.host}" for call in applied.calls)


class Watching(Quiet):
    """Remembers bytes, and does something when a step has come to a state."""

    def __init__(self, state: str = "done", act: Callable[[Step], None] = lambda _: None) -> None:
        self._state = state
        self._act = act
        self.sent: dict[str, tuple[int, int]] = {}
        self.phases: list[tuple[Phase, int]] = []

    def phase(self, phase: Phase, hosts: int) -> None:
        self.phases.append((phase, hosts))

    def transfer(self, host: str, done_bytes: int, total_bytes: int) -> None:
        self.sent[host] = (done_bytes, total_bytes)

    def step(self, step: Step, state: Literal["begins", "done", "failed"], detail: str = "") -> None:
        if state == self._state and not detail:
            self._act(step)


def test_a_definition_is_applied_and_then_there_is_nothing_left_to_do(
    ground: Ground, port: int, other_port: int
) -> None:
    definition = ground.definition(web=ground.web(port), kv=ground.kv(other_port))
    applied = asyncio.run(ground.apply(definition, message="the first"))
    assert applied.outcome is Outcome.APPLIED
    assert applied.exit_code == 0
    assert set(applied.hosts.values()) == {HostEnd.NEW}
    assert "hello" in ground.get("h1", port)
    assert "hello" in ground.get("h2", port)
    newest = releases.head(ground.store, ground.ref)
    assert newest is not None
    assert newest.digest == applied.release
    assert newest.release.definition == version_of(definition)
    assert (newest.release.by, newest.release.message) == ("operator:ada", "the first")
    assert decode(ground.store.read(newest.release.plan)).definition == version_of(definition)
    again = asyncio.run(ground.apply(definition))
    assert again.outcome is Outcome.UNCHANGED
    assert again.calls == ()
    assert ground.store.read_ref(ground.ref) == applied.release
    assert drift(definition, asyncio.run(ground.observed())) == []


def test_a_new_binary_travels_as_a_delta_and_takes_over(ground: Ground, port: int) -> None:
    definition = ground.definition(web=ground.web(port))
    asyncio.run(ground.apply(definition))
    following = replaced(definition, "web", binary=ground.guest("web-2"))
    plan = asyncio.run(ground.plan(following))
    assert planned(plan) == ["replace web@h1", "replace web@h2"]
    watching = Watching()

    async def estimated_and_applied() -> tuple[dict[str, int], Applied]:
        expected = await ground.on_site(lambda site: estimate(site, blobs_by_host(plan)))
        return expected, await ground.carry_out(plan, watching)

    expected, applied = asyncio.run(estimated_and_applied())
    whole = ground.store.stat(following.process["web"].binary).size
    assert applied.outcome is Outcome.APPLIED
    if sum(expected.values()):  # another test may have brought it before
        assert applied.bytes_sent == sum(expected.values())
        assert applied.bytes_sent < whole
        assert watching.sent == {host: (size, size) for host, size in expected.items()}
    assert {"spawn", "ready", "flip"} <= set(applied.calls[0].steps)
    assert "2.0" in ground.get("h1", port, "/version") + ground.get("h1", port)


def test_a_configuration_changes_exactly_the_process_that_has_it(ground: Ground, port: int, other_port: int) -> None:
    definition = ground.definition(web=ground.web(port), kv=ground.kv(other_port))
    asyncio.run(ground.apply(definition))
    before = asyncio.run(ground.observed()).statuses
    greeting = ground.web(port, greeting="good morning").config
    applied = asyncio.run(ground.apply(replaced(definition, "web", config=greeting)))
    assert called(applied) == ["configure web@h1", "configure web@h2"]
    assert "good morning" in ground.get("h2", port)
    after = asyncio.run(ground.observed()).statuses
    pids = [{status.process: status.pid for status in told["h1"]} for told in (before, after)]
    assert pids[0]["kv"] == pids[1]["kv"]
    assert pids[0]["web"] != pids[1]["web"]


def test_a_hot_field_keeps_the_guest(ground: Ground, port: int) -> None:
    definition = ground.definition(web=ground.web(port, hosts=("h1",)))
    asyncio.run(ground.apply(definition))
    before = asyncio.run(ground.observed()).statuses["h1"][0].pid
    applied = asyncio.run(ground.apply(replaced(definition, "web", restart="on-failure")))
    assert called(applied) == ["resize web@h1"]
    assert asyncio.run(ground.observed()).statuses["h1"][0].pid == before


def test_a_process_moves_to_another_host_and_its_volume_stays(ground: Ground, port: int) -> None:
    definition = ground.definition(kv=ground.kv(port))
    asyncio.run(ground.apply(definition))
    applied = asyncio.run(ground.apply(replaced(definition, "kv", hosts=("h2",))))
    assert applied.outcome is Outcome.APPLIED
    assert {"start kv@h2", "stop kv@h1"} <= set(called(applied))
    observed = asyncio.run(ground.observed())
    assert "kv-data" in observed.hosts["h1"].volumes
    assert set(observed.hosts["h2"].processes) == {"kv"}


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_a_host_that_fails_brings_back_those_that_had_moved(ground: Ground, port: int, other_port: int) -> None:
    """One host at a time: h1 has the new version when h2 cannot start it."""
    definition = ground.definition(web=ground.web(port))
    first = asyncio.run(ground.apply(definition))
    taken = ground.definition(
        web=ground.web(port, greeting="new"), zzz=ground.broken_web(other_port, hosts=("h2",), restart="never")
    )
    applied = asyncio.run(ground.apply(taken, "rolling"))
    assert applied.outcome is Outcome.REVERTED
    assert applied.exit_code == 4
    assert applied.hosts == {"h1": HostEnd.OLD, "h2": HostEnd.OLD}
    assert [f"{call.kind} {call.subject}@{call.host}" for call in applied.failed] == ["start zzz@h2"]
    assert "nonsense" in applied.failed[0].output_tail + applied.failed[0].message
    assert "hello" in ground.get("h1", port)
    assert "hello" in ground.get("h2", port)
    assert drift(definition, asyncio.run(ground.observed())) == []
    newest, failed, oldest = releases.chain(ground.store, ground.store.read_ref(ground.ref))
    assert (newest.release.kind, newest.release.restores) == ("revert", first.release)
    assert newest.release.definition == version_of(definition) == oldest.release.definition
    assert newest.release.message.startswith("revert of ")
    assert failed.digest == applied.release
    assert applied.revert is not None
    assert applied.revert.outcome is Outcome.APPLIED


def test_a_first_apply_that_fails_leaves_nothing_behind(ground: Ground, port: int, other_port: int) -> None:
    asyncio.run(ground.apply(ground.definition()))
    clean = Ground(ground.cloud, ground.agents, ground.ref + "-2")
    applied = asyncio.run(clean.apply(clean.definition(a=clean.web(port), b=clean.broken_web(other_port)), "rolling"))
    assert applied.outcome is Outcome.REVERTED
    assert all(state.processes == {} for state in asyncio.run(clean.observed()).hosts.values())


def test_only_the_hosts_that_have_to_go_back_are_said_to_be_brought_back(
    ground: Ground, port: int, other_port: int
) -> None:
    asyncio.run(ground.apply(ground.definition()))
    following = ground.definition(
        web=ground.web(port, hosts=("h1",)), zzz=ground.broken_web(other_port, hosts=("h2",), restart="never")
    )
    plan = asyncio.run(ground.plan(following, "rolling"))
    watching = Watching()
    applied = asyncio.run(ground.carry_out(plan, watching))
    assert (applied.outcome, len(plan.hosts())) == (Outcome.REVERTED, 2)
    assert [hosts for phase, hosts in watching.phases if phase == "revert"] == [1]


def test_a_process_that_says_pause_leaves_everything_where_it_is(ground: Ground, port: int, other_port: int) -> None:
    definition = ground.definition(web=ground.web(port))
    asyncio.run(ground.apply(definition))
    pausing = Update(drain=1000, on_failure="pause")
    following = ground.definition(
        web=ground.web(port, greeting="new"), zzz=ground.broken_web(other_port, hosts=("h2",), update=pausing)
    )
    applied = asyncio.run(ground.apply(following, "rolling"))
    assert applied.outcome is Outcome.PARTIAL
    assert applied.exit_code == 4
    assert applied.hosts == {"h1": HostEnd.NEW, "h2": HostEnd.BETWEEN}
    assert ground.store.read_ref(ground.ref) == applied.release
    rows = drift(following, asyncio.run(ground.observed()))
    assert [(row.host, row.process, row.field) for row in rows] == [("h2", "zzz", "process")]
    mended = asyncio.run(ground.apply(replaced(following, "zzz", config={})))
    assert called(mended) == ["start zzz@h2"]
    assert mended.outcome is Outcome.APPLIED


def test_a_binary_that_does_not_compile_is_found_before_anything_is_touched(ground: Ground, port: int) -> None:
    definition = ground.definition(web=ground.web(port))
    first = asyncio.run(ground.apply(definition))
    nonsense = ground.blob(b"\0asm\1\0\0\0 nonsense")
    with pytest.raises(StagingFailed) as caught:
        asyncio.run(ground.apply(replaced(definition, "web", binary=nonsense)))
    assert set(caught.value.reasons) == {"h1", "h2"}
    assert ground.store.read_ref(ground.ref) == first.release
    assert drift(definition, asyncio.run(ground.observed())) == []


def test_a_blob_that_is_nowhere_is_told_before_anything_is_touched(ground: Ground, port: int) -> None:
    definition = ground.definition(web=ground.web(port))
    first = asyncio.run(ground.apply(definition))
    with pytest.raises(TransferFailed, match="no blob"):
        asyncio.run(ground.apply(replaced(definition, "web", binary=digest_of(b"never pushed"))))
    assert ground.store.read_ref(ground.ref) == first.release


def test_a_host_that_does_not_answer_stops_an_apply_unless_it_may_be_left_alone(ground: Ground, port: int) -> None:
    definition = ground.definition(web=ground.web(port))
    asyncio.run(ground.apply(definition))
    following = replaced(definition, "web", config=ground.web(port, greeting="later").config)
    complete = asyncio.run(ground.plan(following))
    ground.agents["h2"].stop()
    try:
        with pytest.raises(HostsUnreachable) as caught:
            asyncio.run(ground.apply(following))
        assert set(caught.value.reasons) == {"h2"}
        with pytest.raises(HostsUnreachable):
            asyncio.run(ground.carry_out(complete))
        assert "hello" in ground.get("h2", port)  # guests go on without their agent
        partial = asyncio.run(ground.plan(following, allow_unreachable=True))
        assert planned(partial) == ["configure web@h1"]
        assert partial.unreachable == ("h2",)
        without = asyncio.run(ground.carry_out(partial))
        assert (without.outcome, without.exit_code) == (Outcome.PARTIAL, 4)  # nobody knows what h2 runs
        assert without.hosts == {"h1": HostEnd.NEW, "h2": HostEnd.UNKNOWN}
        newest = releases.head(ground.store, ground.ref)
        assert newest is not None
        assert newest.release.behind == ("h2",)
        nothing_left = asyncio.run(ground.carry_out(asyncio.run(ground.plan(following, allow_unreachable=True))))
        assert (nothing_left.outcome, nothing_left.calls) == (Outcome.PARTIAL, ())
    finally:
        ground.agents["h2"].start()
    caught_up = asyncio.run(ground.apply(following))
    assert called(caught_up) == ["configure web@h2"]
    assert caught_up.exit_code == 0


def test_an_agent_that_dies_meanwhile_and_comes_back_is_asked_again(ground: Ground, port: int) -> None:
    definition = ground.definition(web=ground.web(port))
    asyncio.run(ground.apply(definition))
    following = replaced(definition, "web", config=ground.web(port, greeting="stubborn").config)
    plan = asyncio.run(ground.plan(following, "rolling"))
    restarting: list[asyncio.Task[None]] = []

    def kill(step: Step) -> None:
        if step.host == "h1":
            ground.agents["h2"].kill()
            restarting.append(asyncio.ensure_future(asyncio.to_thread(ground.agents["h2"].start)))

    applied = asyncio.run(ground.carry_out(plan, Watching("done", kill)))
    assert restarting
    assert applied.outcome is Outcome.APPLIED
    assert "stubborn" in ground.get("h2", port)


def test_a_host_that_dies_meanwhile_is_told_as_unknown_and_the_others_go_back(ground: Ground, port: int) -> None:
    definition = ground.definition(web=ground.web(port))
    asyncio.run(ground.apply(definition))
    plan = asyncio.run(ground.plan(replaced(definition, "web", env={"A": "1"}), "rolling"))

    def kill(step: Step) -> None:
        if step.host == "h1" and ground.agents["h2"].runs:
            ground.agents["h2"].kill()

    try:
        applied = asyncio.run(ground.carry_out(plan, Watching("done", kill)))
    finally:
        ground.agents["h2"].start()
    assert applied.outcome is Outcome.PARTIAL
    assert applied.hosts == {"h1": HostEnd.OLD, "h2": HostEnd.UNKNOWN}
    assert [(call.host, call.reason) for call in applied.failed] == [("h2", None)]
    assert applied.revert is not None
    assert drift(definition, asyncio.run(ground.observed())) == []


# --- the world moves ------------------------------------------------------------------------------------------------


def test_a_plan_refuses_to_run_when_the_world_has_moved(ground: Ground, port: int) -> None:
    definition = ground.definition(web=ground.web(port))
    asyncio.run(ground.apply(definition))
    following = replaced(definition, "web", args=("--later",))
    plan = asyncio.run(ground.plan(following))

    async def by_hand(client: AgentClient) -> None:
        (status,) = await client.processes()
        spec = msgspec.structs.replace(status.spec, env={"BY": "hand"})
        await client.call(Envelope(Replace(spec, status.spec_digest), by="operator:ada"))

    asyncio.run(ground.with_client("h1", by_hand))
    with pytest.raises(WorldMoved) as caught:
        asyncio.run(ground.carry_out(plan))
    assert "web@h1 is" in str(caught.value)
    rows = drift(definition, asyncio.run(ground.observed()))
    assert [(row.host, row.field, row.runs, row.should) for row in rows] == [("h1", "env.BY", "hand", "")]
    healed = asyncio.run(ground.apply(definition))
    assert called(healed) == ["replace web@h1"]
    assert drift(definition, asyncio.run(ground.observed())) == []


def test_a_plan_that_was_altered_is_refused_and_no_host_is_called(ground: Ground, port: int) -> None:
    definition = ground.definition(web=ground.web(port))
    plan = asyncio.run(ground.plan(definition))
    before = asyncio.run(ground.observed()).state()
    steps = [
        msgspec.structs.replace(step, spec=msgspec.structs.replace(step.spec, env={"UNSEEN": "1"}))
        for step in plan.steps()
        if step.spec is not None
    ]
    for stages in ((tuple(steps),), ((*steps, *steps),), ()):
        with pytest.raises(PlanAltered):
            asyncio.run(ground.carry_out(msgspec.structs.replace(plan, stages=stages)))
    assert asyncio.run(ground.observed()).state() == before
    assert ground.store.read_ref(ground.ref) is None


def test_of_two_operators_at_once_one_wins_and_the_other_is_told(ground: Ground, port: int) -> None:
    definition = ground.definition(web=ground.web(port))
    asyncio.run(ground.apply(definition))
    ours = replaced(definition, "web", env={"A": "1"})
    theirs = replaced(definition, "web", env={"B": "2"})

    async def race() -> list[Applied | BaseException]:
        plans = await ground.plan(ours), await ground.plan(theirs)
        return await asyncio.gather(*(ground.carry_out(plan) for plan in plans), return_exceptions=True)

    results = asyncio.run(race())
    won = [result for result in results if isinstance(result, Applied)]
    lost = [result for result in results if isinstance(result, ApplyRaced | WorldMoved)]
    assert (len(won), len(lost)) == (1, 1)
    assert won[0].outcome is Outcome.APPLIED
    assert ground.store.read_ref(ground.ref) == won[0].release
    winner = ours if won[0] is results[0] else theirs
    assert drift(winner, asyncio.run(ground.observed())) == []


def test_an_apply_stops_when_another_one_takes_over(ground: Ground, port: int) -> None:
    definition = ground.definition(web=ground.web(port))
    asyncio.run(ground.apply(definition))
    following = replaced(definition, "web", env={"A": "1"})
    plan = asyncio.run(ground.plan(following, "rolling"))

    def take_over(step: Step) -> None:
        if step.host == "h1":
            _release_by_another(ground, following, definition)

    applied = asyncio.run(ground.carry_out(plan, Watching("done", take_over)))
    assert applied.superseded
    assert applied.outcome is Outcome.PARTIAL
    assert applied.hosts == {"h1": HostEnd.NEW, "h2": HostEnd.OLD}
    assert applied.revert is None


def _release_by_another(ground: Ground, current: Definition, following: Definition) -> None:
    newest = releases.head(ground.store, ground.ref)
    assert newest is not None
    back = make_plan("minimal", version(current), version(following), assume(current), from_release=newest.digest)
    release = releases.Release(
        definition=back.definition,
        plan=ground.store.put(encode(back)).digest,
        parent=newest.digest,
        at_unix_ns=time.time_ns(),
        by="operator:bob",
    )
    releases.publish(ground.store, ground.ref, release)


# --- stopping -------------------------------------------------------------------------------------------------------


def test_an_interrupted_apply_finishes_its_calls_tells_and_can_be_finished_later(ground: Ground, port: int) -> None:
    definition = ground.definition(web=ground.web(port))
    asyncio.run(ground.apply(definition))
    following = replaced(definition, "web", env={"A": "1"})

    async def interrupted() -> Applied:
        plan = await ground.plan(following, "rolling")

        def cancel(_: Step) -> None:
            asyncio.get_running_loop().call_soon(running.cancel)

        running = asyncio.ensure_future(ground.carry_out(plan, Watching("begins", cancel)))
        return await running

    applied = asyncio.run(interrupted())
    assert applied.interrupted
    assert applied.outcome is Outcome.PARTIAL
    assert applied.hosts == {"h1": HostEnd.NEW, "h2": HostEnd.OLD}
    assert called(applied) == ["replace web@h1"]
    finished = asyncio.run(ground.apply(following))
    assert called(finished) == ["replace web@h2"]
    assert finished.outcome is Outcome.APPLIED


def test_an_apply_that_is_cancelled_while_it_makes_ready_has_changed_nothing(ground: Ground, port: int) -> None:
    definition = ground.definition(web=ground.web(port))
    first = asyncio.run(ground.apply(definition))

    async def cancelled() -> None:
        plan = await ground.plan(replaced(definition, "web", env={"A": "1"}))

        class Cancelling(Quiet):
            def phase(self, phase: Phase, hosts: int) -> None:
                if phase == "stage" and hosts:
                    running.cancel()

        running = asyncio.ensure_future(ground.carry_out(plan, Cancelling()))
        await running

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())
    assert ground.store.read_ref(ground.ref) == first.release
    assert drift(definition, asyncio.run(ground.observed())) == []


# --- rollback -------------------------------------------------------------------------------------------------------


def test_a_rollback_brings_the_same_bits_back_and_two_go_back_two_steps(ground: Ground, port: int) -> None:
    def roll_back(named: str | None = None) -> Applied:
        return asyncio.run(ground.on_site(lambda site: _roll_back(site, named)))

    one = ground.definition(web=ground.web(port))
    two = replaced(one, "web", config=ground.web(port, greeting="two").config)
    three = replaced(two, "web", binary=ground.guest("web-2"))
    applied = [asyncio.run(ground.apply(definition)) for definition in (one, two, three)]
    ran = asyncio.run(ground.observed()).state()

    roll_back()
    assert "two" in ground.get("h1", port)
    newest = releases.head(ground.store, ground.ref)
    assert newest is not None
    assert newest.release.definition == version_of(two)
    assert (newest.release.kind, newest.release.restores) == ("rollback", applied[1].release)
    assert newest.release.message.startswith("rollback to b3:")

    roll_back()
    assert "hello" in ground.get("h1", port)
    assert drift(one, asyncio.run(ground.observed())) == []

    back = roll_back(applied[2].release)
    assert back.outcome is Outcome.APPLIED
    assert back.bytes_sent == 0
    assert asyncio.run(ground.observed()).state() == ran


async def _roll_back(site: Site, named: str | None) -> Applied:
    to = target(site, named)
    return await rollback(site, await plan_rollback(site, to, "minimal"), to)
