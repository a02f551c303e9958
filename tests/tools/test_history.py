"""`lowcloud history`."""

from __future__ import annotations

import contextlib
import datetime
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from deployer.cloud.cloud import Cloud
from tests.engines.releases import make_release
from tests.engines.servers import EtcdCluster
from tests.tools.command import command, environment, lowcloud, succeed
from tests.tools.shop import Shop


def test_a_new_cloud_has_none(cloud: Path) -> None:
    assert succeed("history", "--json", cwd=cloud).json == []
    assert succeed("history", cwd=cloud).out == ""


def test_releases_are_listed_newest_first_with_who_when_and_why(shop: Shop) -> None:
    shop.use(greeting="good day")
    shop.succeed("apply", "--yes", "-m", "politeness\nand a second line")
    newest, before = shop.json("history", "-n", "2")
    assert newest["parent"] == before["release"]
    assert newest["by"] == "operator:ada"
    assert newest["message"] == "politeness\nand a second line"
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(newest["at"])
    assert datetime.timedelta(0) <= age < datetime.timedelta(minutes=1)
    rows = shop.succeed("history", "-n", "2").out.splitlines()
    assert len(rows) == 3
    assert newest["release"][:15] in rows[1]
    assert "politeness" in rows[1]


def test_a_release_its_definition_and_its_plan_can_be_pulled_by_their_hashes(shop: Shop) -> None:
    [newest] = shop.json("history", "-n", "1")
    for name in ("release", "definition", "plan"):
        shop.succeed("pull", newest[name], "-o", "blob")


def test_a_count_below_one_is_bad_usage(cloud: Path) -> None:
    assert lowcloud("history", "-n", "0", cwd=cloud).code == 2


def test_releases_are_shown_as_they_come(cloud: Path) -> None:
    with watching(cloud) as lines, Cloud.open(cloud) as opened:
        made = [make_release(opened, b"one"), make_release(opened, b"two")]
        assert [json.loads(next(lines))["release"] for _ in made] == made


def test_releases_of_another_operator_are_shown_as_they_come(cloud: Path, etcd: EtcdCluster, engine_name: str) -> None:
    with Cloud.open(cloud) as opened:
        first = make_release(opened, b"one")
    succeed("migrate", "--refs", etcd.address(engine_name), cwd=cloud)
    with watching(cloud) as lines, Cloud.open(cloud) as opened:
        assert json.loads(next(lines))["release"] == first
        second = make_release(opened, b"two")
        assert json.loads(next(lines))["release"] == second
        etcd.restart(etcd.kill_leader())
        third = make_release(opened, b"three")
        assert json.loads(next(lines))["release"] == third


@contextlib.contextmanager
def watching(cloud: Path) -> Iterator[Iterator[str]]:
    """What `history -w --json` prints, while it runs."""
    words = command("history", "-w", "--json")
    process = subprocess.Popen(words, cwd=cloud, env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield iter(process.stdout)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        process.stdout.close()
