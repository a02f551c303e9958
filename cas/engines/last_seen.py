"""The local copy of shared refs: where each was when it was last seen, for reading when the engine does not answer.

One small file, replaced whole, for one engine: a copy of another engine's refs counts for nothing. It is a convenience
and never a reason to write: a copy that a crash has spoiled is taken for none.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, Protocol

import msgspec

from cas.digest import Digest
from cas.engines.errors import EngineUnreachable
from cas.interface import RefStore

MAX_FILE_BYTES: Final = 4 << 20
RENEW_S: Final = 60.0
"""What has not changed is written again after so long, so that its age is true to a minute."""


class Seen(msgspec.Struct, frozen=True):
    to: Digest | None
    at_unix_s: Annotated[float, msgspec.Meta(ge=0)]


class LastSeenFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    engine: str
    format: Literal["lowcloud-last-seen"] = "lowcloud-last-seen"
    version: Literal[1] = 1
    refs: dict[str, Seen] = {}


class LastSeen:
    """What is remembered of one engine's refs in one file."""

    def __init__(self, path: Path, engine: str, *, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._engine = engine
        self._clock = clock

    def remember(self, found: Mapping[str, Digest | None]) -> None:
        """Never fails: what cannot be remembered is not."""
        refs = self.recall()
        now = self._clock()
        fresh = {
            name: Seen(to, now)
            for name, to in found.items()
            if name not in refs or refs[name].to != to or not 0 <= now - refs[name].at_unix_s < RENEW_S
        }
        if fresh:
            with contextlib.suppress(OSError):
                self._write(refs | fresh)

    def recall(self) -> dict[str, Seen]:
        try:
            with self._path.open("rb") as file:
                held = msgspec.json.decode(file.read(MAX_FILE_BYTES), type=LastSeenFile)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return {}
        return dict(held.refs) if held.engine == self._engine else {}

    def age_s(self, seen: Seen) -> float:
        return max(0.0, self._clock() - seen.at_unix_s)

    def _write(self, refs: dict[str, Seen]) -> None:
        beside = self._path.with_name(f".{self._path.name}.{os.urandom(4).hex()}")
        try:
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.encode(LastSeenFile(self._engine, refs=refs)))
            beside.replace(self._path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


class WatchedRefs(RefStore, Protocol):
    """Refs that tell when they move."""

    def watch(self, name: str) -> Iterator[Digest | None]:
        """Where a ref is, and then again each time it has moved. Does not end."""
        ...


class RememberedRefs:
    """Shared refs that can still be read when their engine does not answer: as they were last seen, and `tell` is told
    so with the error and the age in seconds. Implements `WatchedRefs`; writing is always the engine's own."""

    def __init__(
        self, engine: WatchedRefs, seen: LastSeen, *, tell: Callable[[EngineUnreachable, float], None]
    ) -> None:
        self.engine = engine
        self._seen = seen
        self._tell = tell

    def read_ref(self, name: str) -> Digest | None:
        """Raises EngineUnreachable where the ref was never seen before."""
        try:
            found = self.engine.read_ref(name)
        except EngineUnreachable as error:
            seen = self._seen.recall().get(name)
            if seen is None:
                raise
            self._tell(error, self._seen.age_s(seen))
            return seen.to
        self._seen.remember({name: found})
        return found

    def refs(self) -> dict[str, Digest]:
        """Raises EngineUnreachable where none was ever seen."""
        try:
            found = self.engine.refs()
        except EngineUnreachable as error:
            seen = self._seen.recall()
            if not seen:
                raise
            self._tell(error, max(map(self._seen.age_s, seen.values())))
            return {name: one.to for name, one in seen.items() if one.to is not None}
        self._seen.remember(found)
        return found

    def move_ref(self, name: str, expected: Digest | None, to: Digest | None) -> None:
        self.engine.move_ref(name, expected, to)
        self._seen.remember({name: to})

    def watch(self, name: str) -> Iterator[Digest | None]:
        for found in self.engine.watch(name):
            self._seen.remember({name: found})
            yield found
