"""The bytes on disk and on the wire, pinned: a change of these is a change of a format's version."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from agent.api.base import Struct, canonical
from agent.api.calls import Envelope, Stop, call_digest
from agent.api.fetching import Party
from agent.api.journal import Event, JournalEntry, entry_hash
from agent.api.neighbours import Neighbour, Neighbours
from agent.api.processes import Endpoint, ProcessSpec, Update, spec_digest
from agent.api.records import decode_record, encode_record
from agent.api.words import WORD_CONTEXT, Wishes, Word
from agent.daemon.durable import FileDamaged, seal, unseal, write_file
from agent.daemon.journal import Journal
from agent.daemon.state import Record, State, Version
from cas.digest import digest_of

SPEC = ProcessSpec(
    name="web",
    binary=digest_of(b"binary"),
    env={"B": "2", "A": "1"},
    config={"/etc/web.toml": digest_of(b"config")},
    listen={"http": Endpoint("0.0.0.0", 8080)},
)


def test_records_between_hosts_are_these_bytes() -> None:
    listed = Neighbours((Neighbour("fra1", "fra", "10.0.0.1:7400"), Neighbour("ams1", "ams", "[fd00::1]:7400")))
    wishes = Wishes((Party(("ams1", "fra1"), (digest_of(b"program"),)),), (digest_of(b"program"),), ("ams1",))
    word = Word(
        ref="prod",
        release=digest_of(b"release"),
        at_unix_ns=1_790_000_000_000_000_000,
        inventory=digest_of(b"inventory"),
        inventory_bytes=9,
        wishes=digest_of(encode_record(wishes)),
        wishes_bytes=len(encode_record(wishes)),
        neighbours=digest_of(encode_record(listed)),
        neighbours_bytes=len(encode_record(listed)),
    )
    assert encode_record(listed) == (
        b"lowcloud neighbours 1\n\x81\xaaneighbours\x92"
        b"\x83\xa4host\xa4fra1\xa6region\xa3fra\xa7address\xad10.0.0.1:7400"
        b"\x83\xa4host\xa4ams1\xa6region\xa3ams\xa7address\xae[fd00::1]:7400"
    )
    assert [digest_of(encode_record(record)) for record in (listed, wishes, word)] == [
        "b3:2d682c45bceb3c31b94afc6160596f9f1c5dcce4dd7821ae27d7f33ce19cdaea",
        "b3:dcbd7137db0443dc1be53eebc4508148cac56ba4f2f25a7578efc83d51429c3d",
        "b3:ad9ae3e183dd28ca5d0842c59db0732df9cd1555e879bf210bd1947ad386e35a",
    ]
    kinds: tuple[type[Struct], ...] = (Neighbours, Wishes, Word)
    for record in (listed, wishes, word):
        data = encode_record(record)
        for kind in kinds:
            if isinstance(record, kind):
                assert decode_record(data, kind) == record
            else:
                with pytest.raises(ValueError, match="are no"):
                    decode_record(data, kind)
        with pytest.raises(ValueError, match="can read"):
            decode_record(data.replace(b" 1\n", b" 2\n", 1), type(record))
    assert WORD_CONTEXT == b"lowcloud word signature 1\n"


def test_digests_of_specifications_and_calls_are_these() -> None:
    assert spec_digest(SPEC) == "b3:b78ba755953de4fa21d28928d1dfcb74c794169f7a816b872417fb9d11259b3a"
    assert spec_digest(msgspec.structs.replace(SPEC, update=Update(drain_s=30))) == spec_digest(SPEC)
    assert (
        call_digest(Envelope(call=Stop("web", expect=digest_of(b"spec"))))
        == "b3:232cdaf04ae1ad2086b2aff64099eaa03f59a21772b00f85825c260e2e2db262"
    )


def test_a_field_that_a_later_version_adds_leaves_every_digest_as_it_is() -> None:
    class Later(ProcessSpec, frozen=True):
        added: tuple[int, ...] = ()

    fields = {name: getattr(SPEC, name) for name in SPEC.__struct_fields__}
    assert canonical(Later(**fields)) == canonical(SPEC)
    assert canonical(Later(**fields, added=(1,))) != canonical(SPEC)
    assert canonical(msgspec.msgpack.decode(msgspec.msgpack.encode(SPEC), type=ProcessSpec)) == canonical(SPEC)


def test_the_hash_of_a_journal_entry_is_this() -> None:
    entry = JournalEntry(seq=0, at_unix_ns=1, previous=None, host="fra1", event=Event.AGENT_STARTED)
    assert entry_hash(entry) == "b3:a21404f0bb22296503677f45fd0876b22b54cadfddf690a8ec4354c4154e6511"
    assert entry_hash(msgspec.structs.replace(entry, hash="whatever")) == entry_hash(entry)


def test_a_journal_file_is_these_bytes(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "j", "fra1", clock_ns=lambda: 1)
    journal.append(Event.AGENT_STARTED)
    journal.close()
    assert (
        digest_of((tmp_path / "j").read_bytes())
        == "b3:e835d0a63cfdd28c74023dd8ed2804f054ead26bf3d789de1c52e78fa47d062a"
    )
    assert (tmp_path / "j").read_bytes()[:12] == b"lcjournl\x01\x00\x00\x00"


def test_a_process_record_is_read_back_and_gone_when_it_is_empty(tmp_path: Path) -> None:
    state = State(tmp_path / "processes")
    assert state.load() == {}
    record = Record(process="web", current=Version(SPEC, guest="web-1"))
    state.save(record)
    assert state.load() == {"web": record}
    # From 16 declared fields on, the map of a specification has the longer of msgpack's two heads; readers take both.
    assert (
        digest_of((tmp_path / "processes" / "web").read_bytes())
        == "b3:e5419d59a83fc9affbcfc177124ae3de3d397c17445edbb92fb8a056c76dde1b"
    )
    state.save(Record(process="web"))
    assert state.load() == {}


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
    assert state.load() == {}
    assert (tmp_path / "other.damaged-1").exists()
