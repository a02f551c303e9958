"""`lowcloud plan`."""

from __future__ import annotations

import msgspec
import pytest

from deployer.planning import plan as plans
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


# --- plans in files -------------------------------------------------------------------------------------------------


def test_a_signed_plan_is_shown_with_its_signer_and_applied_later(shop: Shop) -> None:
    file = shop.root / "shop.plan"
    shop.use(greeting="signed and sealed")
    shop.succeed("plan", "--sign", "-o", file)
    planned = shop.json("plan")
    shown = shop.json("plan", "--show", file)
    assert (shown["plan"], shown["signer"]) == (planned["plan"], "operator:ada")
    assert "signed by operator:ada" in shop.succeed("plan", "--show", file).out
    applied = shop.succeed("apply", file, "--yes")
    assert "signed by operator:ada" in applied.err
    newest = shop.json("history")[0]
    assert newest["signed_by"] == "operator:ada"
    assert newest["signed"].startswith("b3:")
    assert "ada, signed by ada" in shop.succeed("history").out
    ran = {row["process"]: row["signed_by"] for row in shop.json("audit", "at", "now", "--host", "fra1")}
    assert (ran["web"], ran["kv"]) == ("operator:ada", None)
    assert shop.json("audit", "verify")["findings"] == []
    assert shop.answers() == {"signed and sealed from web 1.0\n"}
    again = shop.run("apply", file, "--yes")
    assert again.code != 0, "the world has moved"
    shop.succeed("plan", "--reverse", file, "-o", shop.root / "back.plan")
    shop.succeed("apply", shop.root / "back.plan", "--yes")
    assert shop.answers() == {"hello from web 1.0\n"}


def test_a_plan_that_a_stranger_signed_is_refused(shop: Shop, written: Shop) -> None:
    file = shop.root / "strange.plan"
    written.succeed("plan", "--allow-unreachable", "--sign", "-o", file)
    for words in (("plan", "--show", file), ("apply", file, "--yes")):
        refused = shop.run(*words)
        assert refused.code == 2
        assert "does not know" in refused.err


def test_a_cloud_that_requires_signatures_applies_nothing_else(shop: Shop) -> None:
    settings = shop.root / "lowcloud.toml"
    before = settings.read_text()
    shop.apply(greeting="not vouched for")  # so that there is a release to go back to
    shop.use(greeting="vouched for")
    try:
        settings.write_text("require_signed_plans = true\n")
        shop.succeed("plan", "-o", shop.root / "bare.plan")
        for words in (
            ("apply", "--yes"),
            ("apply", shop.root / "bare.plan", "--yes"),
            ("rollback", "--yes"),
            ("up", "--detach"),
        ):
            refused = shop.run(*words)
            assert refused.code == 2
            assert "require_signed_plans" in refused.err
        shop.succeed("plan", "--sign", "-o", shop.root / "signed.plan")
        shop.succeed("apply", shop.root / "signed.plan", "--yes")
    finally:
        settings.write_text(before)
    assert shop.answers() == {"vouched for from web 1.0\n"}


@pytest.mark.parametrize("tampered", ["another call", "a call less", "no order", "no changes", "a cause"])
def test_a_plan_that_was_changed_is_neither_shown_nor_applied(shop: Shop, tampered: str) -> None:
    file = shop.root / "shop.plan"
    shop.use(greeting="reviewed")
    before = shop.answers()
    shop.succeed("plan", "-o", file)
    plan = plans.decode(file.read_bytes())
    step, *others = plan.steps()
    match tampered:
        case "another call":
            assert step.spec is not None
            spec = msgspec.structs.replace(step.spec, env={"UNSEEN": "1"})
            steps = [msgspec.structs.replace(step, kind=plans.Kind.REPLACE, spec=spec), *others]
        case "a call less":
            steps = others
        case "no order":
            steps = [step, step, *others]
        case "no changes":
            steps, plan = [step, *others], msgspec.structs.replace(plan, changes=())
        case _:
            harmless = plans.Cause(path=("process", "web", "env", "COLOUR"))
            steps = [msgspec.structs.replace(step, causes=(harmless,)), *others]
    file.write_bytes(plans.encode(msgspec.structs.replace(plan, stages=(tuple(steps),))))
    for words in (("plan", "--show", file), ("apply", file, "--yes")):
        refused = shop.run(*words)
        assert (refused.code, f"{file}: this plan" in refused.err) == (2, True), refused.err
    assert shop.answers() == before


def test_a_plan_that_is_not_there_is_said_to_be_missing(shop: Shop) -> None:
    refused = shop.run("plan", "--show", shop.root / "no.plan")
    assert (refused.code, "is not there" in refused.err) == (2, True)


# --- other questions ------------------------------------------------------------------------------------------------


def test_planners_are_compared_side_by_side(shop: Shop) -> None:
    shop.use(greeting="compare me")
    compared = shop.json("plan", "--compare", "--probation", "5s")
    costs = {row["planner"]: row for row in compared["planners"]}
    assert {"canary", "minimal", "regions", "rolling"} <= costs.keys()
    assert {row["calls"] for row in costs.values()} == {2}
    assert costs["minimal"]["risk"] == {"process": "web", "at_once": 2, "of": 2}
    assert costs["rolling"]["risk"]["at_once"] == 1
    assert costs["canary"]["seconds"] > 5.0 > costs["minimal"]["seconds"]
    assert {row["bytes"] for row in costs.values()} == {sum(shop.json("plan")["bytes"].values())}
    text = shop.succeed("plan", "--compare").out
    assert "2 of 2 web" in text
    slow = shop.json("plan", "--compare", "--probation", "5s", "--link", "1kB")["planners"]
    assert all(row["seconds"] > costs[row["planner"]]["seconds"] for row in slow)


def test_a_simulation_shows_what_would_have_happened_and_touches_nothing(shop: Shop) -> None:
    before = shop.json("history"), [row["spec"] for row in shop.json("ps")]
    shop.use(greeting="only imagined")
    words = ("plan", "--planner", "rolling", "--simulate", "--fail", "never-ready=web@fra1", "--seed", "1")
    result = shop.json(*words)
    assert (result["outcome"], result["exit"]) == ("reverted", 4)
    assert result["hosts"] == {"ams1": "old", "fra1": "old"}
    assert result == shop.json(*words)
    text = shop.succeed(*words).out
    assert "never-ready web@fra1" in text
    assert "with exit code 4" in text
    assert shop.json("plan", "--simulate")["outcome"] == "applied"
    assert (shop.json("history"), [row["spec"] for row in shop.json("ps")]) == before


def test_words_that_do_not_go_together_are_bad_input(shop: Shop) -> None:
    for words in (
        ("--seed", "1"),
        ("--fail", "host-down"),
        ("--sign",),
        ("--show", "nothing.plan"),
        ("--compare", "--simulate"),
        ("--simulate", "--fail", "earthquake"),
        ("--probation", "soon"),
        ("--compare", "--link", "fast"),
    ):
        assert shop.run("plan", *words).code == 2, words
