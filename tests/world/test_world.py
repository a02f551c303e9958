"""Two regions of two hosts, real agents on machines of their own: what crosses the border is counted by the kernel."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator

import pytest

from cas.digest import digest_of
from cas.swarm.ranking import Swarm
from tests.world import ground
from tests.world.fleet import DEPLOYER, Fleet, Host
from tests.world.watching import Event, apply

pytestmark = pytest.mark.skipif(ground.why_not() is not None, reason=str(ground.why_not()))

REGIONS = {"fra": (DEPLOYER, "fra1", "fra2"), "ams": ("ams1", "ams2")}
MODULE_BYTES = 3 << 20
SLOW_MBIT = 0.5
"""The module takes 50 s."""
SLOW_BORDER_MBIT = 2.5
"""It takes 10 s."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with ground.world(REGIONS).standing() as world, Fleet(tmp_path_factory.mktemp("world"), world).standing() as made:
        yield made


def module(seed: int) -> bytes:
    """Bytes that do not get smaller."""
    return random.Random(seed).randbytes(MODULE_BYTES)


def bringer(fleet: Fleet, data: bytes) -> Host:
    """Who brings it across the border."""
    hosts = {region: [name for name in names if name != DEPLOYER] for region, names in REGIONS.items()}
    return fleet.hosts[Swarm(hosts).ranking("ams", digest_of(data))[0]]


def ends_right(fleet: Fleet, data: bytes) -> bool:
    """Every host has it, and serves."""
    pages = {fleet.page(host, "/version") for host in fleet.hosts}
    return not fleet.lacking([digest_of(data)]) and pages == {"1.0\n"}


def test_a_module_crosses_the_border_once_and_its_next_version_as_a_delta(fleet: Fleet) -> None:
    first = module(1)
    watched = apply(fleet, first)
    assert watched.code == 0, watched.messages
    assert ends_right(fleet, first)
    assert 1.0 < watched.copies("ams") < 1.1
    assert watched.copies("fra") < 0.1

    following = first[: MODULE_BYTES // 2] + random.Random(2).randbytes(150_000) + first[MODULE_BYTES // 2 :]
    watched = apply(fleet, following)
    assert watched.code == 0, watched.messages
    assert ends_right(fleet, following)
    assert 150_000 < watched.form_bytes < 160_000
    assert 1.0 < watched.copies("ams") < 1.5  # with what any apply says to two hosts


def test_a_host_that_turns_bits_misleads_nobody_and_is_named(fleet: Fleet) -> None:
    data = module(3)
    host = bringer(fleet, data)
    host.signal(signal.SIGTERM)
    host.lies = True
    fleet.start([host])
    try:
        watched = apply(fleet, data)
        said = (fleet.root / "out").read_text()
    finally:
        host.signal(signal.SIGTERM)
        host.lies = False
        fleet.start([host])
    assert watched.code == 0, watched.messages
    assert f"{host.name} sent wrong bytes" in said
    assert ends_right(fleet, data)
    assert watched.copies("ams") < 2.3


def test_where_the_link_of_who_brings_it_is_slow_the_next_one_does_and_the_others_do_not_wait(fleet: Fleet) -> None:
    data = module(5)
    slow = bringer(fleet, data)

    def others_have_it(_: float, seconds: dict[str, float]) -> bool:
        return {*seconds} >= {*fleet.hosts} - {slow.name}

    fleet.world.slow(slow.name, SLOW_MBIT)
    try:
        done = Event(others_have_it, lambda process: process.kill())
        watched = apply(fleet, data, dead=[slow.name], events=[done])
    finally:
        fleet.world.unslow(slow.name)
    assert watched.code == -signal.SIGKILL, "the command had ended with the slow host before the others had it"
    assert watched.copies("ams") < 1.5
    assert fleet.run("apply", "--yes")[0] == 0
    assert ends_right(fleet, data)


def test_where_the_border_is_slow_two_hosts_are_tried_and_nearly_nothing_is_sent_twice(fleet: Fleet) -> None:
    data = module(6)
    fleet.world.slow_border("ams", SLOW_BORDER_MBIT)
    try:
        watched = apply(fleet, data)
    finally:
        fleet.world.unslow_border("ams")
    assert watched.code == 0, watched.messages
    assert ends_right(fleet, data)
    assert watched.copies("ams") < 1.4


def test_hosts_go_on_by_themselves_when_the_deployer_is_gone(fleet: Fleet) -> None:
    data = module(4)

    def is_handed_over(_: float, seconds: dict[str, float]) -> bool:
        return {fleet.world.region_of[host] for host in seconds} == set(REGIONS)

    watched = apply(fleet, data, events=[Event(is_handed_over, lambda process: process.kill())])
    assert not fleet.lacking([digest_of(data)])
    assert watched.copies("ams") < 1.1
    assert fleet.run("apply", "--yes")[0] == 0
    assert ends_right(fleet, data)
