"""The journal: every entry follows from the one before, a torn tail is cut off, damage is never mended in silence."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.api.journal import Event, JournalEntry, entry_hash
from agent.daemon.journal import HEAD, Journal, JournalOfAnother, JournalUnreadable, JournalUnwritable


def written(path: Path, count: int) -> list[JournalEntry]:
    journal = Journal.open(path, "fra1", clock_ns=lambda: 7)
    entries = [journal.append(Event.CALL, process="web", detail=f"entry {number}") for number in range(count)]
    journal.close()
    return entries


def test_entries_are_read_back_in_pages_and_name_each_other(tmp_path: Path) -> None:
    entries = written(tmp_path / "j", 600)
    journal = Journal.open(tmp_path / "j", "fra1")
    assert journal.repaired == ""
    pages = [journal.read(after, 100) for after in range(-1, 599, 100)]
    assert list(itertools.chain(*pages)) == entries == list(journal.entries())
    assert journal.read(599) == []
    assert journal.read(1 << 60) == []
    assert journal.read(-1, 0) == []
    for before, entry in itertools.pairwise(entries):
        assert entry.previous == before.hash == entry_hash(before)
    journal.close()


@settings(max_examples=60)
@given(st.integers(1, 400), st.booleans())
def test_a_tail_that_was_not_written_whole_is_cut_off(cut: int, zeros: bool) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "j"
        entries = written(path, 3)
        whole = path.read_bytes()
        last = len(whole) - _frame_bytes()
        torn = whole[: last + min(cut, len(whole) - last - 1)]
        path.write_bytes(torn.ljust(len(whole), b"\0") if zeros else torn)
        journal = Journal.open(path, "fra1")
        assert "unfinished" in journal.repaired
        assert list(journal.entries()) == entries[:2]
        added = journal.append(Event.CALL)
        assert (added.seq, added.previous) == (2, entries[1].hash)
        journal.close()
        again = Journal.open(path, "fra1")
        assert again.repaired == ""
        assert list(again.entries()) == [*entries[:2], added]
        again.close()


@settings(max_examples=80)
@given(st.data())
def test_a_flipped_bit_before_the_last_entry_is_never_taken_for_a_torn_tail(data: st.DataObject) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "j"
        entries = written(path, 4)
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(len(HEAD), len(content) - _frame_bytes() - 1))
        content[place] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        journal = Journal.open(path, "fra1")
        assert "damaged" in journal.repaired
        assert path.with_name("j.damaged-1").read_bytes() == bytes(content)
        added = journal.append(Event.CALL)
        good = [entry for entry in entries if entry.seq < added.seq]
        assert added.previous == (good[-1].hash if good else None)
        assert journal.read(-1) == [added]
        journal.close()
        assert Journal.open(path, "fra1").head == added


def test_damage_under_a_running_agent_is_named_and_what_is_before_it_is_still_read(
    tmp_path: Path,
) -> None:
    entries = written(tmp_path / "j", 3)
    journal = Journal.open(tmp_path / "j", "fra1")
    content = bytearray((tmp_path / "j").read_bytes())
    at = content.index(b"entry 1")
    content[at] ^= 1
    (tmp_path / "j").write_bytes(content)
    assert journal.read() == entries[:1]
    with pytest.raises(JournalUnreadable, match="damaged at byte") as caught:
        journal.read(entries[0].seq)
    assert "restarting the agent" in caught.value.hint
    journal.close()


def test_a_file_of_another_version_or_kind_is_refused(tmp_path: Path) -> None:
    for number, head in enumerate((HEAD.replace(b"\x01", b"\x02"), b"something else entirely")):
        path = tmp_path / str(number)
        path.write_bytes(head)
        with pytest.raises(JournalUnreadable):
            Journal.open(path, "fra1")
        assert path.read_bytes() == head


def test_a_head_that_was_torn_is_written_anew(tmp_path: Path) -> None:
    for cut in range(len(HEAD)):
        path = tmp_path / str(cut)
        path.write_bytes(HEAD[:cut])
        journal = Journal.open(path, "fra1")
        assert journal.append(Event.AGENT_STARTED).seq == 0
        journal.close()


def test_an_entry_that_cannot_be_written_is_said_so_and_leaves_nothing(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "j", "fra1")
    first = journal.append(Event.AGENT_STARTED)
    with pytest.raises(JournalUnwritable):
        journal.append(Event.CALL, detail="x" * (9 << 20))
    second = journal.append(Event.CALL)
    assert (second.seq, second.previous) == (1, first.hash)
    journal.close()


def test_it_knows_who_serves(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "j", "fra1")
    for guest in ("a", "b"):
        journal.append(Event.SERVING, process="web", guest=guest)
    journal.append(Event.ENDED, process="web", guest="a")
    journal.close()
    assert list(Journal.open(tmp_path / "j", "fra1").serving) == ["b"]


def _append_for_ever(path: Path, told: int) -> None:
    journal = Journal.open(path, "fra1")
    while True:
        entry = journal.append(Event.CALL, detail="x" * 300)
        os.write(told, f"{entry.hash}\n".encode())


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "j"
    acknowledged: list[str] = []
    for round_ in range(5):
        reading, writing = os.pipe()
        process = multiprocessing.get_context("fork").Process(target=_append_for_ever, args=(path, writing))
        process.start()
        os.close(writing)
        with os.fdopen(reading) as pipe:
            acknowledged += [pipe.readline().strip() for _ in range(5 + round_)]
            if process.pid is not None:
                os.kill(process.pid, signal.SIGKILL)
            acknowledged += pipe.read().split()
        process.join()
    journal = Journal.open(path, "fra1")
    hashes = [entry.hash for entry in journal.entries()]
    assert [h for h in hashes if h in set(acknowledged)] == acknowledged
    journal.close()


def _frame_bytes() -> int:
    """The size of the last frame: of every entry but the first, because all of these have the same size."""
    with TemporaryDirectory() as directory:
        written(Path(directory, "1"), 1)
        written(Path(directory, "2"), 2)
        return Path(directory, "2").stat().st_size - Path(directory, "1").stat().st_size


def test_the_journal_of_another_host_is_refused_and_left_alone(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal", "fra1")
    journal.append(Event.AGENT_STARTED)
    journal.close()
    before = (tmp_path / "journal").read_bytes()
    with pytest.raises(JournalOfAnother, match="fra1"):
        Journal.open(tmp_path / "journal", "ams1")
    assert (tmp_path / "journal").read_bytes() == before
