"""What this host is to run, durably, and how far each change of it has come.

One sealed file per process (`<state>/processes/NAME`) holds its `Record`. It is written before anything acts on it, so
an agent that is killed at any instant finds in it what to finish and what to undo (`agent.daemon.recovery` decides):

- `current` is the version that runs or must run. It is the truth of this host.
- `pending` is a version that wants to take over. While its phase is `starting` it is undone after a crash; in the phase
  `flipping` it had shown that it is ready, and takes over if its guest still lives.
- `retiring` are guests that serve no longer (or died): drained, killed and forgotten once a successor serves.
- `probation` is set while `current` has to show itself: if it fails, the version that it names is `current` again.
- `stopping` is set by a stop before the first guest is touched: after a crash the stop is finished.

A guest's name is recorded before the guest is started, so no guest runs that no record knows.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from agent.api.base import ProcessName, Struct
from agent.api.facts import Troubles
from agent.api.processes import ProcessSpec, spec_digest
from agent.daemon.durable import FileDamaged, is_aside, remove_file, seal, set_aside, unseal, write_file
from agent.runtime import GuestId
from cas.digest import Digest

MAGIC: Final = b"lcprocess"
VERSION: Final = 1

_log = logging.getLogger(__name__)


class Version(Struct, frozen=True):
    """A specification, in whose name it came, and the guest that runs it."""

    spec: ProcessSpec
    release: Digest | None = None
    plan: Digest | None = None
    call: Digest | None = None
    by: str = ""
    guest: GuestId | None = None

    @property
    def digest(self) -> Digest:
        return spec_digest(self.spec)


class Pending(Struct, frozen=True):
    version: Version
    phase: Literal["starting", "flipping"] = "starting"
    nonce: str = ""
    """Of the restart that this is."""


class Retiring(Struct, frozen=True):
    version: Version
    """Its `guest` is the one to end."""
    until_unix: float
    """When its connections are cut."""


class Finished(Struct, frozen=True):
    """A guest that ended by itself and whose restart rule leaves it so; or, given up, one that could not be brought to
    run within its limit of starts."""

    exit_code: int
    reason: str
    at_unix: float
    given_up: bool | UnsetType = UNSET

    @property
    def is_given_up(self) -> bool:
        return self.given_up is True


class Probation(Struct, frozen=True):
    """`current` has taken over and is watched. Removed when it has stood that; as long as it is here, a failure brings
    `was` back, however late it is noticed."""

    was: Version
    """The last version that was not on probation itself. It has no guest."""
    until_unix: float


class Record(Struct, frozen=True):
    """Everything durable about one process."""

    process: ProcessName
    current: Version | None = None
    pending: Pending | None = None
    retiring: tuple[Retiring, ...] = ()
    stopping: bool = False
    finished: Finished | None = None
    restarts: Annotated[int, Meta(ge=0)] = 0
    nonce: str = ""
    """Of the last restart that was asked for and done."""
    probation: Probation | UnsetType = UNSET
    """Not written where there is none, so that files of before are as they were."""
    troubles: Troubles | UnsetType = UNSET
    """Starts in a row that came to nothing (`agent.daemon.crash_loop`); not written where there are none."""
    boot: str | UnsetType = UNSET
    """In which run of this machine they were counted."""

    @property
    def watched(self) -> Probation | None:
        return None if self.probation is UNSET else self.probation

    @property
    def empty(self) -> bool:
        return self.current is None and self.pending is None and not self.retiring

    def versions(self) -> list[Version]:
        """Every version that this record names."""
        found = [
            self.current,
            self.pending.version if self.pending else None,
            *(retiring.version for retiring in self.retiring),
            self.watched.was if self.watched else None,
        ]
        return [version for version in found if version is not None]

    def guests(self) -> set[GuestId]:
        """Every guest that this record knows."""
        return {version.guest for version in self.versions() if version.guest is not None}


class State:
    """The records of a host, on disk. Its methods block until the disk has them; call them in a thread. Records of
    different processes may be saved side by side."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load(self) -> dict[str, Record]:
        """Every record by process. What is none, or is damaged, is set aside with a warning."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        records: dict[str, Record] = {}
        for path in sorted(self._directory.iterdir()):
            if path.name.startswith(".") or is_aside(path):
                continue
            try:
                records[path.name] = self._read(path)
            except FileDamaged as error:
                aside = set_aside(path)
                _log.error("%s; set aside as %s; if it was a process, start it anew", error, aside.name)
        return records

    def save(self, record: Record) -> None:
        """Durable when it returns. A record that holds nothing is removed."""
        path = self._directory / record.process
        if record.empty:
            remove_file(path)
        else:
            write_file(path, seal(MAGIC, VERSION, msgspec.msgpack.encode(record)))

    def _read(self, path: Path) -> Record:
        if not path.is_file():
            raise FileDamaged(path, "is no file, so no process record")
        try:
            record = msgspec.msgpack.decode(unseal(path, MAGIC, VERSION), type=Record)
        except msgspec.MsgspecError as error:
            raise FileDamaged(path, f"holds no process record: {error}") from error
        if record.process != path.name:
            raise FileDamaged(path, f"is the record of {record.process}")
        return record
