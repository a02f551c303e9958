"""`lowcloud rollback`."""

from __future__ import annotations

from tests.tools.shop import Shop


def test_an_earlier_release_comes_back_bit_for_bit_and_nothing_is_sent(shop: Shop) -> None:
    first = shop.json("history")[0]
    specs = {row["name"]: row["spec"] for row in shop.json("ps")}
    shop.apply(web="web-2")
    shop.apply(greeting="good day")
    assert shop.answers() == {"good day from web 2.0\n"}
    one_back = shop.json("rollback", "--yes")
    assert shop.answers() == {"hello from web 2.0\n"}
    two_back = shop.json("rollback", "--yes", "-m", "slow")
    assert shop.answers() == {"hello from web 1.0\n"}
    assert (one_back["bytes_sent"], two_back["bytes_sent"]) == (0, 0)
    newest = shop.json("history")[0]
    assert newest["release"] == two_back["release"] != first["release"]
    assert newest["definition"] == first["definition"]
    assert newest["kind"] == "rollback"
    assert "slow" in newest["message"]
    assert {row["name"]: row["spec"] for row in shop.json("ps")} == specs


def test_a_release_can_be_named_by_a_part_of_its_hash(shop: Shop) -> None:
    wanted = shop.json("history")[0]["release"]
    shop.apply(web="web-2")
    shop.apply(greeting="good day")
    shown = shop.succeed("rollback", wanted[3:15], "--yes").out
    assert wanted[:15] in shown
    assert shop.answers() == {"hello from web 1.0\n"}


def test_what_is_no_release_is_bad_input(shop: Shop) -> None:
    for text in ("0" * 12, "nonsense"):
        result = shop.run("rollback", text, "--yes")
        assert result.code == 2
        assert "lowcloud history" in result.err


def test_without_a_release_there_is_nothing_to_go_back_to(written: Shop) -> None:
    assert written.run("rollback", "--yes").code == 2


def test_whether_a_rollback_could_be_done_offline_is_said_before(shop: Shop) -> None:
    """The hosts ran it, so they have it, until they have collected it."""
    shop.apply(web="web-2")
    ready = shop.json("rollback", "--check")
    assert (ready["offline"], ready["bytes"]) == (True, 0)
    assert {row["host"] for row in ready["hosts"]} == {"fra1", "ams1"}
    assert all(row["missing"] == row["uncompiled"] == [] for row in ready["hosts"])
    assert "every host has everything" in shop.succeed("rollback", "--check").out
    assert shop.answers() == {"hello from web 2.0\n"}
    for code in (shop.root / ".lowcloud" / "hosts").glob("*/code/*.code"):
        code.unlink()  # a guest that runs has the file mapped, and would die of its new length
        code.write_bytes(b"no code any more")
    not_ready = shop.run("rollback", "--check", "--json")
    assert not_ready.code == 1
    assert not_ready.json["offline"] is False
    assert all(len(row["uncompiled"]) == 1 and row["missing"] == [] for row in not_ready.json["hosts"])
