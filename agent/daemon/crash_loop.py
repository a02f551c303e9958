"""Starts of a process that come to nothing, in a row: counted durably, and where its host gives up. Pure.

A start counts when its guest ended by itself before it had run well for a while (`GOOD_RUN_S`), or never became ready.
The count outlives the agent, or one that is itself started again and again would never see a limit. It does not outlive
the machine's own restart, which changes what the program finds: what was given up then gets its starts anew. A call
that brings a version up begins anew as well.

What only this host lacks (a blob, a volume) is no version's fault and does not count.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET

from agent.api.facts import Troubles
from agent.daemon.backoff import GOOD_RUN_S
from agent.daemon.state import Finished, Record


def failed(
    record: Record, last: str, *, ran_s: float = 0.0, exit_code: int | None = None, now_unix: float, boot: str
) -> Record:
    """The record after a start whose guest ran for `ran_s`; `last` says what came of it."""
    if ran_s >= GOOD_RUN_S:
        return forgiven(record)
    before = record.troubles.starts if record.troubles is not UNSET else 0
    troubles = Troubles(starts=before + 1, last=last, at_unix=now_unix, exit_code=exit_code)
    return msgspec.structs.replace(record, troubles=troubles, boot=boot)


def forgiven(record: Record) -> Record:
    """The record after a good run, or where a call begins anew."""
    return msgspec.structs.replace(record, troubles=UNSET, boot=UNSET)


def gives_up(record: Record) -> bool:
    """Is the limit of starts in a row reached?"""
    limit = record.current.spec.restart_limit if record.current else UNSET
    return limit is not UNSET and record.troubles is not UNSET and record.troubles.starts >= limit


def given_up(record: Record) -> Record:
    """The record once its host has given up."""
    troubles = record.troubles
    if troubles is UNSET:
        return record
    code = troubles.exit_code if troubles.exit_code is not None else 1
    finished = Finished(exit_code=code, reason=troubles.last, at_unix=troubles.at_unix, given_up=True)
    return msgspec.structs.replace(record, finished=finished)


def taken_up(record: Record) -> Record:
    """The record with what was given up to be started again, where its limit now allows that."""
    if record.finished is None or not record.finished.is_given_up or gives_up(record):
        return record
    return msgspec.structs.replace(record, finished=None)


def since_boot(record: Record, boot: str) -> Record:
    """The record without what was counted before this machine's last restart."""
    return record if record.boot in (UNSET, boot) else taken_up(forgiven(record))


def told(record: Record) -> str:
    """The last start and how many there were, as a sentence."""
    troubles = record.troubles
    if troubles is UNSET:
        return ""
    if record.finished is not None and record.finished.is_given_up:
        starts = "start" if troubles.starts == 1 else "starts in a row"
        return (
            f"given up after {troubles.starts} {starts} without a good run, the last: {troubles.last}; "
            "`lowcloud restart` begins anew"
        )
    return f"{troubles.last}; {troubles.starts} starts in a row" if troubles.starts > 1 else troubles.last
