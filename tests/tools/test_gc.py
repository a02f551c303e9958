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
    assert succeed("gc", "--dry-run", "--json", cwd=cloud).json["blobs"] == 0
    assert succeed("gc", "--dry-run", "--pushed", "--json", cwd=cloud).json["blobs"] == 1
    assert succeed("gc", "--json", cwd=cloud).json["blobs"] == 0, "a dry run gives nothing up"
    succeed("pull", digest, "-o", "x", cwd=cloud)


def test_a_repack_makes_the_newest_version_whole_and_keeps_all_of_them(cloud: Path) -> None:
    made = [os.urandom(50_000)]
    made += [made[0][:100] + b"inserted" + made[0][100:]]
    digests = [succeed("push", "--name", "web", "-", "--json", cwd=cloud, stdin=data).json[0]["hash"] for data in made]
    repacked = succeed("gc", "--repack", "--json", cwd=cloud).json["repacked"]
    assert repacked["blobs"] == 2
    assert abs(repacked["saved_bytes"]) < 1000
    assert "stored 0 blobs anew" in succeed("gc", "--repack", cwd=cloud).out
    for digest, data in zip(digests, made, strict=True):
        succeed("pull", digest, "-o", "x", cwd=cloud)
        assert (cloud / "x").read_bytes() == data


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
    assert lowcloud("gc", "--repack", "--dry-run", cwd=cloud).code == 2
    assert lowcloud("gc", "--repack", "--host", "fra1", cwd=cloud).code == 2
