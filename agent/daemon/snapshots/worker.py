"""The process that takes or restores a snapshot: `python -P -m agent.daemon.snapshots.worker PID`, an order on stdin.

A process of its own, because holding a guest must end with whoever holds it; because an image is mounted in its mount
namespace and let go with it, however it ends; and because reading and encoding a volume must not be in the agent's way.
It dies with the agent, and leaves then what it has stored under a lease that ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import secrets
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from agent.api.answers import Reason
from agent.daemon.compiler import subprocess_environment
from agent.daemon.snapshots.keeping import Keeper
from agent.daemon.snapshots.looking import Memory, load_memory, save_memory
from agent.daemon.snapshots.walk import VolumeUnfit, allow_depth
from cas.digest import Digest
from cas.errors import BlobDamaged, BlobMissing, CasError, StoreBusy, StoreFull
from cas.tree import Snapshot, TreeInvalid, decode_snapshot, encode_pages, encode_snapshot, pieces_of, read_tree, reader

if TYPE_CHECKING:
    from agent.daemon.snapshots.taking import Seen
    from cas.store import Store

WORK_WITHIN_S: Final = 3 * 3600.0
MAX_VERDICT_BYTES: Final = 64 << 10
MAX_ORDER_BYTES: Final = 1 << 20
NICENESS: Final = 10
WORK_MEMORY_BYTES: Final = 4 << 30
"""A volume with as many entries as a snapshot may have takes a part of it."""
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Place(msgspec.Struct, frozen=True):
    """A volume on this host. Paths have no symbolic link in them."""

    store: str
    store_quota_bytes: int | None
    work: str
    """For files that go with the worker."""
    data: str
    """The directory that a guest sees."""
    image: str = ""
    """What is mounted there; "" for a plain directory."""


class Take(msgspec.Struct, frozen=True, tag="take"):
    place: Place
    memory: str
    """Where it is written down what the last snapshot saw."""
    pid: int
    """Of the guest that has the volume; 0 where none runs."""
    max_pause_s: float
    volume: str
    host: str
    size_bytes: int
    by: str
    message: str


class Restore(msgspec.Struct, frozen=True, tag="restore"):
    place: Place
    snapshot: Digest


Order = Take | Restore


class Done(msgspec.Struct, frozen=True):
    snapshot: Digest
    at_unix_ns: int = 0
    entries: int = 0
    data_bytes: int = 0
    read_bytes: int = 0
    blobs: int = 0
    bytes: int = 0
    """Stored, or written out."""
    left_out: int = 0
    paused_s: float = 0.0


class Failed(msgspec.Struct, frozen=True):
    reason: Reason
    problem: str
    hint: str = ""


class Verdict(msgspec.Struct, frozen=True):
    done: Done | None = None
    failed: Failed | None = None


# --- the agent's side -----------------------------------------------------------------------------------------------


async def work(order: Order, *, within_s: float = WORK_WITHIN_S) -> Verdict:
    """Have an order carried out. Cancelling kills the worker, which undoes nothing that is done and lets go at once of
    whom it holds."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "agent.daemon.snapshots.worker", str(os.getpid())),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=subprocess_environment(),
        limit=MAX_VERDICT_BYTES,
    )
    try:
        async with asyncio.timeout(within_s):
            said, _ = await process.communicate(msgspec.json.encode(order))
    except TimeoutError:
        return Verdict(failed=Failed(Reason.INTERNAL, f"it took longer than {within_s:.0f} s"))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        return msgspec.json.decode(said, type=Verdict)
    except msgspec.MsgspecError:
        return Verdict(failed=_ended(process.returncode or 0))


def _ended(status: int) -> Failed:
    if status == -signal.SIGALRM:
        return Failed(Reason.BUSY, "holding the process took too long, so it was let go", hint="try again")
    how = signal.Signals(-status).name if status < 0 else f"status {status}"
    return Failed(Reason.INTERNAL, f"the snapshot's process ended with {how}", hint="see the agent's log")


# --- the worker's side ----------------------------------------------------------------------------------------------


def carry_out(order: Order) -> Verdict:
    """Every way it can fail is told."""
    from agent.daemon.snapshots.taking import NotAtRest, PauseFailed
    from agent.sandbox.mounts import MountFailed

    try:
        return Verdict(done=_take(order) if isinstance(order, Take) else _restore(order))
    except NotAtRest as error:
        return _failed(Reason.BUSY, error, "allow a longer pause, or stop the process first")
    except (PauseFailed, MountFailed, StoreBusy) as error:
        return _failed(Reason.BUSY, error, "try again")
    except VolumeUnfit as error:
        return _failed(Reason.TOO_LARGE, error, "use what the program itself has to export its data")
    except MemoryError:
        unfit = VolumeUnfit(f"its list takes more than {WORK_MEMORY_BYTES >> 20} MiB of memory")
        return _failed(Reason.TOO_LARGE, unfit, "use what the program itself has to export its data")
    except StoreFull as error:
        return _failed(Reason.NO_ROOM, error, error.hint)
    except BlobMissing as error:
        return _failed(Reason.MISSING_BLOBS, error, error.hint)
    except (TreeInvalid, BlobDamaged) as error:
        return _failed(Reason.BAD_BLOB, error, error.hint)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return _failed(Reason.NO_ROOM if full else Reason.INTERNAL, error, "make the volume larger" if full else "")
    except CasError as error:
        return _failed(Reason.INTERNAL, error, error.hint)


def _failed(reason: Reason, error: Exception, hint: str) -> Verdict:
    return Verdict(failed=Failed(reason, str(error)[:2000], hint))


def _take(order: Take) -> Done:
    with _open_store(order.place) as store, _opened(order.place, order.pid) as root:
        owner = f"snapshot:{secrets.token_hex(8)}"
        keeper = Keeper(store, owner)
        try:
            return _taken(order, store, keeper, root)
        except BlobMissing:  # a piece that the last snapshot had is here no more
            return _taken(order, store, keeper, root, forget=True)


def _taken(order: Take, store: Store, keeper: Keeper, root: int, *, forget: bool = False) -> Done:
    from agent.daemon.snapshots.taking import Taking

    memory: Memory = {} if forget else load_memory(Path(order.memory))
    taking = Taking(root, memory, keeper, Path(order.place.work))
    if order.pid:
        seen = taking.of_running(order.pid, order.max_pause_s)
    else:
        seen = taking.of_nobody() if order.place.image else taking.at_rest()
    digest = _record(order, store, keeper, seen)
    save_memory(Path(order.memory), seen.look.seen)
    return Done(
        snapshot=digest,
        at_unix_ns=seen.at_unix_ns,
        entries=seen.look.entries,
        data_bytes=seen.look.data_bytes,
        read_bytes=seen.read_bytes,
        blobs=keeper.blobs,
        bytes=keeper.stored_bytes,
        left_out=seen.look.left_out,
        paused_s=seen.paused_s,
    )


def _record(order: Take, store: Store, keeper: Keeper, seen: Seen) -> Digest:
    """Store the pages and the snapshot, and read them as whoever restores them will. Raises BlobMissing."""
    pages = [
        keeper.put(page, name=f"snapshot/{order.volume}/{number}").digest
        for number, page in enumerate(encode_pages(seen.look.items))
    ]
    snapshot = Snapshot(
        volume=order.volume,
        host=order.host,
        at_unix_ns=seen.at_unix_ns,
        size_bytes=order.size_bytes,
        entries=seen.look.entries,
        data_bytes=seen.look.data_bytes,
        pages=tuple(pages),
        left_out=seen.look.left_out,
        by=order.by,
        message=order.message,
    )
    missing = store.missing(pieces_of(read_tree(snapshot, reader(store))))
    if missing:
        raise BlobMissing(missing[0])
    return keeper.put(encode_snapshot(snapshot)).digest


def _restore(order: Restore) -> Done:
    from agent.daemon.snapshots.restoring import restore

    with _open_store(order.place) as store, _opened(order.place, pid=0) as root:
        snapshot = decode_snapshot(reader(store)(order.snapshot))
        written = restore(root, read_tree(snapshot, reader(store)), store)
    return Done(order.snapshot, snapshot.at_unix_ns, snapshot.entries, snapshot.data_bytes, bytes=written)


def _open_store(place: Place) -> Store:
    from cas.store import Store

    return Store.open(Path(place.store), quota_bytes=place.store_quota_bytes)


@contextlib.contextmanager
def _opened(place: Place, pid: int) -> Iterator[int]:
    """A descriptor of what is in the volume: as the guest sees it, mounted here, or the directory itself. Raises
    MountFailed, PauseFailed, OSError."""
    from agent.sandbox import linux, mounts

    path = place.data
    if place.image and pid:
        path = f"/proc/{pid}/root{place.data}"
    elif place.image:
        linux.own_mounts()
        mounts.mount_image(place.image, place.data)
    try:
        root = os.open(path, _DIRECTORY)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise mounts.MountFailed("the process that has the volume has just ended") from error
    try:
        if place.image and os.fstat(root).st_dev == Path(place.image).stat().st_dev:
            raise mounts.MountFailed("the process that has the volume has not mounted it yet, or has just ended")
        yield root
    finally:
        os.close(root)


def main(agent: int) -> int:
    """The worker of the agent with this pid, which may have ended already."""
    from agent.sandbox import linux

    linux.die_with_parent(agent, signal.SIGKILL)
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (WORK_MEMORY_BYTES, WORK_MEMORY_BYTES))
    allow_depth()
    verdict = carry_out(msgspec.json.decode(sys.stdin.buffer.read(MAX_ORDER_BYTES), type=Order))
    sys.stdout.buffer.write(msgspec.json.encode(verdict))
    return 0 if verdict.done else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
