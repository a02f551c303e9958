"""Two operators on two machines with one history: a real etcd, a real S3 store, and a real host that both call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cas.engines.errors import EngineUnreachable
from cas.engines.shared import SharedStore
from deployer.applying.drift import drift
from deployer.applying.outcome import Applied, Outcome
from deployer.applying.progress import Phase, Quiet
from deployer.applying.site import Site
from deployer.cloud import trust
from deployer.cloud.cloud import CONFIG_NAME, Cloud
from deployer.cloud.operators import enroll_operator, operator_bundle
from deployer.errors import ApplyRaced, WorldMoved
from deployer.history import release as releases
from deployer.history.audit import journals
from deployer.history.verify import verify
from deployer.language.schema import Definition
from deployer.planning.rollback import plan_rollback, rollback, target
from tests.deployer.ground import GUESTS, Ground, LocalAgent, replaced
from tests.engines.servers import EtcdCluster, Weed
from tests.ports import free_port

REF = "prod"


class Operators:
    """The same cloud as it is on two machines."""

    def __init__(self, clouds: list[Cloud], agents: dict[str, LocalAgent]) -> None:
        self.ada, self.grace = (Ground(cloud, agents, REF) for cloud in clouds)

    @property
    def history(self) -> list[str]:
        return [link.digest for link in releases.chain(self.ada.store, self.ada.store.read_ref(REF))]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cloud, dict[str, LocalAgent]]]:
    """A host, and the cloud whose authority admitted it."""
    root = tmp_path_factory.mktemp("operators")
    assert (GUESTS / "web-1.wasm").exists(), "pip install -e . builds the example guests"
    state = root / "h1"
    state.mkdir(mode=0o700)
    agents = {"h1": LocalAgent("h1", "127.0.0.1", state)}
    with Cloud.create(root / "cloud", operator="root") as cloud:
        trust.issue_host(cloud.authority, "h1", ["127.0.0.1"], state / "credentials")
        agents["h1"].start()
        try:
            yield cloud, agents
        finally:
            Ground(cloud, agents, "end").end_all()


@pytest.fixture
def operators(
    tmp_path: Path, host: tuple[Cloud, dict[str, LocalAgent]], etcd: EtcdCluster, weed: Weed, engine_name: str
) -> Iterator[Operators]:
    """Admitted by their bundles. What a test has done holds together afterwards, and either can prove it."""
    cloud, agents = host
    clouds = []
    for name in ("ada", "grace"):
        enroll_operator(operator_bundle(cloud, name, tmp_path / f"{name}.bundle"), tmp_path / name)
        lines = f'refs = "{etcd.address(engine_name)}"\nblobs = "{weed.url(engine_name)}"\n'
        (tmp_path / name / CONFIG_NAME).write_text(lines)
        clouds.append(Cloud.open(tmp_path / name))
    operators = Operators(clouds, agents)
    yield operators
    told = asyncio.run(operators.grace.on_site(lambda site: journals(site.fleet)))
    ours = verify(operators.grace.store, told.all())
    assert [finding for finding in ours.findings if finding.release in operators.history] == []
    for one in clouds:
        one.close()


def site_of(ground: Ground, definition: Definition, greeting: str) -> Definition:
    """The same web server with another greeting, which is a blob of its own."""
    config = ground.blob(f'greeting = "{greeting}"\n'.encode())
    return replaced(definition, "web", config={"/etc/web.toml": config})


def test_what_one_operator_applies_the_other_sees_changes_and_takes_back(operators: Operators) -> None:
    ada, grace = operators.ada, operators.grace
    port = free_port()
    first = ada.definition(web=ada.web(port, hosts=("h1",), greeting="from ada"))
    assert asyncio.run(ada.apply(first)).outcome is Outcome.APPLIED
    assert ada.get("h1", port).startswith("from ada")

    newest = releases.head(grace.store, REF)
    assert newest is not None
    assert newest.release.by == "operator:ada"
    seen = releases.read_definition(grace.store, newest.release.definition)
    assert drift(seen, asyncio.run(grace.observed())) == []
    assert asyncio.run(grace.apply(site_of(grace, seen, "from grace"))).outcome is Outcome.APPLIED
    assert ada.get("h1", port).startswith("from grace")

    async def take_back(site: Site) -> Applied:
        to = target(site)
        return await rollback(site, await plan_rollback(site, to, "minimal"), to)

    assert asyncio.run(ada.on_site(take_back)).outcome is Outcome.APPLIED
    assert ada.get("h1", port).startswith("from ada")
    who = [link.release.by for link in releases.chain(grace.store, grace.store.read_ref(REF))]
    assert who == ["operator:ada", "operator:grace", "operator:ada"]


def test_of_two_that_apply_at_once_one_wins_and_the_other_is_told(operators: Operators) -> None:
    ada, grace = operators.ada, operators.grace
    definition = ada.definition(web=ada.web(free_port(), hosts=("h1",)))
    asyncio.run(ada.apply(definition))
    variants = [site_of(ground, definition, f"greeting {n}") for n, ground in enumerate((ada, grace))]

    async def race() -> list[Applied | BaseException]:
        plans = [await ground.plan(variant) for ground, variant in zip((ada, grace), variants, strict=True)]
        doing = [ground.carry_out(plan) for ground, plan in zip((ada, grace), plans, strict=True)]
        return await asyncio.gather(*doing, return_exceptions=True)

    results = asyncio.run(race())
    won = [result for result in results if isinstance(result, Applied)]
    assert len(won) == 1
    assert sum(isinstance(result, ApplyRaced | WorldMoved) for result in results) == 1
    assert won[0].outcome is Outcome.APPLIED
    assert len(operators.history) == 2
    assert operators.history[0] == won[0].release
    assert drift(variants[results.index(won[0])], asyncio.run(grace.observed())) == []


class AtTheDecision(Quiet):
    """Does something at the instant at which an apply is about to move the ref, once."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act: Callable[[], None] | None = act

    def phase(self, phase: Phase, hosts: int) -> None:
        super().phase(phase, hosts)
        if phase == "release" and self._act is not None:
            act, self._act = self._act, None
            act()


def test_applies_go_on_when_the_leader_is_killed_and_none_is_lost_or_doubled(
    operators: Operators, etcd: EtcdCluster
) -> None:
    ada, grace = operators.ada, operators.grace
    definition = ada.definition(web=ada.web(free_port(), hosts=("h1",)))
    applied = [asyncio.run(ada.apply(definition))]
    killed: list[int] = []
    for number, ground in enumerate((grace, ada, grace)):
        definition = site_of(ground, definition, f"greeting {number}")
        plan = asyncio.run(ground.plan(definition))
        applied.append(asyncio.run(ground.carry_out(plan, AtTheDecision(lambda: killed.append(etcd.kill_leader())))))
        etcd.restart(killed.pop())
    assert [result.outcome for result in applied] == [Outcome.APPLIED] * 4
    assert operators.history == [result.release for result in reversed(applied)]
    assert drift(definition, asyncio.run(ada.observed())) == []


def test_an_apply_whose_blobs_reach_nobody_changes_nothing_and_can_be_repeated(
    operators: Operators, weed: Weed
) -> None:
    ada, grace = operators.ada, operators.grace
    definition = ada.definition(web=ada.web(free_port(), hosts=("h1",)))
    asyncio.run(ada.apply(definition))
    before = operators.history
    following = site_of(grace, definition, "another")
    plan = asyncio.run(grace.plan(following))
    with pytest.raises(EngineUnreachable, match="S3 store"):
        asyncio.run(grace.carry_out(plan, AtTheDecision(weed.kill)))
    weed.start()
    assert operators.history == before
    assert drift(definition, asyncio.run(ada.observed())) == []
    assert asyncio.run(grace.carry_out(plan)).outcome is Outcome.APPLIED
    assert drift(following, asyncio.run(ada.observed())) == []


def test_the_history_is_read_and_nothing_applied_while_etcd_has_no_majority(
    operators: Operators, etcd: EtcdCluster
) -> None:
    ada = operators.ada
    definition = ada.definition(web=ada.web(free_port(), hosts=("h1",)))
    asyncio.run(ada.apply(definition))
    following = site_of(ada, definition, "another")
    plan = asyncio.run(ada.plan(following))
    told: list[float] = []
    ada.cloud.on_stale = lambda _, age_s: told.append(age_s)
    history = operators.history
    etcd.stop()
    try:
        assert operators.history == history
        assert told
        with pytest.raises(EngineUnreachable, match="etcd gave no answer"):
            asyncio.run(ada.carry_out(plan))
    finally:
        etcd.start()
    assert operators.history == history
    assert drift(definition, asyncio.run(ada.observed())) == []
    assert asyncio.run(ada.carry_out(plan)).outcome is Outcome.APPLIED


def test_a_release_is_published_only_when_all_it_names_is_at_the_origin(operators: Operators) -> None:
    """Also what was stored here while nobody shared it, and the releases before, which another machine must read."""
    ada, grace = operators.ada, operators.grace
    store = ada.store
    assert isinstance(store, SharedStore)
    definition = ada.definition(web=ada.web(free_port(), hosts=("h1",)))
    asyncio.run(ada.apply(definition))
    assert store.origin is not None
    store.origin.objects.delete([meta.path for meta in store.origin.objects.list("blobs")])
    asyncio.run(ada.apply(site_of(ada, definition, "another")))
    for link in releases.chain(grace.store, grace.store.read_ref(REF)):
        seen = releases.read_definition(grace.store, link.release.definition)
        for process in seen.process.values():
            assert grace.store.read(process.binary) == ada.store.read(process.binary)
            assert grace.store.read(process.config["/etc/web.toml"])
