"""`lowcloud diff`."""

from __future__ import annotations

from tests.tools.shop import Shop


def test_it_shows_the_fields_in_which_two_releases_differ(shop: Shop) -> None:
    shop.apply(greeting="good day")
    newest, before = (row["release"] for row in shop.json("history", "-n", "2"))
    changes = shop.json("diff", before[3:15], newest)
    assert [(change["path"], change["change"]) for change in changes] == [
        ('process.web.config."/etc/web.toml"', "restart")
    ]
    assert changes[0]["before"] != changes[0]["after"]
    assert shop.json("diff", newest, newest) == []


def test_a_release_is_compared_with_a_definition_file(shop: Shop) -> None:
    other = shop.root / "other.toml"
    other.write_text(shop.definition.read_text().replace('"32MiB"', '"48MiB"', 1))
    changes = shop.json("diff", "prod", other)
    assert [(one["path"], one["before"], one["after"]) for one in changes] == [
        ("process.web.memory", 32 << 20, 48 << 20)
    ]
    assert "32MiB -> 48MiB" in shop.succeed("diff", "prod", other).out


def test_what_is_neither_is_bad_input(shop: Shop, written: Shop) -> None:
    assert shop.run("diff", "prod", "0" * 12).code == 2
    assert written.run("diff", "prod", "cloud.toml").code == 2
