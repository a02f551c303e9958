"""Hosts that are away when a release is made: told, remembered, and caught up with, also when they have left the
definition meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from cas.engines.address import parse_refs
from cas.engines.errors import EngineUnreachable
from cas.engines.etcd import EtcdClient
from cas.engines.etcd_refs import EtcdRefs
from cas.engines.last_seen import LastSeen, RememberedRefs
from cas.engines.shared import SharedStore
from deployer.applying.apply import apply
from deployer.applying.catch_up import catch_up
from deployer.applying.drift import drift
from deployer.applying.outcome import Applied, HostEnd, Outcome
from deployer.applying.progress import Phase, Quiet
from deployer.applying.site import Site
from deployer.history import release as releases
from deployer.history.release import Release
from deployer.language.schema import Definition
from deployer.planning.plan import Step
from deployer.planning.planners import version
from deployer.planning.planning import addresses_for, keep_definition, plan_for
from tests.deployer.ground import Ground, replaced
from tests.deployer.test_apply import Watching, called
from tests.ports import free_port


def head(ground: Ground) -> Release:
    newest = releases.head(ground.store, ground.ref)
    assert newest is not None
    return newest.release


async def without_those_away(site: Site, definition: Definition, forget: tuple[str, ...] = ()) -> Applied:
    plan = await plan_for(site, keep_definition(site.store, definition), "minimal", allow_unreachable=True)
    return await apply(site, plan, forget=forget)


def left_alone(ground: Ground, definition: Definition, forget: tuple[str, ...] = ()) -> Applied:
    return asyncio.run(ground.on_site(lambda site: without_those_away(site, definition, forget)))


def test_a_host_that_comes_back_is_brought_up_to_date_while_one_waits(ground: Ground, port: int) -> None:
    definition = ground.definition(web=ground.web(port))
    asyncio.run(ground.apply(definition))
    following = replaced(definition, "web", env={"A": "1"})
    ground.agents["h2"].kill()

    class Starting(Quiet):
        def phase(self, phase: Phase, _: int) -> None:
            if phase == "catch-up" and not ground.agents["h2"].runs:
                self.starting = asyncio.ensure_future(asyncio.to_thread(ground.agents["h2"].start))

    async def work(site: Site) -> Applied:
        applied = await without_those_away(site, following)
        assert (applied.outcome, applied.hosts["h2"]) == (Outcome.PARTIAL, HostEnd.UNKNOWN)
        return await catch_up(site, applied, version(following), "minimal", within_s=60)

    applied = asyncio.run(ground.on_site(work, Starting()))
    assert applied.exit_code == 0
    assert applied.hosts == {"h1": HostEnd.NEW, "h2": HostEnd.NEW}
    assert called(applied) == ["replace web@h1", "replace web@h2"]
    assert drift(following, asyncio.run(ground.observed())) == []
    newest, first, _ = releases.chain(ground.store, ground.store.read_ref(ground.ref))
    assert (first.release.behind, newest.release.behind) == (("h2",), ())
    assert newest.release.definition == first.release.definition


def test_who_waits_is_told_when_the_time_is_over_and_when_another_takes_over(ground: Ground, port: int) -> None:
    definition = ground.definition(web=ground.web(port))
    asyncio.run(ground.apply(definition))
    following = replaced(definition, "web", env={"A": "1"})
    ground.agents["h2"].kill()

    async def work(site: Site) -> tuple[Applied, Applied]:
        applied = await without_those_away(site, following)
        over = await catch_up(site, applied, version(following), "minimal", within_s=0.2)
        await without_those_away(site, definition)
        ground.agents["h2"].start()
        return over, await catch_up(site, applied, version(following), "minimal", within_s=60)

    over, superseded = asyncio.run(ground.on_site(work))
    assert (over.exit_code, over.hosts) == (4, {"h1": HostEnd.NEW, "h2": HostEnd.UNKNOWN})
    assert superseded.superseded
    assert superseded.exit_code == 4
    assert drift(definition, asyncio.run(ground.observed())) == []


def test_a_host_that_left_the_definition_while_it_was_away_is_found_and_ended(ground: Ground, port: int) -> None:
    definition = ground.definition(web=ground.web(port))
    asyncio.run(ground.apply(definition))
    smaller = replaced(definition, "web", hosts=("h1",))
    smaller = msgspec.structs.replace(smaller, host={"h1": smaller.host["h1"]})
    ground.agents["h2"].kill()
    applied = left_alone(ground, smaller)
    assert head(ground).leaving == {"h2": ground.agents["h2"].listen}
    assert head(ground).behind == ("h2",)
    assert "hello" in ground.get("h2", port)
    assert applied.hosts["h2"] is HostEnd.UNKNOWN
    greeted = replaced(smaller, "web", config=ground.web(port, greeting="again").config)
    assert asyncio.run(ground.apply(greeted)).exit_code == 0  # it is in nobody's way
    assert addresses_for(ground.store, ground.ref)["h2"] == ground.agents["h2"].listen
    ground.agents["h2"].start()
    ended = asyncio.run(ground.apply(greeted))
    assert called(ended) == ["stop web@h2"]
    assert asyncio.run(ground.observed()).state()["h2"] == {}
    again = asyncio.run(ground.apply(greeted))
    assert again.outcome is Outcome.UNCHANGED


def test_a_host_that_will_not_come_back_can_be_forgotten(ground: Ground, port: int) -> None:
    definition = ground.definition(web=ground.web(port))
    asyncio.run(ground.apply(definition))
    smaller = replaced(definition, "web", hosts=("h1",))
    smaller = msgspec.structs.replace(smaller, host={"h1": smaller.host["h1"]})
    ground.agents["h2"].kill()
    left_alone(ground, smaller)
    left_alone(ground, smaller, forget=("h2",))
    assert (head(ground).leaving, head(ground).behind) == ({}, ())


def test_a_release_cannot_be_decided_without_its_engine_so_nothing_is_staged(
    ground: Ground, port: int, tmp_path: Path
) -> None:
    """The ref can be read from its local copy; the apply does not go by that."""
    definition = ground.definition(web=ground.web(port))
    asyncio.run(ground.apply(definition))
    plan = asyncio.run(ground.plan(replaced(definition, "web", env={"A": "1"})))
    address = parse_refs(f"etcd://127.0.0.1:{free_port()}/shop")
    assert address is not None
    seen = LastSeen(tmp_path / "last", "etcd")
    seen.remember({ground.ref: ground.store.read_ref(ground.ref)})
    engine = EtcdRefs(EtcdClient(address), address.name)
    dead = RememberedRefs(engine, seen, tell=lambda *_: None)
    local = ground.store
    assert not isinstance(local, SharedStore)
    phases: list[Phase] = []

    class Seeing(Quiet):
        def phase(self, phase: Phase, _: int) -> None:
            phases.append(phase)

    async def work(site: Site) -> Applied:
        shared = SharedStore(local, origin=None, refs=dead)
        assert shared.read_ref(ground.ref) == plan.from_release
        return await apply(site._replace(store=shared), plan)

    with pytest.raises(EngineUnreachable):
        asyncio.run(ground.on_site(work, Seeing()))
    assert phases == []
    assert drift(definition, asyncio.run(ground.observed())) == []


def test_a_host_that_had_moved_and_is_away_when_all_go_back_is_told_and_goes_back_later(
    ground: Ground, port: int, other_port: int
) -> None:
    definition = ground.definition(web=ground.web(port))
    asyncio.run(ground.apply(definition))
    bad = ground.definition(
        web=ground.web(port, greeting="new"), zzz=ground.broken_web(other_port, hosts=("h2",), restart="never")
    )

    def lose(step: Step) -> None:
        if step.host == "h1" and ground.agents["h1"].runs:
            ground.agents["h1"].kill()

    plan = asyncio.run(ground.plan(bad, "rolling"))
    applied = asyncio.run(ground.carry_out(plan, Watching("done", lose)))
    assert applied.outcome is Outcome.PARTIAL
    assert applied.hosts == {"h1": HostEnd.UNKNOWN, "h2": HostEnd.OLD}
    assert (head(ground).kind, head(ground).behind) == ("revert", ("h1",))
    ground.agents["h1"].start()
    back = asyncio.run(ground.apply(definition))
    assert called(back) == ["configure web@h1"]
    assert back.exit_code == 0
    assert drift(definition, asyncio.run(ground.observed())) == []
