"""`lowcloud gc`."""

from __future__ import annotations

import os
from pathlib import Path

from tests.tools.command import lowcloud, succeed
from tests.tools.shop import Shop


def test_what_was_pushed_stays_until_it_is_given_up(cloud: Path) -> None:
    data = os.urandom(50_000)
    digest = succeed("push", "-", "--json", cwd=cloud, stdin=data).json[0]["hash"]
    assert succeed("gc", "--json", cwd=cloud).json["blobs"] == 0
    collected = succeed("gc", "--pushed", "--json", cwd=cloud).json
    assert collected["blobs"] == 1
    assert collected["bytes"] >= 50_000
    assert lowcloud("pull", digest, "-o", "x", cwd=cloud).code == 1


def test_a_dry_run_removes_nothing(cloud: Path) -> None:
    digest = succeed("push", "-", "--json", cwd=cloud, stdin=b"anything").json[0]["hash"]
    succeed("gc", "--dry-run", "--pushed", cwd=cloud)
    succeed("pull", digest, "-o", "x", cwd=cloud)


def test_every_rollback_stays_possible(shop: Shop) -> None:
    first = shop.json("history")[0]["release"]
    shop.apply(web="web-2")
    shop.apply(greeting="good day")
    shop.succeed("gc", "--pushed")
    for host in ("fra1", "ams1"):
        assert shop.json("gc", "--host", host)[0]["host"] == host
    shop.json("rollback", first, "--yes")
    assert shop.answers() == {"hello from web 1.0\n"}
    shop.succeed("check")


def test_options_that_exclude_each_other_are_bad_usage(cloud: Path) -> None:
    assert lowcloud("gc", "--host", "fra1", "--dry-run", cwd=cloud).code == 2
    assert lowcloud("gc", "--keep", "3", cwd=cloud).code == 2
