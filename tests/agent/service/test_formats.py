"""The bytes on disk and on the wire, pinned: a change of these is a change of a format's version."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from agent.api import (
    Endpoint,
    Envelope,
    Event,
    JournalEntry,
    ProcessSpec,
    Stop,
    Update,
    call_digest,
    entry_hash,
    spec_digest,
)
from agent.durable import FileDamaged, seal, unseal, write_file
from agent.journal import Journal
from agent.state import Record, State, Version
from cas.digest import digest_of

SPEC = ProcessSpec(
    name="web",
    binary=digest_of(b"binary"),
    env={"B": "2", "A": "1"},
    config={"/etc/web.toml": digest_of(b"config")},
    listen={"http": Endpoint("0.0.0.0", 8080)},
)


def test_digests_of_specifications_and_calls_are_these() -> None:
    assert spec_digest(SPEC) == "b3:94b711b4d88f040241e3c1a1a998dd30235aef8aab0001535ab78113d9929cbc"
    assert spec_digest(msgspec.structs.replace(SPEC, update=Update(drain_s=30))) == spec_digest(SPEC)
    assert (
        call_digest(Envelope(call=Stop("web", expect=digest_of(b"spec"))))
        == "b3:85e9cb3a7f1055dd4aea95191f97d0bfcac7371141343460c5a8e8ea9708bd65"
    )


def test_the_hash_of_a_journal_entry_is_this() -> None:
    entry = JournalEntry(seq=0, at_unix_ns=1, previous=None, host="fra1", event=Event.AGENT_STARTED)
    assert entry_hash(entry) == "b3:19107fc3d2d0b35aac54f38f37153b9c439478160e44873df5acbe302de0ece8"
    assert entry_hash(msgspec.structs.replace(entry, hash="whatever")) == entry_hash(entry)


def test_a_journal_file_is_these_bytes(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "j", "fra1", clock_ns=lambda: 1)
    journal.append(Event.AGENT_STARTED)
    journal.close()
    assert (
        digest_of((tmp_path / "j").read_bytes())
        == "b3:09792aa3fd4795d2ce01efd0a62e5afae680275ebdb261da2cdcf7ba5757305c"
    )
    assert (tmp_path / "j").read_bytes()[:12] == b"lcjournl\x01\x00\x00\x00"


def test_a_process_record_is_read_back_and_gone_when_it_is_empty(tmp_path: Path) -> None:
    state = State(tmp_path / "processes")
    assert state.load() == ({}, {})
    record = Record(process="web", current=Version(SPEC, guest="web-1"))
    state.save(record)
    assert state.load() == ({"web": record}, {})
    assert (
        digest_of((tmp_path / "processes" / "web").read_bytes())
        == "b3:7b6585e99f3c80a5a08df04d598a33bb0eb25cf7e9fb86cafcb73658763be6f5"
    )
    state.save(Record(process="web"))
    assert state.load() == ({}, {})


def test_a_sealed_file_is_believed_only_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    sealed = seal(b"lcthing", 1, b"content")
    assert sealed[:9] == b"lcthing\x01\x00"
    for wrong in (b"", sealed[:-1], sealed + b"x", b"l" + sealed, seal(b"lcthing", 2, b"content")):
        write_file(path, wrong)
        with pytest.raises(FileDamaged):
            unseal(path, b"lcthing", 1)
    for place in range(len(sealed)):
        write_file(path, sealed[:place] + bytes([sealed[place] ^ 4]) + sealed[place + 1 :])
        with pytest.raises(FileDamaged):
            unseal(path, b"lcthing", 1)
    write_file(path, sealed)
    assert unseal(path, b"lcthing", 1) == b"content"


def test_a_record_of_another_process_is_set_aside(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.load()
    state.save(Record(process="web", current=Version(SPEC)))
    (tmp_path / "web").rename(tmp_path / "other")
    records, damaged = state.load()
    assert (records, list(damaged)) == ({}, ["other"])
    assert (tmp_path / "other.damaged").exists()
