"""Real hosts for the tests that call them. `ground` is started once, and each test works on a ref of its own; `hosts`
once for a module."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from deployer.cloud import trust
from deployer.cloud.cloud import Cloud
from deployer.history.audit import journals
from deployer.history.verify import verify
from tests import ports
from tests.deployer import regions
from tests.deployer.ground import ADDRESSES, GUESTS, Ground, LocalAgent


@contextlib.contextmanager
def running(root: Path, addresses: Mapping[str, str]) -> Iterator[tuple[Cloud, dict[str, LocalAgent]]]:
    """A cloud, and an agent at each of these addresses."""
    agents: dict[str, LocalAgent] = {}
    with Cloud.create(root / "cloud", operator="ada") as cloud:
        try:
            for host, address in addresses.items():
                state = root / host
                state.mkdir(mode=0o700)
                trust.issue_host(cloud.authority, host, [address], state / "credentials")
                agents[host] = LocalAgent(host, address, state)
                agents[host].start()
            yield cloud, agents
        finally:
            Ground(cloud, agents, "end").end_all()


@pytest.fixture(scope="package")
def agents_and_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cloud, dict[str, LocalAgent]]]:
    if not (GUESTS / "web-1.wasm").exists():
        pytest.skip("the example guests are not built: pip install -e . builds them")
    with running(tmp_path_factory.mktemp("ground"), ADDRESSES) as both:
        yield both


@pytest.fixture
def ground(agents_and_cloud: tuple[Cloud, dict[str, LocalAgent]], request: pytest.FixtureRequest) -> Iterator[Ground]:
    """Whatever a test does, the records hold together afterwards."""
    cloud, agents = agents_and_cloud
    ref = request.node.name.replace("_", "-")[:60]
    ground = Ground(cloud, agents, ref)
    yield ground
    for agent in agents.values():
        if not agent.runs:
            agent.start()
    told = asyncio.run(ground.on_site(lambda site: journals(site.fleet)))
    assert verify(cloud.store, told.all()).findings == ()


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """Three hosts in one region, one in another."""
    with running(tmp_path_factory.mktemp("regions"), regions.ADDRESSES) as (cloud, agents):
        yield Ground(cloud, agents, "regions")


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    return ports.free_port


@pytest.fixture
def port(free_port: Callable[[], int]) -> int:
    return free_port()


@pytest.fixture
def other_port(free_port: Callable[[], int]) -> int:
    return free_port()
