"""`lowcloud check`."""

from __future__ import annotations

import random
from pathlib import Path

from tests.tools.command import lowcloud, succeed
from tests.tools.shop import Shop


def test_every_blob_is_verified(cloud: Path) -> None:
    for number in range(3):
        (cloud / f"f{number}").write_bytes(b"%d" % number * 100)
    succeed("push", "f0", "f1", "f2", cwd=cloud)
    assert succeed("check", "--json", cwd=cloud).json == {"blobs": 3, "bytes": 300, "damaged": []}
    assert succeed("check", cwd=cloud).out == "3 blobs verified, 300 B; 0 damaged\n"


def test_damage_is_named_and_pushing_the_file_again_repairs_it(cloud: Path) -> None:
    data = random.Random(3).randbytes(100_000)
    (cloud / "file").write_bytes(data)
    digest = succeed("push", "--json", "file", cwd=cloud).json[0]["hash"]
    flip_a_byte_of(data, cloud / ".lowcloud" / "store")
    result = lowcloud("check", "--json", cwd=cloud)
    assert result.code == 1
    assert [damage["digest"] for damage in result.json["damaged"]] == [digest]
    assert lowcloud("pull", digest, "-o", "x", cwd=cloud).code == 1
    assert not (cloud / "x").exists()
    succeed("push", "file", cwd=cloud)
    succeed("check", cwd=cloud)
    succeed("pull", digest, "-o", "x", cwd=cloud)
    assert (cloud / "x").read_bytes() == data


def test_the_store_of_a_host_is_verified_there(shop: Shop) -> None:
    [row] = shop.json("check", "--host", "fra1")
    assert (row["host"], row["damaged"]) == ("fra1", [])
    assert row["blobs"] >= 3


def test_what_is_damaged_here_a_host_gives_back(shop: Shop, tmp_path: Path) -> None:
    data = random.Random(4).randbytes(100_000)
    (tmp_path / "file").write_bytes(data)
    digest = shop.json("push", tmp_path / "file")[0]["hash"]
    shop.succeed("sync", "fra1", "--send")
    flip_a_byte_of(data, shop.root / ".lowcloud" / "store")
    found = shop.run("check")
    assert found.code == 1
    assert "check --from HOST" in found.err
    assert shop.run("check", "--from", "ams1").code == 1, "that host does not have it"
    assert shop.run("check", "--from", "nowhere").code == 2
    repaired = shop.json("check", "--from", "ams1", "--from", "fra1")["damaged"]
    assert [(damage["digest"], damage["repaired"]) for damage in repaired] == [(digest, True)]
    assert shop.json("check")["damaged"] == []


def flip_a_byte_of(data: bytes, store: Path) -> None:
    """Damage the place in the store's files that holds the middle of this (incompressible) blob."""
    sample = data[50_000:50_032]
    for path in store.rglob("*"):
        held = path.read_bytes() if path.is_file() else b""
        at = held.find(sample)
        if at >= 0:
            with path.open("r+b") as file:
                file.seek(at)
                file.write(bytes([held[at] ^ 1]))
            return
    raise AssertionError("the blob is not in the store as it is")
