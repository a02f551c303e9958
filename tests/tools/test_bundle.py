"""`lowcloud bundle` and `lowcloud unbundle`: a release crosses an air gap."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.tools.command import lowcloud, succeed
from tests.tools.shop import Shop, shop_that_is_up
from tests.tools.test_agent import agent, shut_down

ONE_HOST = """\
name = "shop"
[region.fra]
[host.fra1]
region = "fra"
address = "127.0.1.1:{agent}"
cores = 2
memory = "1GiB"
disk = "4GiB"
[process.web]
binary = "build/web.wasm"
hosts = ["fra1"]
cores = "0.5"
memory = "32MiB"
config = {{ "/etc/web.toml" = "conf/web.toml" }}
listen = {{ http = "host:{web}/tcp" }}
ready = {{ tcp = "http", path = "/healthz", within = "60s" }}
update = {{ drain = "5s" }}
"""


def test_over_an_air_gap_a_cloud_runs_what_another_released(tmp_path: Path) -> None:
    """Cloud A runs two versions and is switched off; cloud B, with an authority of its own and no network to A, gets
    the first as a whole and the second as its difference, and a host of its own at the same address runs them."""
    with shop_that_is_up(tmp_path / "a") as a:
        a.definition.write_text(ONE_HOST.format(agent=a.agent_port, web=a.web_port))
        first = a.apply(web="web-1", greeting="hello")["release"]
        second = a.apply(web="web-2")["release"]
        one = a.json("bundle", first, "-o", tmp_path / "one.bundle")
        two = a.json("bundle", "prod", "--since", first[:15], "-o", tmp_path / "two.bundle")
        assert (two["release"], two["since"]) == (second, first)
        assert two["bytes"] < one["bytes"] / 2
        a.succeed("down")
    b = tmp_path / "b"
    succeed("init", b, "--operator", "bob")
    refused = lowcloud("unbundle", tmp_path / "two.bundle", "--json", cwd=b)
    assert (refused.code, refused.error["kind"]) == (1, "BundleBaseMissing")
    assert first in refused.error["message"]
    shutil.copyfile(a.definition, b / "cloud.toml")
    succeed("unbundle", tmp_path / "one.bundle", cwd=b)
    assert succeed("history", "--json", cwd=b).json == []
    succeed("host", "add", "fra1", "-o", "host", cwd=b)
    succeed("host", "enroll", b / "host", "--state", tmp_path / "state")
    there = Shop.__new__(Shop)
    there.root, there.web_port = b, a.web_port
    with agent("--state", tmp_path / "state", "--shared") as (process, _):
        try:
            assert there.json("apply", first[:15], "--yes")["outcome"] == "applied"
            assert there.answer("fra1") == "hello from web 1.0\n"
            there.succeed("unbundle", tmp_path / "two.bundle", "--expect", second)
            assert there.answer("fra1") == "hello from web 1.0\n"
            assert there.json("apply", second[:15], "--yes")["outcome"] == "applied"
            assert there.answer("fra1") == "hello from web 2.0\n"
            newest = there.json("history")[0]
            assert newest["release"] != second
            assert newest["message"].startswith(f"release {second[:15]} by operator:ada")
        finally:
            shut_down(there, tmp_path / "state")
            process.wait(60)


def test_a_bundle_goes_through_a_pipe_into_a_store_alone_and_a_history_can_follow(shop: Shop, tmp_path: Path) -> None:
    import subprocess

    from tests.tools.command import command, environment

    with subprocess.Popen(
        command("bundle", "prod", "-o", "-"), cwd=shop.root, env=environment(), stdout=subprocess.PIPE
    ) as sender:
        assert sender.stdout is not None
        data = sender.stdout.read()
    assert sender.returncode == 0
    release = shop.json("history")[0]["release"]
    stored = lowcloud("unbundle", "-", "--store", tmp_path / "store", "--json", stdin=data)
    assert stored.json["release"] == release
    assert stored.json["blobs"] == stored.json["of_blobs"] > 0
    again = lowcloud("unbundle", "-", "--store", tmp_path / "store", "--json", stdin=data)
    assert again.json["blobs"] == 0
    other = tmp_path / "other"
    succeed("init", other)
    assert lowcloud("unbundle", "-", "--ref", "--json", cwd=other, stdin=data).json["ref"] == "prod"
    listed = [row["release"] for row in succeed("history", "--json", cwd=other).json]
    assert listed == [row["release"] for row in shop.json("history")]
    assert succeed("gc", "--json", cwd=other).code == 0


def test_damage_is_named_by_its_place_and_nothing_is_kept_of_it(shop: Shop, tmp_path: Path) -> None:
    file = tmp_path / "the.bundle"
    shop.succeed("bundle", "prod", "-o", file)
    data = bytearray(file.read_bytes())
    data[-50] ^= 4
    file.write_bytes(data)
    result = lowcloud("unbundle", file, "--store", tmp_path / "store")
    assert result.code == 1
    assert f"to {len(data) - 1}" in result.err
    assert "copy the file again" in result.err
    file.write_bytes(b"not one of ours")
    assert "no bundle" in lowcloud("unbundle", file, "--store", tmp_path / "store").err


@pytest.mark.parametrize(
    "words",
    [
        ("bundle", "prod", "-o", "-", "--json"),
        ("bundle", "no-release", "-o", "x"),
        ("bundle", "prod"),
        ("unbundle", "x", "--expect", "newest"),
        ("unbundle", "x", "--ref", "--store", "y"),
        ("apply", "0123456789", "--locked"),
    ],
)
def test_words_that_make_no_sense_together_are_bad_usage(shop: Shop, words: tuple[str, ...]) -> None:
    assert shop.run(*words).code == 2
