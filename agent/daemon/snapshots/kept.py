"""The last snapshots of a volume that a host keeps, so that the next one costs only what is new: `<volume>/snapshots`.

They are protected from the host's collection. Whoever wants a snapshot for longer, or elsewhere, takes its blobs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from agent.api.answers import SnapshotFacts
from agent.daemon.durable import FileDamaged, seal, unseal, write_file
from cas.digest import Digest
from cas.errors import CasError
from cas.interface import BlobStore
from cas.tree import blobs_of, reader

FILE: Final = "snapshots"
MEMORY: Final = "seen"
"""What the last snapshot saw (`agent.daemon.snapshots.looking`)."""
MAGIC: Final = b"lcsnaps\0"
VERSION: Final = 1
KEPT: Final = 3

_log = logging.getLogger(__name__)


class Kept(msgspec.Struct, frozen=True):
    nonce: str
    facts: SnapshotFacts


def load(home: Path) -> list[Kept]:
    """The newest last. A damaged list is an empty one: the next snapshot then costs more."""
    try:
        return msgspec.msgpack.decode(unseal(home / FILE, MAGIC, VERSION), type=list[Kept])
    except (OSError, FileDamaged, msgspec.MsgspecError):
        return []


def add(home: Path, kept: Kept) -> None:
    """Durable when this returns. Raises OSError."""
    last = [*load(home), kept][-KEPT:]
    write_file(home / FILE, seal(MAGIC, VERSION, msgspec.msgpack.encode(last)))


def protected(store: BlobStore, snapshots: Iterable[Digest]) -> set[Digest]:
    """What a collection must leave of these; one that is not whole any more protects nothing."""
    found: set[Digest] = set()
    for snapshot in snapshots:
        try:
            found |= blobs_of(snapshot, reader(store))
        except CasError as error:
            _log.warning("the snapshot %s is not kept: %s", snapshot, error)
    return found
