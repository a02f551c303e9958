"""The LMDB environment under a store: opening, sharing within the process, and turning LMDB's errors into ours.

LMDB allows one environment per directory and process, so stores that are open on the same directory share one, counted.
Readers take short transactions and copy what they return: a `memoryview` never leaves its transaction, and no
transaction outlives a call, so no stale reader keeps old pages alive. All writing is done by `cas.writer`.

A store's directory (mode 0700) holds `data.mdb` and `lock.mdb` of LMDB and the lock files of `cas.lockfile` (0600).
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmdb

from cas.errors import CasError, StoreBusy, StoreFull, StoreUnreadable

if TYPE_CHECKING:
    from cas.writer import Writer

FORMAT = b"lowcloud-store"
FORMAT_VERSION = 1
MAP_SIZE_BYTES = 1 << 40
"""Address space, not disk: the file is sparse and grows as blobs arrive."""
MAX_READERS = 1024
FULL_BYTES = 4 << 20
"""A disk with less space than this counts as full where a write was cut short."""
DATABASES = (
    "meta",
    "blobs",
    "records",
    "packs",
    "pending",
    "names",
    "leases",
    "pins",
    "refs",
    "touched",
    "sketches",
    "patches",
    "begun",
)
ADDED = ("sketches", "patches", "begun")
"""Databases that the first stores of this version do not have; they are made when such a store is opened."""

_FORMAT_KEY = b"format"
_VERSION = struct.Struct("<H")


class Environment:
    """One open LMDB environment and the writer that belongs to it."""

    def __init__(self, path: Path, env: lmdb.Environment, dbs: dict[str, Any]) -> None:
        self.path = path
        self.lmdb = env
        self.pid = os.getpid()
        self.users = 1
        self.writer: Writer | None = None
        self.writer_lock = threading.Lock()
        self.collect_lock = threading.Lock()
        self.repack_lock = threading.Lock()
        self.meta = dbs["meta"]
        self.blobs = dbs["blobs"]
        self.records = dbs["records"]
        self.packs = dbs["packs"]
        self.pending = dbs["pending"]
        self.names = dbs["names"]
        self.leases = dbs["leases"]
        self.pins = dbs["pins"]
        self.refs = dbs["refs"]
        self.touched = dbs["touched"]
        self.sketches = dbs["sketches"]
        self.patches = dbs["patches"]
        self.begun = dbs["begun"]

    @contextmanager
    def reading(self) -> Iterator[lmdb.Transaction[memoryview]]:
        """A read transaction; what it gives out is invalid behind the `with`."""
        txn = self.begin_reading()
        try:
            yield txn
        except lmdb.Error as error:
            raise translated(error, self.path) from error
        finally:
            txn.abort()

    @contextmanager
    def copying(self) -> Iterator[lmdb.Transaction[bytes]]:
        """A read transaction that gives out copies: the cheaper way to many small values."""
        self.refuse_forked()
        try:
            with self.lmdb.begin() as txn:
                yield txn
        except lmdb.ReadersFullError as error:
            raise self._busy() from error
        except lmdb.Error as error:
            raise translated(error, self.path) from error

    def begin_reading(self) -> lmdb.Transaction[memoryview]:
        self.refuse_forked()
        try:
            return self.lmdb.begin(buffers=True)
        except lmdb.ReadersFullError as error:
            raise self._busy() from error
        except lmdb.Error as error:
            raise translated(error, self.path) from error

    def _busy(self) -> StoreBusy:
        self.lmdb.reader_check()
        return StoreBusy(f"{MAX_READERS} readers have the store {self.path} open")

    def refuse_forked(self) -> None:
        if os.getpid() != self.pid:
            raise StoreUnreadable(
                f"the store {self.path} was opened before this process was forked",
                hint="open stores after forking, or start the process afresh",
            )

    def file_bytes(self) -> int:
        return (self.path / "data.mdb").stat().st_size

    def used_bytes(self) -> int:
        """Bytes of the pages that hold something. The rest of the file is free and will be used again."""
        with self.reading() as txn:
            pages = 0
            for name in DATABASES:
                stat = txn.stat(getattr(self, name))
                pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
            return pages * int(stat["psize"])


_open: dict[Path, Environment] = {}
_open_lock = threading.Lock()


def acquire(path: Path, *, create: bool) -> Environment:
    """Open a store's environment, or share the one this process has open. Raises StoreUnreadable."""
    where = path.resolve()
    with _open_lock:
        shared = _open.get(where)
        if shared is not None:
            shared.refuse_forked()
            shared.users += 1
            return shared
        environment = _open_new(where, create=create)
        _open[where] = environment
        return environment


def relinquish(environment: Environment) -> None:
    """Give a share back; the last one closes."""
    with _open_lock:
        environment.users -= 1
        if environment.users or environment.pid != os.getpid():
            return
        _open.pop(environment.path, None)
        if environment.writer is not None:
            environment.writer.close()
        environment.lmdb.close()


def translated(error: lmdb.Error, path: Path) -> CasError:
    """What an LMDB error means to a store's user."""
    code = getattr(error, "code", 0)
    full = code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or (code == errno.EIO and _disk_is_full(path))
    if full or isinstance(error, lmdb.MapFullError):
        return StoreFull(f"no room left to write to the store {path}: {error}")
    if isinstance(error, (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.PanicError, lmdb.InvalidError)):
        return StoreUnreadable(
            f"the structure of the store {path} is damaged: {error}",
            hint="move the directory away, make a new store and pull its blobs from a host that has them",
        )
    return StoreUnreadable(f"the store {path} failed: {error}", hint="look at the disk and at the system's log")


def _disk_is_full(path: Path) -> bool:
    """LMDB reports a write that was cut short, which is how a disk fills up, as an input/output error."""
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize < FULL_BYTES


def _open_new(path: Path, *, create: bool) -> Environment:
    try:
        exists = (path / "data.mdb").exists()
        if not exists and not create:
            raise StoreUnreadable(f"no store at {path}", hint="`lowcloud init` makes one")
        if not exists:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)
        env = lmdb.open(
            str(path),
            map_size=MAP_SIZE_BYTES,
            max_dbs=len(DATABASES) + 6,
            max_readers=MAX_READERS,
            mode=0o600,
            create=not exists,
        )
    except lmdb.Error as error:
        raise _refused(error, path) from error
    except PermissionError as error:
        raise _not_allowed(path) from error
    except OSError as error:
        raise StoreUnreadable(f"cannot open the store {path}: {error.strerror}") from error
    try:
        return Environment(path, env, _open_databases(env, path))
    except BaseException:
        env.close()
        raise


def _not_allowed(path: Path) -> StoreUnreadable:
    return StoreUnreadable(f"not allowed to open the store {path}", hint="look at the directory's owner and mode")


def _refused(error: lmdb.Error, path: Path) -> CasError:
    code = getattr(error, "code", 0)
    if isinstance(error, lmdb.MemoryError) or code == errno.ENOMEM:
        return StoreUnreadable(
            f"this process may not map the {MAP_SIZE_BYTES >> 30} GiB of address space of the store {path}",
            hint="raise the limit (`ulimit -v unlimited`); the store needs a 64-bit system",
        )
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return _not_allowed(path)
    if isinstance(error, (lmdb.InvalidError, lmdb.VersionMismatchError)):
        return StoreUnreadable(f"{path} holds no store that this version can read: {error}")
    return translated(error, path)


def _open_databases(env: lmdb.Environment, path: Path) -> dict[str, Any]:
    """Open what is inside. A new store gets everything in one transaction, so a crash leaves none or all of it."""
    try:
        with env.begin() as txn:
            fresh = env.stat()["entries"] == 0
        if fresh:
            with env.begin(write=True) as txn:
                dbs = {name: env.open_db(name.encode(), txn=txn) for name in DATABASES}
                if txn.get(_FORMAT_KEY, db=dbs["meta"]) is None:
                    txn.put(_FORMAT_KEY, FORMAT + _VERSION.pack(FORMAT_VERSION), db=dbs["meta"])
            return dbs
        meta = env.open_db(b"meta", create=False)
        with env.begin() as txn:
            _refuse_other_formats(txn.get(_FORMAT_KEY, db=meta), path)
        return {name: _open_database(env, name) for name in DATABASES}
    except lmdb.NotFoundError as error:
        raise StoreUnreadable(f"{path} holds an LMDB environment that is not a store") from error
    except lmdb.Error as error:
        raise translated(error, path) from error


def _open_database(env: lmdb.Environment, name: str) -> Any:
    try:
        return env.open_db(name.encode(), create=False)
    except lmdb.NotFoundError:
        if name not in ADDED:
            raise
        return env.open_db(name.encode())


def _refuse_other_formats(found: bytes | None, path: Path) -> None:
    if found is None or not found.startswith(FORMAT):
        raise StoreUnreadable(f"{path} holds an LMDB environment that is not a store")
    version = _VERSION.unpack(found[len(FORMAT) :])[0] if len(found) == len(FORMAT) + _VERSION.size else None
    if version != FORMAT_VERSION:
        raise StoreUnreadable(
            f"the store {path} has format version {version}; this lowcloud reads {FORMAT_VERSION}",
            hint="use the version of lowcloud that made it",
        )
