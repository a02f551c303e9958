"""What ran where and when, in whose name, from the hosts' journals and the release history; and whether these hold
together.

A journal entry names the hash of the one before it, a call's entry the plan and the release it belongs to, a release
its plan, its definition and its parent, each by hash. So from a release's name everything under it can be checked, and
from a journal's last hash everything the host ever ran. What a host does not write down, or forges from the start,
cannot be found (signed journal heads would be needed for that); what was changed, left out or put in later can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from agent.api.journal import Event, JournalEntry
from cas.digest import Digest

if TYPE_CHECKING:
    from agent.client.client import AgentClient
    from deployer.applying.fleet import Answers, Fleet

PAGE_ENTRIES: Final = 5000
MAX_ENTRIES: Final = 5_000_000
"""Of one host; more is refused rather than read into memory."""
RESIZE: Final = "resize"
"""What a host writes for a call that changes a process without a new guest."""


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """One guest serving one specification, from an instant to another."""

    host: str
    process: str
    guest: str
    pid: int | None
    binary: Digest | None
    config: dict[str, Digest]
    spec: Digest | None
    release: Digest | None
    plan: Digest | None
    by: str
    from_unix_ns: int
    to_unix_ns: int | None = None
    """None: it serves still, as far as the journal tells."""
    ended: str = ""
    """How it ended: `ended`, `exited`, `resized`, or `reloaded` (the same guest goes on with other files)."""


Journals = Mapping[str, Sequence[JournalEntry]]
"""Every entry of each host, oldest first."""


# --- reading journals -----------------------------------------------------------------------------------------------


async def journals(fleet: Fleet) -> Answers[list[JournalEntry]]:
    """The whole journal of every host. Hosts that do not answer are among the failures."""
    return await fleet.each(fleet.hosts, _journal)


async def _journal(client: AgentClient) -> list[JournalEntry]:
    from agent.client.errors import BadAnswer

    entries: list[JournalEntry] = []
    while page := await client.journal(entries[-1].seq if entries else -1, limit=PAGE_ENTRIES):
        if entries and page[0].seq <= entries[-1].seq:
            raise BadAnswer(f"{client.host_name} gave entry {page[0].seq} of its journal twice")
        entries += page
        if len(entries) > MAX_ENTRIES:
            raise BadAnswer(f"the journal of {client.host_name} has more than {MAX_ENTRIES} entries")
    return entries


# --- what ran -------------------------------------------------------------------------------------------------------


def timeline(entries_by_host: Journals) -> list[Span]:
    """What served when, in order of the beginnings. Two guests of one process overlap while the older one drains."""
    spans = [span for entries in entries_by_host.values() for span in _spans(entries)]
    return sorted(spans, key=lambda span: (span.from_unix_ns, span.host, span.process, span.guest))


def at(spans: Sequence[Span], time_unix_ns: int, *, host: str | None = None) -> list[Span]:
    """What served at an instant."""
    return [
        span
        for span in spans
        if (host is None or span.host == host)
        and span.from_unix_ns <= time_unix_ns
        and (span.to_unix_ns is None or time_unix_ns < span.to_unix_ns)
    ]


def _spans(entries: Sequence[JournalEntry]) -> list[Span]:
    done: list[Span] = []
    serving: dict[tuple[str, str], Span] = {}
    for entry in entries:
        key = (entry.process, entry.guest)
        match entry.event:
            case Event.SERVING if key not in serving:
                serving[key] = _span(entry)
            case Event.SERVING if serving[key].config != entry.config:
                done.append(_closed(serving[key], entry, "reloaded"))
                serving[key] = _span(entry)
            case Event.ENDED | Event.EXITED if key in serving:
                done.append(_closed(serving.pop(key), entry, str(entry.event)))
            case Event.CALL if entry.detail == RESIZE:
                for other in [k for k, span in serving.items() if k[0] == entry.process and span.spec != entry.spec]:
                    done.append(_closed(serving[other], entry, "resized"))
                    serving[other] = _resized(serving[other], entry)
    return done + list(serving.values())


def _span(entry: JournalEntry) -> Span:
    return Span(
        host=entry.host,
        process=entry.process,
        guest=entry.guest,
        pid=entry.pid,
        binary=entry.binary,
        config=entry.config,
        spec=entry.spec,
        release=entry.release,
        plan=entry.plan,
        by=entry.by,
        from_unix_ns=entry.at_unix_ns,
    )


def _closed(span: Span, entry: JournalEntry, how: str) -> Span:
    return msgspec.structs.replace(span, to_unix_ns=entry.at_unix_ns, ended=how)


def _resized(span: Span, entry: JournalEntry) -> Span:
    return msgspec.structs.replace(
        span,
        spec=entry.spec,
        release=entry.release,
        plan=entry.plan,
        by=entry.by,
        from_unix_ns=entry.at_unix_ns,
        to_unix_ns=None,
    )
