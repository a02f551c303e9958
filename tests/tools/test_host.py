"""`lowcloud host`."""

from __future__ import annotations

import io
import json
from pathlib import Path

import msgspec

from agent.api.facts import Guarantee, Waiting
from cas.digest import digest_of
from tests.tools.command import lowcloud, succeed
from tests.tools.shop import Shop
from tools.deploying import Telling
from tools.hosts import tell_undecided, waits, weak_limits
from tools.output import Output, shorten


def test_it_shows_means_and_guarantees_of_every_host(shop: Shop) -> None:
    facts = {row["host"]: row for row in shop.json("host", "show")}
    assert facts.keys() == {"fra1", "ams1"}
    assert facts["fra1"]["cores"] >= 1
    assert facts["fra1"]["memory_bytes"] > 0
    assert [volume["volume"] for volume in facts["fra1"]["volumes"]] == ["kv-data"]
    guarantees = {row["name"]: row["given"] for row in facts["fra1"]["guarantees"]}
    assert guarantees["memory"]
    text = shop.succeed("host", "show", "fra1").out
    assert "GUARANTEE" in text
    assert "ams1" not in text


def test_a_new_host_gets_one_file_and_opens_it_in_its_state_directory(cloud: Path, tmp_path: Path) -> None:
    added = succeed("host", "add", "ber1", "--listen", "10.0.0.9:7400", "-o", "b", "--json", cwd=cloud).json
    assert added == {"host": "ber1", "listen": "10.0.0.9:7400", "bundle": "b"}
    assert (cloud / "b").stat().st_mode & 0o077 == 0
    state = tmp_path / "state"
    enrolled = succeed("host", "enroll", cloud / "b", "--state", state, "--json").json
    assert (enrolled["host"], enrolled["listen"]) == ("ber1", "10.0.0.9:7400")
    assert sorted(path.name for path in (state / "credentials").iterdir()) == ["ca.pem", "cert.pem", "key.pem"]


def test_an_address_comes_from_the_definition_where_none_is_given(written: Shop) -> None:
    added = written.json("host", "add", "fra1")
    assert added["listen"] == f"127.0.1.1:{written.agent_port}"
    result = written.run("host", "add", "ber1")
    assert result.code == 2
    assert "--listen" in result.err


def test_a_bundle_is_never_written_over_another_file(cloud: Path) -> None:
    (cloud / "fra1.bundle").write_text("mine")
    assert lowcloud("host", "add", "fra1", "--listen", "10.0.0.1:1", cwd=cloud).code == 2
    assert (cloud / "fra1.bundle").read_text() == "mine"


def test_a_damaged_bundle_is_refused(cloud: Path, tmp_path: Path) -> None:
    succeed("host", "add", "ber1", "--listen", "10.0.0.9:7400", cwd=cloud)
    bundle = json.loads((cloud / "ber1.bundle").read_text())
    bundle["settings"]["host"] = "another"
    (cloud / "ber1.bundle").write_text(json.dumps(bundle))
    result = lowcloud("host", "enroll", cloud / "ber1.bundle", "--state", tmp_path / "state")
    assert result.code == 2
    assert not (tmp_path / "state").exists()


def test_names_and_addresses_that_cannot_be_are_bad_input(cloud: Path) -> None:
    assert lowcloud("host", "add", "Not a name", "--listen", "10.0.0.1:1", cwd=cloud).code == 2
    assert lowcloud("host", "add", "ber1", "--listen", "somewhere", cwd=cloud).code == 2


def test_a_release_that_waits_is_told_with_how_much_of_it_is_there() -> None:
    waiting = Waiting(ref="prod", release=digest_of(b"r"), at_unix_ns=1, by="operator:ada", blobs=5, missing=2)
    name = shorten(digest_of(b"r"))
    assert waits(waiting) == f"release {name} of prod by ada, which it was away for: 3 of 5 blobs are there"
    whole = msgspec.structs.replace(waiting, missing=0, uncompiled=1)
    assert waits(whole).endswith("5 of 5 blobs are there, 1 to be compiled")
    assert "\x1b" not in waits(msgspec.structs.replace(waiting, ref="\x1b[2J"))


def test_a_host_in_the_middle_of_a_call_is_told_with_what_it_is_about() -> None:
    out = io.StringIO()
    tell_undecided({"fra1": ("process web", "volume \x1b[2J"), "ams1": ("a call that is arriving",)}, Output(out, out))
    ams1, fra1 = out.getvalue().splitlines()
    assert ams1 == "ams1 is in the middle of a call: a call that is arriving"
    assert fra1.startswith("fra1 is in the middle of a call: process web, volume ")
    assert "\x1b" not in fra1


def test_a_command_that_waits_for_an_earlier_call_says_so() -> None:
    out, told = io.StringIO(), io.StringIO()
    Telling(Output(out, told)).phase("undecided", 2)
    assert (out.getvalue(), told.getvalue()) == ("", "waiting for an earlier call on 2 hosts\n")


def test_what_is_soft_and_what_is_missing_is_one_line_and_nothing_where_all_is_hard() -> None:
    rows = [
        Guarantee("memory", given=True, how=""),
        Guarantee("cores", given=False, how="", soft=True),
        Guarantee("disk", given=False, how="", soft=True),
        Guarantee("own-user", given=False, how=""),
    ]
    assert weak_limits(rows) == "soft: cores, disk; not given: own-user"
    assert weak_limits(rows[:3]) == "soft: cores, disk"
    assert weak_limits(rows[:1]) == ""
