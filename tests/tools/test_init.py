"""`lowcloud init`."""

from __future__ import annotations

from pathlib import Path

from tests.tools.command import lowcloud, succeed


def test_it_makes_a_cloud_that_other_verbs_find(tmp_path: Path) -> None:
    made = succeed("init", tmp_path / "shop", "--operator", "ada", "--json").json
    assert made["root"] == str(tmp_path / "shop")
    assert (tmp_path / "shop" / "lowcloud.toml").is_file()
    assert succeed("check", "--json", cwd=tmp_path / "shop").json == {"blobs": 0, "bytes": 0, "damaged": []}


def test_secrets_are_for_their_owner_only(cloud: Path) -> None:
    assert (cloud / ".lowcloud").stat().st_mode & 0o077 == 0
    keys = list((cloud / ".lowcloud").rglob("key.pem"))
    assert len(keys) == 2
    assert all(key.stat().st_mode & 0o077 == 0 for key in keys)


def test_it_never_overwrites_a_cloud(cloud: Path) -> None:
    before = {path: path.read_bytes() for path in cloud.rglob("*.pem")}
    result = lowcloud("init", cloud)
    assert result.code == 2
    assert "already holds" in result.err
    assert {path: path.read_bytes() for path in cloud.rglob("*.pem")} == before


def test_without_a_directory_it_is_the_one_of_the_option(tmp_path: Path) -> None:
    succeed("-C", tmp_path / "there", "init")
    assert (tmp_path / "there" / "lowcloud.toml").is_file()


def test_a_name_that_no_operator_can_have_is_bad_input(tmp_path: Path) -> None:
    assert lowcloud("init", tmp_path / "x", "--operator", "A B").code == 2
    assert not (tmp_path / "x").exists()
