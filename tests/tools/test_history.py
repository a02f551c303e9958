"""`lowcloud history`."""

from __future__ import annotations

import datetime
from pathlib import Path

from tests.tools.command import lowcloud, succeed
from tests.tools.shop import Shop


def test_a_new_cloud_has_none(cloud: Path) -> None:
    assert succeed("history", "--json", cwd=cloud).json == []
    assert succeed("history", cwd=cloud).out == ""


def test_releases_are_listed_newest_first_with_who_when_and_why(shop: Shop) -> None:
    shop.use(greeting="good day")
    shop.succeed("apply", "--yes", "-m", "politeness\nand a second line")
    newest, before = shop.json("history", "-n", "2")
    assert newest["parent"] == before["release"]
    assert newest["by"] == "operator:ada"
    assert newest["message"] == "politeness\nand a second line"
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(newest["at"])
    assert datetime.timedelta(0) <= age < datetime.timedelta(minutes=1)
    rows = shop.succeed("history", "-n", "2").out.splitlines()
    assert len(rows) == 3
    assert newest["release"][:15] in rows[1]
    assert "politeness" in rows[1]


def test_a_release_its_definition_and_its_plan_can_be_pulled_by_their_hashes(shop: Shop) -> None:
    [newest] = shop.json("history", "-n", "1")
    for name in ("release", "definition", "plan"):
        shop.succeed("pull", newest[name], "-o", "blob")


def test_a_count_below_one_is_bad_usage(cloud: Path) -> None:
    assert lowcloud("history", "-n", "0", cwd=cloud).code == 2
