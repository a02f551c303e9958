"""`lowcloud show`, and what `-e` chooses."""

from __future__ import annotations

from tests.tools.shop import Shop

STAGING = 'remove = ["process.kv", "volume.kv-data", "host.ams1"]\n[process.web]\nhosts = ["fra1"]\nmemory = "48MiB"\n'


def test_the_definition_is_shown_as_one_and_can_be_read_again(written: Shop) -> None:
    version = written.json("resolve")["definition"]
    (written.root / "whole.toml").write_text(written.succeed("show").out)
    assert written.json("resolve", "whole.toml")["definition"] == version
    (written.root / "hashes.toml").write_text(written.succeed("show", "--resolved", "--why").out)
    assert written.json("resolve", "hashes.toml")["definition"] == version


def test_why_names_the_file_and_line_of_each_value_and_calls_a_default_one(written: Shop) -> None:
    lines = written.definition.read_text().splitlines()
    rows = {row["path"]: row for row in written.json("show", "--why", "process.web")}
    assert all(path.startswith("process.web.") for path in rows)
    memory, restart = rows["process.web.memory"], rows["process.web.restart"]
    assert "memory" in lines[memory["line"] - 1]
    assert (memory["file"], memory["default"], memory["value"]) == (str(written.definition), False, 32 << 20)
    assert (restart["file"], restart["default"], restart["origin"]) == (None, True, "default")
    text = written.succeed("show", "--why", "process.web").out
    assert f'memory = "32MiB"  # cloud.toml:{memory["line"]}' in text
    assert 'restart = "always"  # default' in text
    resolved = written.succeed("show", "--why", "--resolved", "process.web.binary").out
    assert "b3:" in resolved
    assert "build/web.wasm" in resolved


def test_an_overlay_has_a_lock_of_its_own_and_leaves_the_definition_as_it_is(written: Shop) -> None:
    plain = written.json("resolve")["definition"]
    (written.root / "cloud.staging.toml").write_text(STAGING)
    staged = written.json("-e", "staging", "resolve")
    assert staged["definition"] != plain
    assert staged["lock"].endswith("cloud.staging.lock")
    assert [blob["name"] for blob in staged["blobs"]] == ["build/web.wasm", "conf/web.toml"]
    assert written.json("resolve") | {"changed": False} == written.json("resolve")
    assert 'memory = "48MiB"  # cloud.staging.toml:4 (overlay)' in written.succeed("show", "-e", "staging", "--why").out
    assert written.succeed("resolve", "-e", "staging", "--check").code == 0


def test_mistakes_in_what_is_asked_are_told(written: Shop) -> None:
    missing = written.run("plan", "-e", "nowhere")
    assert missing.code == 2
    assert "there is no such overlay" in missing.err
    assert written.run("plan", "-e", "../x").code == 2
    nothing = written.run("show", "process.wbe")
    assert (nothing.code, "nothing below process.wbe" in nothing.err) == (2, True)
    assert written.run("show", "a b").code == 2


def test_an_overlay_has_a_history_of_its_own(written: Shop) -> None:
    (written.root / "cloud.staging.toml").write_text(STAGING)
    assert "ams1" not in written.run("status", "-e", "staging").out
    try:
        written.succeed("up", "-e", "staging", "--detach")
        (release,) = written.json("history", "-e", "staging")
        assert written.json("history") == []
        assert written.succeed("plan", "-e", "staging", "--exit-code").code == 0
        assert [row["name"] for row in written.json("ps", "-e", "staging")] == ["web@fra1"]
        assert written.json("status", "-e", "staging")["release"] == release["release"]
        assert written.json("diff", "-e", "staging", "staging", "cloud.toml") == []
        assert written.json("diff", "-e", "staging", release["release"], "staging") == []
        assert written.succeed("audit", "verify", "-e", "staging").code == 0
        (written.root / "cloud.other.toml").write_text("")
        told = written.succeed("resolve", "-e", "other").err
        assert "fra1 at the same address in the history 'staging'" in told
        assert "same address" not in written.succeed("resolve", "-e", "staging").err
    finally:
        written.run("down")
