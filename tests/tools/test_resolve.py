"""`lowcloud resolve`."""

from __future__ import annotations

import pytest

from tests.tools.shop import Shop
from tools import guests


def test_every_name_becomes_a_hash_in_the_lock_file(written: Shop) -> None:
    resolved = written.json("resolve")
    assert [blob["name"] for blob in resolved["blobs"]] == ["build/kv.wasm", "build/web.wasm", "conf/web.toml"]
    lock = (written.root / "lowcloud.lock").read_text()
    for blob in resolved["blobs"]:
        assert blob["hash"] in lock
        written.succeed("pull", blob["hash"], "-o", "back")
        assert (written.root / "back").read_bytes() == (written.root / blob["name"]).read_bytes()


def test_the_same_files_give_the_same_version(written: Shop) -> None:
    first = written.json("resolve")
    again = written.json("resolve")
    assert again["definition"] == first["definition"]
    assert (first["changed"], again["changed"]) == (True, False)


def test_check_fails_where_the_lock_file_is_out_of_date_and_leaves_it(written: Shop) -> None:
    written.succeed("resolve")
    written.succeed("resolve", "--check")
    lock = (written.root / "lowcloud.lock").read_bytes()
    written.use(greeting="new")
    result = written.run("resolve", "--check")
    assert result.code == 1
    assert "out of date" in result.err
    assert (written.root / "lowcloud.lock").read_bytes() == lock


def test_what_writes_the_lock_file_does_not_call_for_it_to_be_written(written: Shop) -> None:
    written.succeed("resolve")
    written.use(greeting="new")
    assert "out of date" not in written.succeed("resolve").err
    written.use(greeting="newer")
    assert "`lowcloud resolve` writes it anew" in written.succeed("show", "--resolved").err


@pytest.mark.parametrize("broken", ["<<<<<<< ours\n", "lowcloud-lock = 99\n", ""])
def test_a_broken_lock_file_is_told_and_in_nobodys_way_unless_it_is_to_be_used(written: Shop, broken: str) -> None:
    written.succeed("resolve")
    lock = written.root / "lowcloud.lock"
    sound = lock.read_bytes()
    lock.write_text(broken)
    for words in (("show", "--resolved"), ("plan", "--allow-unreachable")):
        told = written.succeed(*words).err
        assert "lowcloud.lock" in told
        assert "`lowcloud resolve` writes it anew" in told
    assert written.run("plan", "--allow-unreachable", "--locked").code == 2
    assert written.run("resolve", "--check").code == 1
    assert lock.read_text() == broken
    assert "lowcloud.lock" in written.succeed("resolve").err
    assert lock.read_bytes() == sound


def test_mistakes_are_shown_with_their_places_all_at_once(written: Shop) -> None:
    text = written.definition.read_text().replace("binary = ", "binarry = ", 1).replace('"32MiB"', '"32 parsecs"', 1)
    written.definition.write_text(text)
    result = written.run("resolve")
    assert result.code == 2
    places = [line for line in result.err.splitlines() if line.startswith(str(written.definition))]
    assert len(places) >= 2
    assert "did you mean binary?" in result.err
    error = written.run("resolve", "--json").error
    assert error["kind"] == "DefinitionInvalid"
    lines = text.splitlines()
    wrong = next(problem for problem in error["problems"] if "parsecs" in problem["message"])
    assert "parsecs" in lines[wrong["line"] - 1]


def test_a_missing_file_is_named_where_it_is_used(written: Shop) -> None:
    (written.root / "build" / "kv.wasm").unlink()
    result = written.run("resolve")
    assert result.code == 2
    assert "build/kv.wasm" in result.err
    assert "cloud.toml:" in result.err


def test_a_file_that_is_no_program_is_refused(written: Shop) -> None:
    (written.root / "build" / "web.wasm").write_bytes(guests.path("web-1").read_bytes()[4:])
    assert written.run("resolve").code == 2
