"""Do the records hold together? Every link of every chain is checked again, from the bytes.

Of the history: each release can be read, and its plan and definition too; the plan leads from its parent's definition
to its own, by calls that bring about what this says; a rollback names what it restores and has that very definition.
Of each journal: no entry changed, missing or put in between. Of both: every call that a host carried out in a plan's
name is a call of that plan for that host, made for the release that the plan belongs to, and what served is what the
plan says. A signature that a release names is one of that very plan, by the operator it names, in a certificate of
this cloud that was valid then.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from agent.api.journal import Event, JournalEntry, entry_hash
from agent.api.processes import ProcessSpec, spec_digest
from cas.digest import Digest, short
from cas.errors import CasError
from deployer.errors import DeployerError, PlanAltered
from deployer.history import release
from deployer.history.audit import Journals
from deployer.history.release import Link, Release, ReleaseStore
from deployer.language.schema import Definition
from deployer.planning import plan, signing
from deployer.planning.plan import Plan
from deployer.planning.planners import require_true
from deployer.resolving import canonical

RESTART = "restart"
"""What a host writes for a call that runs the same specification again: it needs no plan, and keeps the one of the
specification."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that does not hold, and the record that shows it."""

    where: str
    """`release b3:…` or `host fra1, entry 12`."""
    what: str
    host: str | None = None
    seq: int | None = None
    release: Digest | None = None


class Verified(msgspec.Struct, frozen=True):
    """What was looked at, and what was found wrong."""

    releases: int
    hosts: int
    entries: int
    findings: tuple[Finding, ...]


class _Record(msgspec.Struct, frozen=True):
    release: Release
    plan: Plan | None


def verify(store: ReleaseStore, journals: Journals, authority: Path | None = None) -> Verified:
    """Check the histories of all refs and these journals. `authority`: the cloud's `ca.pem`; without it, signatures are
    not looked at."""
    records: dict[Digest, _Record] = {}
    findings: list[Finding] = []
    for name, start in sorted(store.refs().items()):
        if not release.is_history(name):
            continue
        findings += _history(store, name, start, records, authority)
    for host, entries in sorted(journals.items()):
        findings += _chain(host, entries)
        findings += _calls(host, entries, records)
    return Verified(len(records), len(journals), sum(len(entries) for entries in journals.values()), tuple(findings))


# --- releases -------------------------------------------------------------------------------------------------------


def _history(
    store: ReleaseStore, ref: str, start: Digest, records: dict[Digest, _Record], authority: Path | None
) -> Iterator[Finding]:
    last = start
    try:
        for link in release.chain(store, start):
            if link.digest in records:
                return
            last = link.release.parent or link.digest
            yield from _release(store, link, records)
            if authority is not None:
                yield from _signature(store, link, authority)
    except (CasError, DeployerError) as error:
        yield Finding(
            f"release {short(last)}", f"the history of {ref!r} cannot be read from here: {error}", release=last
        )


def _release(store: ReleaseStore, link: Link, records: dict[Digest, _Record]) -> Iterator[Finding]:
    made, where = link.release, f"release {short(link.digest)}"

    def finding(what: str) -> Finding:
        return Finding(where, what, release=link.digest)

    of_release: Plan | None = None
    try:
        of_release = plan.decode(store.read(made.plan))
    except (CasError, DeployerError) as error:
        yield finding(f"its plan cannot be read: {error}")
    records[link.digest] = _Record(made, of_release)
    definition: Definition | None = None
    try:
        definition = canonical.decode(store.read(made.definition))
    except (CasError, DeployerError) as error:
        yield finding(f"its definition cannot be read: {error}")
    if of_release is not None and of_release.definition != made.definition:
        yield finding(f"its plan leads to definition {short(of_release.definition)}, not to {short(made.definition)}")
    elif of_release is not None and definition is not None:
        try:
            require_true(of_release, definition)
        except PlanAltered as error:
            yield finding(f"its plan is not one to its definition: {error}")
    if of_release is not None and of_release.from_release != made.parent:
        yield finding("its plan starts at another release than its parent")
    if made.restores is not None:
        try:
            restored = release.read(store, made.restores)
        except (CasError, DeployerError) as error:
            yield finding(f"the release that it restores cannot be read: {error}")
        else:
            if restored.definition != made.definition:
                yield finding(f"it says that it restores {short(made.restores)}, but has another definition")


def _signature(store: ReleaseStore, link: Link, authority: Path) -> Iterator[Finding]:
    made, where = link.release, f"release {short(link.digest)}"
    if made.signed is None:
        if made.signed_by:
            yield Finding(where, f"it says that {made.signed_by} signed, and names no signature", release=link.digest)
        return
    at = datetime.datetime.fromtimestamp(made.at_unix_ns / 1e9, datetime.UTC)
    try:
        of_plan, who = signing.verify(store.read(made.signed), authority, now=at)
    except (CasError, DeployerError) as error:
        yield Finding(where, f"its signature does not count: {error}", release=link.digest)
        return
    if plan.plan_digest(of_plan) != made.plan:
        yield Finding(where, "its signature is of another plan", release=link.digest)
    if who != made.signed_by:
        yield Finding(where, f"{who} signed its plan, not {made.signed_by or 'nobody'}", release=link.digest)


# --- journals -------------------------------------------------------------------------------------------------------


def _chain(host: str, entries: Sequence[JournalEntry]) -> Iterator[Finding]:
    previous: JournalEntry | None = None
    for entry in entries:
        expected_seq = previous.seq + 1 if previous else 0
        if entry.seq != expected_seq:
            yield _at(entry, host, f"entries {expected_seq} to {entry.seq - 1} are missing before it")
        elif entry.previous != (previous.hash if previous else None):
            yield _at(entry, host, "it does not follow the entry before it: one of the two was changed or put in")
        if entry_hash(entry) != entry.hash:
            yield _at(entry, host, "its content is not what its hash says: it was changed")
        if entry.host != host:
            yield _at(entry, host, f"it is of host {entry.host!r}")
        previous = entry


def _calls(host: str, entries: Sequence[JournalEntry], records: dict[Digest, _Record]) -> Iterator[Finding]:
    known: dict[tuple[Digest, str], _Planned] = {}
    for entry in entries:
        if entry.plan is None or entry.event not in (Event.CALL, Event.SERVING):
            continue
        record = records.get(entry.release) if entry.release else None
        if record is None or entry.release is None:
            yield _at(entry, host, f"it is for release {_name(entry.release)}, which is in no history of this cloud")
        elif record.release.plan != entry.plan:
            yield _at(entry, host, f"it is of plan {short(entry.plan)}, which is not the plan of its release")
        elif record.plan is not None:
            key = (entry.release, entry.by)
            if key not in known:
                known[key] = _planned(record.plan, host, entry.plan, entry.release, entry.by)
            what = _unplanned(entry, known[key])
            if what:
                yield _at(entry, host, f"{what} that is not in its plan {short(entry.plan)}")


class _Planned(msgspec.Struct, frozen=True):
    """What a plan says about one host."""

    calls: frozenset[Digest]
    specs: dict[Digest, ProcessSpec]


def _planned(of_release: Plan, host: str, plan_name: Digest, release_name: Digest, by: str) -> _Planned:
    specs = (step.spec for step in of_release.steps() if step.host == host and step.spec is not None)
    return _Planned(
        plan.call_digests(of_release, host, plan_name=plan_name, release=release_name, by=by),
        {spec_digest(spec): spec for spec in specs},
    )


def _unplanned(entry: JournalEntry, planned: _Planned) -> str:
    """What about an entry is not as planned; empty where all is. A restart is not in the plan, but what it runs is."""
    spec = planned.specs.get(entry.spec or "")
    runs_as_planned = (
        spec is not None
        and (entry.process, entry.binary) == (spec.name, spec.binary)
        and (entry.config, entry.secrets) == (spec.config, spec.secrets)
    )
    if entry.event is Event.SERVING or entry.detail == RESTART:
        return "" if runs_as_planned else "it served something"
    return "" if entry.call in planned.calls else "a call"


def _at(entry: JournalEntry, host: str, what: str) -> Finding:
    return Finding(f"host {host}, entry {entry.seq}", what, host=host, seq=entry.seq, release=entry.release)


def _name(digest: Digest | None) -> str:
    return short(digest) if digest else "none"
