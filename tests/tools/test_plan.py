"""`lowcloud plan`."""

from __future__ import annotations

from tests.tools.shop import Shop


def test_it_names_each_call_its_process_and_the_field_that_caused_it(shop: Shop) -> None:
    shop.use(greeting="never seen before")
    plan = shop.json("plan")
    assert plan.keys() >= {"from", "to", "planner", "stages", "bytes"}
    steps = [step for stage in plan["stages"] for step in stage]
    assert sorted((step["call"], step["process"], step["host"], step["class"]) for step in steps) == [
        ("configure", "web", "ams1", "restart"),
        ("configure", "web", "fra1", "restart"),
    ]
    fields = {field["path"] for step in steps for field in step["fields"]}
    assert fields == {'process.web.config."/etc/web.toml"'}
    assert plan["bytes"].keys() == {"ams1", "fra1"}
    assert 0 < plan["bytes"]["fra1"] < 1000
    text = shop.succeed("plan").out
    assert 'process.web.config."/etc/web.toml"' in text
    assert "web@fra1" in text


def test_nothing_changes_by_planning(shop: Shop) -> None:
    before = shop.json("ps"), shop.json("history")
    shop.use(web="web-2")
    shop.succeed("plan")
    assert shop.answers() == {"hello from web 1.0\n"}
    after = shop.json("ps"), shop.json("history")
    assert [row["spec"] for row in after[0]] == [row["spec"] for row in before[0]]
    assert after[1] == before[1]


def test_the_exit_code_tells_on_request_whether_something_would_change(shop: Shop) -> None:
    assert shop.run("plan", "--exit-code").code == 0
    shop.use(greeting="good day")
    assert shop.run("plan", "--exit-code").code == 3
    assert shop.run("plan").code == 0


def test_an_unknown_planner_is_bad_input_and_the_known_ones_are_named(shop: Shop) -> None:
    result = shop.run("plan", "--planner", "magic")
    assert result.code == 2
    assert "minimal" in result.err


def test_hosts_that_do_not_answer_are_named_and_may_be_left_alone(written: Shop) -> None:
    result = written.run("plan")
    assert result.code == 1
    assert "fra1" in result.err
    assert "ams1" in result.err
    written.succeed("plan", "--allow-unreachable")
