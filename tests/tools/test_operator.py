"""`lowcloud operator`."""

from __future__ import annotations

import json
from pathlib import Path

from deployer.cloud import trust
from deployer.cloud.cloud import Cloud
from tests.engines.releases import make_release
from tests.engines.servers import EtcdCluster, Weed
from tests.tools.command import lowcloud, succeed


def test_a_second_operator_joins_with_one_file_and_sees_the_same_history(
    cloud: Path, tmp_path: Path, etcd: EtcdCluster, weed: Weed, engine_name: str
) -> None:
    with Cloud.open(cloud) as opened:
        make_release(opened, b"binary" * 1000)
    succeed("migrate", "--refs", etcd.address(engine_name), "--blobs", weed.url(engine_name), cwd=cloud)
    succeed("operator", "add", "grace", "-o", tmp_path / "grace.bundle", cwd=cloud)
    assert (tmp_path / "grace.bundle").stat().st_mode & 0o777 == 0o600
    there = tmp_path / "there"
    joined = succeed("operator", "enroll", tmp_path / "grace.bundle", there, "--json").json
    assert joined == {"operator": "grace", "root": str(there)}
    assert trust.common_name(there / ".lowcloud" / "operator") == "operator:grace"
    assert not (there / ".lowcloud" / "ca").exists()
    seen = succeed("history", "--json", cwd=there).json
    assert seen == succeed("history", "--json", cwd=cloud).json
    succeed("pull", seen[0]["definition"], "-o", "definition", cwd=there)


def test_a_bundle_is_refused_that_is_damaged_or_for_a_directory_in_use(cloud: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "grace.bundle"
    assert "in this directory only" in succeed("operator", "add", "grace", "-o", bundle, cwd=cloud).err
    assert lowcloud("operator", "add", "grace", "-o", bundle, cwd=cloud).code == 2
    assert lowcloud("operator", "enroll", bundle, cloud).code == 2
    other = tmp_path / "other"
    succeed("init", other, "--operator", "mallory")
    succeed("operator", "add", "mallory", "-o", tmp_path / "mallory.bundle", cwd=other)
    ours, theirs = (json.loads((tmp_path / f"{name}.bundle").read_text()) for name in ("grace", "mallory"))
    (tmp_path / "no.bundle").write_text("{}")
    for number, wrong in enumerate(
        [
            {**ours, "key": theirs["key"]},
            {**ours, "cert": theirs["cert"]},
            {**ours, "operator": "ada"},
            {**ours, "version": 2},
            {**ours, "format": "lowcloud-host-bundle"},
            {**ours, "more": 1},
            {**ours, "config": "refs = 1"},
        ]
    ):
        path = tmp_path / f"{number}.bundle"
        path.write_text(json.dumps(wrong))
        refused = lowcloud("operator", "enroll", path, tmp_path / "new", "--json")
        assert refused.code == 2, wrong
    assert not (tmp_path / "new").exists()
    assert lowcloud("operator", "enroll", tmp_path / "no.bundle", tmp_path / "new").code == 2


def test_a_reader_gets_credentials_that_are_no_operators(cloud: Path, tmp_path: Path) -> None:
    to = tmp_path / "prometheus"
    made = succeed("operator", "reader", "prometheus", "-o", to, "--json", cwd=cloud).json
    assert made == {"reader": "prometheus", "credentials": str(to)}
    assert trust.common_name(to) == "reader:prometheus"
    assert (to / "key.pem").stat().st_mode & 0o777 == 0o600
    assert lowcloud("operator", "reader", "prometheus", "-o", to, cwd=cloud).code == 2
