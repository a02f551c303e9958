"""`lowcloud apply`."""

from __future__ import annotations

import re

from tests.tools.shop import Shop


def test_a_new_binary_takes_over_on_every_host(shop: Shop) -> None:
    applied = shop.apply(web="web-2")
    assert applied.keys() >= {"release", "calls", "failed", "seconds"}
    assert (applied["outcome"], applied["calls"], applied["failed"]) == ("applied", 2, 0)
    assert shop.answers() == {"hello from web 2.0\n"}
    assert shop.json("history")[0]["release"] == applied["release"]


def test_a_person_is_told_what_was_sent_and_what_that_saved(shop: Shop) -> None:
    shop.use(web="web-2")
    named = b"\x04seen" + b"only by this test"  # a section of its own: no host has had this program before
    with (shop.root / "build" / "web.wasm").open("ab") as program:
        program.write(bytes([0, len(named)]) + named)
    last = shop.succeed("apply", "--yes").out.splitlines()[-1]
    assert re.search(r"2 calls, [0-9.]+ (B|KiB) sent \([0-9.]+ KiB of [0-9.]+ KiB saved\), ", last), last


def test_a_new_configuration_restarts_exactly_its_process(shop: Shop) -> None:
    before = {row["name"]: row["pid"] for row in shop.json("ps")}
    shop.apply(greeting="good day")
    after = {row["name"]: row["pid"] for row in shop.json("ps")}
    assert shop.answers() == {"good day from web 1.0\n"}
    assert {name for name in after if after[name] != before[name]} == {"web@fra1", "web@ams1"}


def test_applying_again_changes_nothing(shop: Shop) -> None:
    again = shop.apply()
    assert (again["outcome"], again["calls"]) == ("unchanged", 0)


def test_nobody_to_ask_means_bad_usage_and_no_change(shop: Shop) -> None:
    shop.use(greeting="good day")
    result = shop.run("apply")
    assert result.code == 2
    assert "--yes" in result.err
    assert shop.answers() == {"hello from web 1.0\n"}


def test_a_plan_that_was_written_to_a_file_can_be_applied_once(shop: Shop) -> None:
    shop.use(greeting="good day")
    shop.succeed("plan", "-o", "the.plan")
    shop.use(greeting="something else")
    assert shop.json("apply", "the.plan", "--yes", "-m", "as reviewed")["outcome"] == "applied"
    assert shop.answers() == {"good day from web 1.0\n"}
    assert shop.json("history")[0]["message"] == "as reviewed"
    again = shop.run("apply", "the.plan", "--yes", "--json")
    assert again.code == 1
    assert again.error["kind"] == "ApplyRaced"


def test_a_version_that_does_not_become_ready_is_reverted_and_the_old_one_never_stops(shop: Shop) -> None:
    (shop.root / "conf" / "web.toml").write_text("this is no configuration\n")
    result = shop.run("apply", "--yes", "--json")
    assert result.code == 4
    assert result.json["outcome"] == "reverted"
    assert result.json["failed"] >= 1
    refused = next(call for call in result.json["done"] if call["reason"] == "not-ready")
    assert "not a line of the form" in refused["output"] and refused["hint"]
    assert refused["message"].startswith("web did not become ready: it exited"), "said once"
    assert shop.answers() == {"hello from web 1.0\n"}
    shown = shop.run("apply", "--yes")
    assert shown.code == 4
    assert "not a line of the form" in shown.out
    shop.use(greeting="hello")
    assert shop.run("status").code == 0


def test_with_the_lock_file_no_file_is_read(shop: Shop) -> None:
    shop.succeed("resolve")
    shop.use(greeting="not in the lock")
    assert shop.json("apply", "--locked", "--yes")["outcome"] == "unchanged"
    assert shop.answers() == {"hello from web 1.0\n"}
    (shop.root / "lowcloud.lock").unlink()
    assert shop.run("apply", "--locked", "--yes").code == 2


def test_an_invalid_definition_touches_nothing(shop: Shop) -> None:
    other = shop.root / "other.toml"
    other.write_text(shop.definition.read_text().replace('"hello"', '"x"') + "[surprise]\n")
    result = shop.run("apply", other, "--yes")
    assert result.code == 2
    assert "other.toml:" in result.err


def test_half_a_plan_file_is_bad_input_and_named(shop: Shop) -> None:
    shop.use(greeting="good day")
    shop.succeed("plan", "-o", "whole.plan")
    (shop.root / "half.plan").write_bytes((shop.root / "whole.plan").read_bytes()[:200])
    result = shop.run("apply", "half.plan", "--yes")
    assert result.code == 2
    assert result.err.startswith("lowcloud: half.plan: this is no plan")
    assert "lowcloud plan -o" in result.err


def test_a_host_that_is_away_is_named_everywhere_and_follows_later(shop: Shop) -> None:
    shop.succeed("down", "--host", "ams1")
    try:
        shop.use(greeting="good day")
        assert shop.run("apply", "--yes").code == 1
        without = shop.run("apply", "--yes", "--json", "--catch-up", "200ms")
        assert (without.code, without.json["outcome"]) == (4, "partial")
        assert without.json["hosts"] == {"ams1": "unknown", "fra1": "new"}
        assert shop.json("history")[0]["behind"] == ["ams1"]
        assert "(without ams1)" in shop.succeed("history").out
        nothing_left = shop.run("apply", "--yes", "--allow-unreachable")
        assert nothing_left.code == 4
        assert "--catch-up" in nothing_left.out
        assert "ams1" in shop.run("status").out
        assert shop.run("apply", "--yes", "--forget", "ams1").code == 2, "it has not left the definition"
    finally:
        shop.succeed("up", "--detach")
    assert shop.run("status").code == 0
    assert shop.json("history")[0]["behind"] == []
    assert shop.answers() == {"good day from web 1.0\n"}


def test_a_time_that_is_none_is_bad_usage(shop: Shop) -> None:
    assert shop.run("apply", "--yes", "--catch-up", "soon").code == 2
