"""Audit: what ran when, from journals; and every way in which the records can be tampered with is found and named."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.api.calls import Envelope, call_digest
from agent.api.journal import Event, JournalEntry, entry_hash
from agent.api.processes import ProcessSpec, spec_digest
from cas.digest import Digest, digest_of
from cas.store import Store
from deployer.applying.observe import HostState, Observed, assume
from deployer.history import release as releases
from deployer.history.audit import Span, at, timeline
from deployer.history.release import Release
from deployer.history.verify import Finding, verify
from deployer.language.schema import Definition, Process
from deployer.planning import plan as plans
from deployer.planning.plan import Plan
from deployer.planning.planners import make_plan
from deployer.planning.planning import keep_definition
from tests.deployer.worlds import BASE, BLOBS

HOST = "h1"


def chained(entries: Sequence[JournalEntry]) -> list[JournalEntry]:
    """Entries with their numbers, and each with the hash of the one before."""
    done: list[JournalEntry] = []
    for seq, entry in enumerate(entries):
        linked = msgspec.structs.replace(entry, seq=seq, previous=done[-1].hash if done else None, hash="")
        done.append(msgspec.structs.replace(linked, hash=entry_hash(linked)))
    return done


def entry(event: Event, at_s: float, **fields: Any) -> JournalEntry:
    return JournalEntry(seq=0, at_unix_ns=int(at_s * 1e9), previous=None, host=HOST, event=event, **fields)


def serving(at_s: float, guest: str, **fields: Any) -> JournalEntry:
    return entry(Event.SERVING, at_s, process="web", guest=guest, **fields)


def spans(*entries: JournalEntry) -> list[tuple[str, float, float | None, str]]:
    found: list[Span] = timeline({HOST: chained(entries)})
    return [
        (span.guest, span.from_unix_ns / 1e9, span.to_unix_ns / 1e9 if span.to_unix_ns else None, span.ended)
        for span in found
    ]


# --- what ran when --------------------------------------------------------------------------------------------------


def test_a_swap_is_two_spans_that_overlap_while_the_old_version_drains() -> None:
    found = spans(
        serving(1, "g1"),
        serving(5, "g2"),
        entry(Event.DRAINED, 6, process="web", guest="g1"),
        entry(Event.ENDED, 7, process="web", guest="g1"),
    )
    assert found == [("g1", 1, 7, "ended"), ("g2", 5, None, "")]


def test_a_guest_that_exits_and_one_that_takes_its_place_are_two_spans() -> None:
    found = spans(serving(1, "g1"), entry(Event.EXITED, 3, process="web", guest="g1"), serving(4, "g2"))
    assert found == [("g1", 1, 3, "exited"), ("g2", 4, None, "")]


def test_a_version_that_never_served_is_no_span() -> None:
    spawned = entry(Event.SPAWNED, 1, process="web", guest="g1")
    ended = entry(Event.ENDED, 2, process="web", guest="g1")
    assert spans(spawned, ended) == []


def test_an_agent_that_finds_its_guest_serving_does_not_begin_another_span() -> None:
    assert spans(serving(1, "g1"), entry(Event.AGENT_STARTED, 2), serving(3, "g1")) == [("g1", 1, None, "")]


def test_a_resize_begins_a_span_of_the_same_guest_for_the_new_release() -> None:
    one, two = digest_of(b"one"), digest_of(b"two")
    entries = chained(
        [
            serving(1, "g1", spec=one, release=one, pid=7),
            entry(Event.CALL, 4, process="web", detail="resize", spec=two, release=two),
        ]
    )
    found = timeline({HOST: entries})
    assert [(span.spec, span.release, span.pid, span.to_unix_ns, span.ended) for span in found] == [
        (one, one, 7, 4_000_000_000, "resized"),
        (two, two, 7, None, ""),
    ]


def test_what_ran_at_an_instant_is_found_on_all_hosts_or_on_one() -> None:
    other = [msgspec.structs.replace(one, host="h2") for one in (serving(2, "g9"),)]
    found = timeline(
        {HOST: chained([serving(1, "g1"), entry(Event.ENDED, 3, process="web", guest="g1")]), "h2": chained(other)}
    )

    def guests(at_s: float, host: str | None = None) -> list[str]:
        return [span.guest for span in at(found, int(at_s * 1e9), host=host)]

    assert [guests(instant) for instant in (0.5, 1, 2.5, 3, 9)] == [[], ["g1"], ["g1", "g9"], ["g9"], ["g9"]]
    assert guests(2.5, "h2") == ["g9"]


# --- do the records hold together -----------------------------------------------------------------------------------


class Records:
    """A cloud with three releases of a process, and the journal of the host that carried them out."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.entries: list[JournalEntry] = [entry(Event.AGENT_STARTED, 1)]
        self.releases: list[Digest] = []
        self._running: Definition | None = None
        for args in ((), ("--two",), ()):
            self.release(
                msgspec.structs.replace(
                    BASE, process={"web": Process(binary=BLOBS[0], hosts=(HOST,), args=args)}, volume={}
                )
            )

    def release(self, definition: Definition) -> None:
        following = keep_definition(self.store, definition)
        current = keep_definition(self.store, self._running) if self._running else None
        observed = assume(self._running) if self._running else Observed({host: HostState() for host in definition.host})
        parent = self.releases[-1] if self.releases else None
        plan = make_plan("minimal", current, following, observed, from_release=parent)
        same = [link.digest for link in self.links() if link.release.definition == following.digest]
        release = Release(
            definition=following.digest,
            plan=self.store.put(plans.encode(plan)).digest,
            parent=parent,
            at_unix_ns=time.time_ns(),
            by="operator:ada",
            kind="rollback" if same else "apply",
            restores=same[0] if same else None,
        )
        self.releases.append(releases.publish(self.store, "prod", release).digest)
        self.carry_out(plan)
        self._running = definition

    def links(self) -> list[releases.Link]:
        return list(releases.chain(self.store, self.store.read_ref("prod")))

    def carry_out(self, plan: Plan) -> None:
        for number, step in enumerate(plan.steps()):
            assert step.spec is not None
            call = Envelope(step.call(), release=self.releases[-1], plan=plans.plan_digest(plan), by="operator:ada")
            facts = facts_of(step.spec, call)
            guest = f"g{len(self.entries)}-{number}"
            self.entries.append(entry(Event.CALL, len(self.entries), detail=step.kind, **facts))
            self.entries.append(entry(Event.SERVING, len(self.entries), guest=guest, **facts))

    def findings(self, entries: Sequence[JournalEntry] | None = None) -> tuple[Finding, ...]:
        return verify(self.store, {HOST: chained(self.entries) if entries is None else entries}).findings


def facts_of(spec: ProcessSpec, envelope: Envelope) -> dict[str, Any]:
    return {
        "process": spec.name,
        "spec": spec_digest(spec),
        "binary": spec.binary,
        "config": spec.config,
        "release": envelope.release,
        "plan": envelope.plan,
        "call": call_digest(envelope),
        "by": envelope.by,
    }


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    with Store.open(tmp_path / "store") as store:
        yield Records(store)


def test_sound_records_hold_together(records: Records) -> None:
    verified = verify(records.store, {HOST: chained(records.entries)})
    assert verified.findings == ()
    assert (verified.releases, verified.hosts, verified.entries) == (3, 1, len(records.entries))


def test_a_rollback_that_is_done_by_restart_keeps_its_plan(records: Records) -> None:
    last = records.entries[-1]
    restart = {**{field: getattr(last, field) for field in ("process", "spec", "binary", "config", "release", "plan")}}
    call = digest_of(b"a restart is no call of the plan")
    records.entries.append(entry(Event.CALL, 20, detail="restart", call=call, by="operator:bob", **restart))
    records.entries.append(entry(Event.SERVING, 21, guest="g9", call=call, by="operator:bob", **restart))
    assert records.findings() == ()


Tamper = Callable[[list[JournalEntry]], list[JournalEntry]]


def changed(seq: int, **fields: Any) -> Tamper:
    """The content of an entry changed, and nothing else."""

    def tamper(entries: list[JournalEntry]) -> list[JournalEntry]:
        return [msgspec.structs.replace(e, **fields) if e.seq == seq else e for e in entries]

    return tamper


def rehashed(seq: int, **fields: Any) -> Tamper:
    """The same, with a fitting hash of this entry, but not of those after it."""

    def tamper(entries: list[JournalEntry]) -> list[JournalEntry]:
        other = msgspec.structs.replace(entries[seq], **fields)
        return [*entries[:seq], msgspec.structs.replace(other, hash=entry_hash(other)), *entries[seq + 1 :]]

    return tamper


@pytest.mark.parametrize(
    ("tamper", "seq", "message"),
    [
        (changed(3, at_unix_ns=5), 3, "was changed"),
        (changed(3, by="operator:eve"), 3, "was changed"),
        (changed(3, binary=BLOBS[2]), 3, "was changed"),
        (rehashed(3, at_unix_ns=5), 4, "does not follow"),
        (lambda entries: entries[1:], 1, "entries 0 to 0 are missing"),
        (lambda entries: [*entries[:2], *entries[4:]], 4, "entries 2 to 3 are missing"),
        (lambda entries: [*entries[:2], entries[3], entries[2], *entries[4:]], 3, "missing"),
        (lambda entries: [*entries, entries[-1]], 6, "missing"),
        (changed(2, host="h2"), 2, "of host 'h2'"),
    ],
)
def test_a_journal_that_was_tampered_with_is_found_and_the_entry_named(
    records: Records, tamper: Tamper, seq: int, message: str
) -> None:
    findings = records.findings(tamper(chained(records.entries)))
    assert any(found.host == HOST and found.seq == seq and message in found.what for found in findings)
    assert all(f"host {HOST}, entry " in found.where for found in findings)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"call": digest_of(b"another call")}, "a call that is not in its plan"),
        ({"plan": digest_of(b"another plan")}, "not the plan of its release"),
        ({"release": digest_of(b"another release")}, "in no history"),
        ({"release": None}, "in no history"),
        ({"by": "operator:eve"}, "a call that is not in its plan"),
    ],
)
def test_a_call_that_no_plan_has_is_found_although_the_journal_is_sound(
    records: Records, fields: dict[str, Any], message: str
) -> None:
    records.entries[3] = msgspec.structs.replace(records.entries[3], **fields)
    (found,) = records.findings()
    assert (found.seq, message in found.what) == (3, True)


@pytest.mark.parametrize(
    "fields", [{"binary": BLOBS[2]}, {"config": {"/etc/x": BLOBS[1]}}, {"spec": BLOBS[1]}, {"process": "other"}]
)
def test_something_that_served_but_was_not_planned_is_found(records: Records, fields: dict[str, Any]) -> None:
    records.entries[4] = msgspec.structs.replace(records.entries[4], **fields)
    (found,) = records.findings()
    assert (found.seq, found.what.startswith("it served something that is not in its plan")) == (4, True)


def test_a_call_of_the_plan_on_another_host_is_found(records: Records) -> None:
    moved = chained([msgspec.structs.replace(one, host="h2") for one in records.entries])
    findings = verify(records.store, {"h2": moved}).findings
    assert {found.what.split(" that ")[0] for found in findings} == {"a call", "it served something"}


def forged(records: Records, **fields: Any) -> tuple[Finding, ...]:
    """The findings after a release that says something else than the truth."""
    newest = releases.read(records.store, records.releases[-1])
    made = msgspec.structs.replace(newest, parent=records.releases[-1], **fields)
    releases.publish(records.store, "prod", made)
    return records.findings()


def test_a_release_whose_plan_leads_elsewhere_is_found(records: Records) -> None:
    other = releases.read(records.store, records.releases[1])
    found = forged(records, definition=other.definition, restores=None, kind="apply")
    assert "leads to definition" in found[0].what
    assert "starts at another release" in found[1].what


def test_a_plan_whose_calls_do_not_bring_about_its_definition_is_found(records: Records) -> None:
    newest = releases.read(records.store, records.releases[-1])
    of_newest = plans.decode(records.store.read(newest.plan))
    altered = msgspec.structs.replace(of_newest, stages=(), from_release=records.releases[-1])
    found = forged(records, plan=records.store.put(plans.encode(altered)).digest)
    assert [one.what.split(":")[0] for one in found] == ["its plan is not one to its definition"]
    assert HOST in found[0].what


def test_a_rollback_that_does_not_restore_what_it_says_is_found(records: Records) -> None:
    assert any("another definition" in found.what for found in forged(records, restores=records.releases[1]))


def test_a_plan_or_a_definition_that_is_missing_is_found(records: Records) -> None:
    missing = digest_of(b"missing")
    whats = [found.what for found in forged(records, plan=missing, definition=missing, restores=None)]
    assert any("its plan cannot be read" in what for what in whats)
    assert any("its definition cannot be read" in what for what in whats)


def test_a_history_that_breaks_off_is_found(records: Records) -> None:
    newest = releases.read(records.store, records.releases[-1])
    lost = digest_of(b"lost")
    made = msgspec.structs.replace(newest, parent=lost)
    digest = records.store.put(releases.encode(made)).digest
    records.store.move_ref("prod", records.releases[-1], digest)
    findings = verify(records.store, {}).findings
    assert any(found.release == lost and "cannot be read from here" in found.what for found in findings)
