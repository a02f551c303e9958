"""`lowcloud secret`: from standard input to a guest, and nowhere else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tools.command import lowcloud, succeed
from tests.tools.shop import DEFINITION, Shop

VALUE = b'greeting = "from a secret"\n'


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Shop]:
    """A cloud whose web server's configuration is a secret."""
    shop = Shop(tmp_path / "shop")
    text = DEFINITION.format(agent=shop.agent_port, web=shop.web_port, kv=shop.kv_port)
    shop.definition.write_text(text.replace('config = { "/etc/web.toml" = "conf/web.toml" }', SECRET))
    yield shop
    shop.run("down")


SECRET = 'secret = { "/etc/web.toml" = "greeting" }'


def set_secret(shop: Shop, value: bytes, *words: str) -> list[dict[str, str]]:
    done = succeed("secret", "set", "greeting", *words, "--json", cwd=shop.root, stdin=value)
    assert value not in (done.out + done.err).encode()
    rows: list[dict[str, str]] = json.loads(done.out)
    return rows


def test_a_secret_reaches_its_guests_and_no_other_place(guarded: Shop) -> None:
    missing = guarded.run("plan")
    assert missing.code == 2
    assert 'the secret "greeting" is not set for host ams1' in missing.err
    assert "lowcloud secret set greeting --for web" in missing.err
    first = set_secret(guarded, VALUE)
    assert [row["host"] for row in first] == ["ams1", "fra1"]
    guarded.succeed("up", "--detach")
    assert {answer.split(" from web")[0] for answer in guarded.answers()} == {"from a secret"}

    second = set_secret(guarded, b'greeting = "another"\n', "--host", "fra1")
    plan = guarded.json("plan")
    (step,) = [step for stage in plan["stages"] for step in stage]
    assert (step["call"], step["host"], step["class"]) == ("replace", "fra1", "restart")
    assert [cause["path"] for cause in step["fields"]] == ["secret.greeting.sealed.fra1"]
    (changed,) = guarded.json("diff", "prod", "cloud.toml")
    assert (changed["before"], changed["after"]) == (first[1]["hash"], second[0]["hash"])
    assert guarded.apply()["outcome"] == "applied"
    assert guarded.answer("fra1").startswith("another")
    assert guarded.answer("ams1").startswith("from a secret")

    rows = guarded.json("secret", "ls")
    assert [(row["name"], row["host"], row["hash"]) for row in rows] == [
        ("greeting", "ams1", first[0]["hash"]),
        ("greeting", "fra1", second[0]["hash"]),
    ]
    assert all(row["used_by"] == ["web"] and re.fullmatch(r"20\d\d-.*T.*\.\d{6}Z", row["at"]) for row in rows)
    guarded.succeed("rollback", "--yes")
    assert guarded.answer("fra1").startswith("from a secret")
    assert guarded.succeed("audit", "verify").code == 0
    guarded.succeed("down")
    printed = [path for path in guarded.root.rglob("output/**/*") if path.is_file()]
    holding = [p for p in guarded.root.rglob("*") if p.is_file() and VALUE in p.read_bytes() and p not in printed]
    assert holding == []


def test_only_where_hosts_of_this_machine_are_started_is_one_sealed_to_that_never_ran(guarded: Shop) -> None:
    (guarded.root / ".lowcloud" / "ca").rename(guarded.root / "ca-of-another-operator")
    refused = lowcloud("secret", "set", "greeting", cwd=guarded.root, stdin=VALUE)
    assert (refused.code, "cannot be reached" in refused.err) == (1, True), refused.err
    assert guarded.json("secret", "ls") == []
    assert list(guarded.root.rglob("sealing*")) == []


def test_mistakes_are_told_before_a_value_is_sealed(guarded: Shop) -> None:
    for words, told in (
        (("set", "greeting", "--for", "wbe"), "did you mean web?"),
        (("set", "greeting", "--host", "nowhere"), "nowhere"),
        (("set", "unused"), "no process of the definition uses the secret"),
        (("set", "Not A Name"), "cannot be a secret's name"),
        (("set", "greeting", "--file", "absent"), "cannot read absent"),
        (("set", "greeting"), "the secret is empty"),
        (("rm", "greeting"), "there is no secret"),
        ((), "ACTION"),
    ):
        result = guarded.run("secret", *words)
        assert (result.code, told in result.err) == (2, True), result.err
    assert guarded.json("secret", "ls") == []


def test_the_hint_for_an_overlay_sets_the_secret_of_that_overlay(guarded: Shop) -> None:
    set_secret(guarded, VALUE)
    guarded.definition.with_name("cloud.staging.toml").write_text("")
    missing = guarded.run("-e", "staging", "resolve")
    assert missing.code == 2
    assert "hint: lowcloud -e staging secret set greeting --for web < FILE" in missing.err


def test_a_secret_is_forgotten_for_one_host_or_all(guarded: Shop) -> None:
    set_secret(guarded, VALUE)
    guarded.succeed("secret", "rm", "greeting", "--host", "ams1")
    assert [row["host"] for row in guarded.json("secret", "ls")] == ["fra1"]
    guarded.succeed("secret", "rm", "greeting")
    assert guarded.json("secret", "ls") == []
