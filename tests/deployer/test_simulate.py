"""Simulations: the real apply on made-up hosts, the same for the same seed, and true to what real hosts do."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas.memory import MemoryStore
from cas.store import Store
from deployer.applying.observe import HostState, Observed, assume
from deployer.applying.outcome import HostEnd
from deployer.applying.transfer import Lack, costs
from deployer.errors import BadInput
from deployer.language.schema import Definition, Process, Update
from deployer.planning.comparison import cost_of
from deployer.planning.plan import Plan, blobs_by_host
from deployer.planning.planners import BUILT_IN, make_plan, version
from deployer.planning.simulate import Simulated, simulate
from deployer.planning.simulate.failures import FailureKind
from deployer.planning.timing import Links
from deployer.resolving import canonical
from tests.deployer.ground import Ground, replaced
from tests.deployer.test_phases import REGION, fleet
from tests.deployer.worlds import definitions, observed_of


class Case:
    """A store with two definitions, and hosts that run the first and lack the blobs of the second."""

    def __init__(self, before: Definition | None, after: Definition, planner: str = "minimal") -> None:
        self.store = MemoryStore(clock=lambda: 0.0)
        for definition in (before, after):
            if definition is not None:
                self.store.put(canonical.encode(definition))
        self.observed = assume(before) if before else Observed({host: HostState() for host in after.host})
        current = version(before) if before else None
        self.plan = make_plan(planner, current, version(after), self.observed, probation_s=30.0)
        lacking = {host: tuple(d for d in wanted if d in self.store.blobs) for host, wanted in self.wanted().items()}
        self.lacking = {host: Lack(missing, ()) for host, missing in lacking.items()}

    def wanted(self) -> dict[str, tuple[str, ...]]:
        return blobs_by_host(self.plan)

    def run(self, *fail: str, seed: int | None = None) -> Simulated:
        return simulate(self.plan, self.observed, self.store, self.lacking, fail=fail, seed=seed)


def web(binary: str, update: Update) -> Process:
    return Process(binary=binary, hosts=tuple(REGION), update=update)


def case(planner: str = "minimal", update: Update | None = None) -> Case:
    store = MemoryStore()
    one, two = (store.put(text * 100_000).digest for text in (b"one", b"two"))
    rule = update or Update()
    made = Case(fleet(web=web(one, rule)), fleet(web=web(two, rule)), planner)
    for text in (b"one", b"two"):
        made.store.put(text * 100_000)
    made.lacking = {host: Lack((two,), ()) for host in made.plan.hosts()}
    return made


def test_without_failures_every_host_ends_with_the_new_version() -> None:
    result = case().run()
    assert (result.outcome, result.exit_code) == ("applied", 0)
    assert set(result.hosts.values()) == {HostEnd.NEW}
    assert result.history[-1].what == "applied"
    assert [happening.at_s for happening in result.history] == sorted(h.at_s for h in result.history)


def test_blobs_that_the_store_keeps_as_deltas_are_no_hindrance(tmp_path: Path) -> None:
    made = case()
    with Store.open(tmp_path) as store:
        for data in made.store.blobs.values():
            store.put(data)
        first, second = (os.urandom(200_000) for _ in range(2))
        one = store.put(first, name="web").digest
        two = store.put(first[:100_000] + b"changed" + first[100_000:] + second[:9], name="web").digest
        assert store.stat(two).encoding == "delta"
        before, after = fleet(web=web(one, Update())), fleet(web=web(two, Update()))
        for definition in (before, after):
            store.put(canonical.encode(definition))
        observed = assume(before)
        plan = make_plan("minimal", version(before), version(after), observed)
        lacking = {host: Lack((two,), (one,)) for host in plan.hosts()}
        assert simulate(plan, observed, store, lacking).outcome == "applied"


def test_a_process_that_never_gets_ready_brings_back_those_that_had_moved() -> None:
    result = case("rolling").run("never-ready=web@b2")
    assert (result.outcome, result.exit_code) == ("reverted", 4)
    assert set(result.hosts.values()) == {HostEnd.OLD}
    told = [happening.what for happening in result.history]
    assert any(what.startswith("replace web@b2 failed") for what in told)
    assert not any("web@c1" in what for what in told), "nothing after the failure was begun"


def test_a_process_that_says_pause_leaves_the_hosts_where_they_are() -> None:
    result = case("rolling", update=Update(on_failure="pause")).run("never-ready=web@b1")
    assert (result.outcome, result.exit_code) == ("partial", 4)
    assert result.hosts == {
        "a1": HostEnd.NEW, "a2": HostEnd.NEW, "b1": HostEnd.OLD, "b2": HostEnd.OLD, "c1": HostEnd.OLD,
    }  # fmt: skip


def test_a_canary_that_dies_later_is_found_in_its_probation_and_minimal_would_not_have_seen_it() -> None:
    seed = next(n for n in range(100) if case("canary").run("dies-later=web@a1", seed=n).failures[0].at_s < 25)
    canary = case("canary").run("dies-later=web@a1", seed=seed)
    assert canary.outcome == "reverted"
    assert "web@a1" in canary.trouble
    assert not any("web@b1" in happening.what for happening in canary.history)
    assert case("minimal").run("dies-later=web@a1", seed=seed).outcome == "applied"


def test_a_host_that_is_down_from_the_beginning_stops_everything_before_anything_is_touched() -> None:
    results = [case().run("host-down=b1", seed=seed) for seed in range(40)]
    refused = [result for result in results if result.outcome == "refused"]
    assert refused
    for result in refused:
        assert result.exit_code == 1
        assert set(result.hosts.values()) == {HostEnd.OLD}
        assert not any(" begins" in happening.what for happening in result.history)
    assert {result.outcome for result in results} > {"refused"}, "later it is told otherwise"


def test_a_slow_link_delays_and_breaks_nothing() -> None:
    quick, slow = case().run(), case().run("slow-link=c1")
    assert slow.outcome == "applied"
    assert slow.seconds > quick.seconds + 1.0


def test_the_same_seed_gives_the_same_history_and_seeds_differ() -> None:
    histories = {msgspec.json.encode(case("canary").run(seed=seed)) for seed in range(8)}
    assert len(histories) > 4
    assert case("canary").run(seed=3) == case("canary").run(seed=3)


def test_a_failure_that_does_not_fit_the_plan_is_bad_input() -> None:
    for text in ("earthquake", "host-down=h9", "never-ready=kv", "dies-later=web@h9"):
        with pytest.raises(BadInput):
            case().run(text)


@pytest.mark.parametrize("planner", BUILT_IN)
def test_the_estimate_of_a_plan_is_what_its_simulation_takes(planner: str) -> None:
    made = case(planner)
    estimated = cost_of(made.plan, costs(made.store, made.lacking), Links()).seconds
    assert estimated == pytest.approx(made.run().seconds, rel=0.35)


@pytest.mark.parametrize("planner", BUILT_IN)
@settings(max_examples=15)
@given(data=st.data(), seed=st.integers(0, 1000), failing=st.booleans())
def test_whatever_fails_the_end_that_is_told_is_the_one_that_the_hosts_are_in(
    planner: str, data: st.DataObject, seed: int, failing: bool
) -> None:
    """And without failures a plan that a strict world accepts is one that the model accepts."""
    current, following = (data.draw(definitions(loopback=False)) for _ in range(2))
    made = Case(current, following, planner)
    made.observed = observed_of(current, {*current.host, *following.host})
    made.plan = make_plan(planner, version(current), version(following), made.observed)
    made.lacking = {}
    result = made.run(seed=seed if failing else None)
    if not failing:
        assert result.outcome in ("applied", "unchanged")
    match result.outcome:
        case "applied":
            assert set(result.hosts.values()) <= {HostEnd.NEW}
        case "reverted" | "refused":
            assert set(result.hosts.values()) <= {HostEnd.OLD}
        case outcome:
            assert (outcome == "partial") == (result.exit_code == 4)


def test_a_simulation_says_what_the_real_hosts_then_do(ground: Ground, port: int) -> None:
    """A guest that cannot read its configuration: the simulation is told so, the hosts find out."""
    definition = ground.definition(web=ground.web(port))
    asyncio.run(ground.apply(definition))
    following = replaced(definition, "web", config=ground.broken_web(port).config)
    plan: Plan = asyncio.run(ground.plan(following, "rolling"))
    observed = asyncio.run(ground.observed())
    lacking = {host: Lack(wanted, ()) for host, wanted in blobs_by_host(plan).items()}
    foretold = simulate(plan, observed, ground.store, lacking, fail=["never-ready=web@h1"])
    assert foretold.failures[0].kind is FailureKind.NEVER_READY
    applied = asyncio.run(ground.carry_out(plan))
    assert (foretold.outcome, foretold.exit_code, foretold.hosts) == (
        applied.outcome,
        applied.exit_code,
        applied.hosts,
    )
    assert foretold.applied is not None
    assert [(call.host, call.ok) for call in foretold.applied.calls] == [(call.host, call.ok) for call in applied.calls]
