"""What a host keeps so that it can roll back with no one in reach. Pure: journal entries in, blobs out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from agent.api.journal import Event, JournalEntry
from cas.digest import Digest

STOP: Final = "stop"
"""What the journal calls the announcement of a stop."""


def blobs_of_last_releases(entries: Iterable[JournalEntry], keep: int) -> set[Digest]:
    """The binaries, configurations and sealed secrets that served under any of the last `keep` releases.

    A process that a release did not touch goes on serving under it. So what counts is everything that served since the
    oldest of these releases first made something serve, and what served at that instant. The release that is current
    comes on top of `keep`.
    """
    serving: dict[str, set[Digest]] = {}
    releases: dict[Digest, set[Digest]] = {}
    latest: Digest | None = None
    for entry in entries:
        if entry.event is Event.CALL and entry.detail == STOP:
            serving.pop(entry.process, None)
        if entry.event is not Event.SERVING or entry.binary is None:
            continue
        serving[entry.process] = {entry.binary, *entry.config.values(), *entry.secrets.values()}
        if entry.release is not None and entry.release != latest:
            latest = entry.release
            releases.pop(latest, None)  # it comes again as the newest
            releases[latest] = set().union(*serving.values())
        elif latest is not None:
            releases[latest] |= serving[entry.process]
    kept = list(releases.values())[-(keep + 1) :] if keep > 0 else []
    return set().union(*kept)
