"""The snapshots of volumes that a cloud keeps, and where they are found: `snapshot/HISTORY/VOLUME/DIGEST` names each.

A host keeps the last few for itself; what shall outlive the host is here, named by a ref, so that no collection removes
it and everybody who shares the refs sees it. A snapshot is not part of a history: it says what a program had written,
not what should run.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from cas.digest import PREFIX, Digest, abbreviation
from cas.errors import AmbiguousDigest
from cas.interface import BlobStore
from cas.tree import Snapshot, blobs_of, decode_snapshot, reader
from deployer.errors import BadInput, DeployerError
from deployer.history.release import ReleaseStore

SPACE: Final = "snapshot/"
"""How the refs of snapshots begin. A history's name has no slash."""


class NoSuchSnapshot(DeployerError):
    hint = "`lowcloud volume snapshots` lists them"


class Named(NamedTuple):
    """A snapshot with its name."""

    digest: Digest
    snapshot: Snapshot


class Snapshots:
    """The snapshots of one history (`prod`, or an overlay's name)."""

    def __init__(self, store: ReleaseStore, history: str) -> None:
        self._store = store
        self._history = history

    def every(self, volume: str | None = None) -> list[Named]:
        """All of them, or one volume's, the newest first. Raises BlobMissing, BlobDamaged, TreeInvalid."""
        start = f"{SPACE}{self._history}/{volume}/" if volume else f"{SPACE}{self._history}/"
        found = [
            Named(digest, self.read(digest)) for ref, digest in self._store.refs().items() if ref.startswith(start)
        ]
        return sorted(found, key=lambda one: (-one.snapshot.at_unix_ns, one.digest))

    def find(self, text: str) -> Named:
        """The one whose digest starts so, or the newest of the volume that is called so. Raises NoSuchSnapshot,
        AmbiguousDigest, and as `every`."""
        hexadecimal = abbreviation(text)
        if hexadecimal is None:
            found = self.every(text)
            if not found:
                raise NoSuchSnapshot(f"no snapshot of a volume {text!r}")
            return found[0]
        fitting = {
            digest
            for ref, digest in self._store.refs().items()
            if ref.startswith(f"{SPACE}{self._history}/") and digest.startswith(PREFIX + hexadecimal)
        }
        if len(fitting) > 1:
            raise AmbiguousDigest(text, len(fitting))
        if not fitting:
            raise NoSuchSnapshot(f"no snapshot {text!r}")
        digest = fitting.pop()
        return Named(digest, self.read(digest))

    def read(self, digest: Digest) -> Snapshot:
        """Raises BlobMissing, BlobDamaged, TreeInvalid."""
        return decode_snapshot(reader(self._store)(digest))

    def name(self, digest: Digest) -> None:
        """Keep a snapshot, all of which is in the store. Raises RefMoved, and as `read`."""
        ref = self._ref(digest)
        if self._store.read_ref(ref) != digest:
            self._store.move_ref(ref, None, digest)

    def forget(self, digest: Digest) -> None:
        """Keep it no longer: the next collection removes what nothing else needs. Raises RefMoved, and as `read`."""
        self._store.move_ref(self._ref(digest), digest, None)

    def _ref(self, digest: Digest) -> str:
        return f"{SPACE}{self._history}/{self.read(digest).volume}/{digest.removeprefix(PREFIX)}"


def is_of_snapshot(ref: str) -> bool:
    return ref.startswith(SPACE)


def needs_of(store: BlobStore, snapshot: Digest) -> set[Digest]:
    """Every blob that restoring a snapshot takes. Raises BlobMissing, BlobDamaged, TreeInvalid."""
    return blobs_of(snapshot, reader(store))


def refuse_small(snapshot: Snapshot, size_bytes: int) -> None:
    """Raises BadInput where a volume of this size cannot hold it."""
    if snapshot.data_bytes > size_bytes:
        raise BadInput(
            f"the snapshot has {snapshot.data_bytes} bytes, the volume would have {size_bytes}",
            hint=f"the volume that it was taken of had {snapshot.size_bytes} bytes",
        )
