"""`lowcloud migrate`, and the other verbs on a cloud whose engines are shared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deployer.cloud.cloud import Cloud
from tests.engines.releases import make_release
from tests.engines.servers import EtcdCluster, Weed
from tests.tools.command import lowcloud, succeed


@pytest.fixture
def released(cloud: Path) -> Path:
    """A cloud with three releases and a file that was pushed."""
    with Cloud.open(cloud) as opened:
        for number in range(3):
            make_release(opened, b"binary %d" % number * 1000)
    (cloud / "file").write_bytes(b"pushed" * 1000)
    succeed("push", "file", cwd=cloud)
    return cloud


def test_a_cloud_is_moved_to_shared_engines_and_back(
    released: Path, etcd: EtcdCluster, weed: Weed, engine_name: str
) -> None:
    before = succeed("history", "--json", cwd=released).json
    refs, blobs = etcd.address(engine_name), weed.url(engine_name)
    moved = succeed("migrate", "--refs", refs, "--blobs", blobs, "--json", cwd=released).json
    assert (moved["refs"], moved["blobs"], moved["skipped"]) == (refs, blobs, {})
    assert moved["heads"] == {"prod": before[0]["release"]}
    settings = (released / "lowcloud.toml").read_text()
    assert f'refs = "{refs}"\nblobs = "{blobs}"\n' in settings
    assert settings.startswith("# Settings of this cloud.")
    assert succeed("history", "--json", cwd=released).json == before
    assert succeed("check", "--json", cwd=released).json["damaged"] == []
    weed.objects(engine_name).delete([f"blobs/{before[1]['definition'].removeprefix('b3:')}"])
    [found] = succeed("check", "--json", cwd=released).json["damaged"]
    assert (found["digest"], found["repaired"]) == (before[1]["definition"], True)
    assert succeed("check", "--json", cwd=released).json["damaged"] == []
    collected = succeed("gc", "--json", cwd=released).json
    assert (collected["blobs"], collected["origin"]["blobs"]) == (0, 0)
    assert collected["origin"]["kept"] == moved["verified_blobs"]
    succeed("migrate", "--refs", "lmdb", "--blobs", "lmdb", cwd=released)
    assert "etcd://127" not in (released / "lowcloud.toml").read_text()
    assert succeed("history", "--json", cwd=released).json == before


def test_an_engine_that_does_not_answer_is_named_and_reading_goes_on(
    released: Path, etcd: EtcdCluster, weed: Weed, engine_name: str
) -> None:
    refs, blobs = etcd.address(engine_name), weed.url(engine_name)
    succeed("migrate", "--refs", refs, "--blobs", blobs, cwd=released)
    before = succeed("history", "--json", cwd=released).json
    etcd.stop()
    weed.kill()
    try:
        shown = lowcloud("history", "--json", cwd=released)
        assert (shown.code, shown.json) == (0, before)
        warning = json.loads(shown.err)["warning"]
        assert warning["kind"] == "Unanswered"
        assert 0 <= warning["age_s"] < 600
        assert "warning: the history is shown as it was" in lowcloud("history", cwd=released).err
        (released / "new").write_bytes(b"new")
        for words in (["push", "new"], ["gc"]):
            failed = lowcloud(*words, "--json", cwd=released)
            assert failed.code == 1
            assert failed.error["hint"]
    finally:
        weed.start()
        etcd.start()
    succeed("push", "new", cwd=released)


def test_an_address_that_makes_no_sense_is_bad_input(cloud: Path) -> None:
    assert lowcloud("migrate", cwd=cloud).code == 2
    assert lowcloud("migrate", "--refs", "zookeeper://x", cwd=cloud).code == 2
    assert lowcloud("migrate", "--refs", "lmdb", cwd=cloud).code == 2
    (cloud / "lowcloud.toml").write_text('ref = "prod"\nblobs = "s3://key:secret@bucket"\n')
    refused = lowcloud("history", "--json", cwd=cloud)
    assert refused.code == 2
    assert "lowcloud.toml:2:1: a key has no place in lowcloud.toml" in refused.error["message"]
