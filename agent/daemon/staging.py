"""Making ready what a specification needs: its blobs are here, its program is compiled. Touches nothing that runs.

Concurrent wishes for one program share one compiling process; at most a few compile at once. What a failed compile
left behind is removed; the verdict itself is not kept, so a call that is repeated asks again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Collection, Iterable
from pathlib import Path
from typing import Final, TypeVar

from agent.api.answers import Reason
from agent.api.processes import ProcessSpec
from agent.daemon.code_cache import Code, CodeCache
from agent.daemon.compiler import MAX_BINARY_BYTES, CompileFailed, compile_file
from agent.daemon.durable import FileDamaged
from agent.daemon.refusal import Refused
from agent.daemon.sealing import FILE_MODE, SealingKey
from cas.digest import Digest, short
from cas.errors import BlobDamaged, BlobMissing
from cas.interface import BlobStore
from cas.sealed import MAX_SEALED_BYTES, SealedInvalid

COMPILES_AT_ONCE: Final = 2
STAGE_OWNER: Final = "stage"
MAX_CONFIG_FILE_BYTES: Final = 64 << 20

T = TypeVar("T")


async def nowhere(_: Digest) -> bool:
    """A host without neighbours restores nothing."""
    return False


class Staging:
    """Store and code cache of one host. `needed` names the binaries whose code must stay; `restore` gets a blob that is
    damaged or gone from elsewhere, and says whether it is whole again."""

    def __init__(
        self,
        store: BlobStore,
        cache: CodeCache,
        work_directory: Path,
        needed: Callable[[], Collection[Digest]],
        sealing: SealingKey,
        restore: Callable[[Digest], Awaitable[bool]] = nowhere,
    ) -> None:
        self._store = store
        self._cache = cache
        self._work = work_directory
        self._needed = needed
        self._sealing = sealing
        self._restore = restore
        self._compiling: dict[Digest, asyncio.Task[Code]] = {}
        self._slots = asyncio.Semaphore(COMPILES_AT_ONCE)
        self.compiled = 0
        """How many programs were compiled since the agent started."""

    async def stage(self, specs: Iterable[ProcessSpec], *, hold_s: float) -> None:
        """Check that every blob is here, protect them for `hold_s`, and compile. Raises Refused with MISSING_BLOBS,
        BAD_BLOB, BAD_BINARY, TOO_LARGE."""
        specs = tuple(specs)
        await self.require(specs, hold_s=hold_s)
        for secret in dict.fromkeys(digest for spec in specs for digest in spec.secrets.values()):
            await self._unsealed(secret)  # one that does not open is found before anything is touched
        binaries = dict.fromkeys(spec.binary for spec in specs)
        results = await asyncio.gather(*(self.code(binary) for binary in binaries), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def require(self, specs: Iterable[ProcessSpec], *, hold_s: float = 0.0) -> None:
        """Every blob of these specifications is here. Raises Refused(MISSING_BLOBS)."""
        wanted = list(dict.fromkeys(digest for spec in specs for digest in blobs_of(spec)))
        if hold_s:
            await asyncio.to_thread(self._store.lease, wanted, owner=STAGE_OWNER, ttl_s=hold_s)
        missing = await asyncio.to_thread(self._store.missing, wanted)
        if missing:
            raise _missing(missing)

    async def code(self, binary: Digest) -> Code:
        """The compiled code of a binary, made now where the cache has none. Raises Refused."""
        cached = await asyncio.to_thread(self._cache.get, binary)
        if cached is not None:
            return cached
        task = self._compiling.get(binary)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._compile(binary))
            self._compiling[binary] = task
            task.add_done_callback(lambda _: self._compiling.pop(binary, None))
        return await asyncio.shield(task)

    async def write_config(self, digest: Digest, path: Path) -> None:
        """Write a configuration file, verified. Raises Refused."""
        await self._write(digest, path, MAX_CONFIG_FILE_BYTES)

    async def write_secret(self, digest: Digest, path: Path) -> None:
        """Open a sealed secret into a new file that only its owner may read. Raises Refused."""
        await asyncio.to_thread(_write_private, path, await self._unsealed(digest))

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _compile(self, binary: Digest) -> Code:
        async with self._slots:
            source = self._work / f"{binary.removeprefix('b3:')}-{os.urandom(4).hex()}.wasm"
            made = source.with_suffix(".code")
            try:
                await self._write(binary, source, MAX_BINARY_BYTES)
                kind = await compile_file(source, made)
                code = await asyncio.to_thread(self._cache.put, binary, kind, made)
            except CompileFailed as error:
                raise Refused(Reason.BAD_BINARY, f"binary {short(binary)}: {error}", hint=error.hint) from error
            finally:
                source.unlink(missing_ok=True)
                made.unlink(missing_ok=True)
        self.compiled += 1
        await asyncio.to_thread(self._cache.prune, {binary, *self._needed()})
        return code

    async def _unsealed(self, digest: Digest) -> bytes:
        """Raises Refused. What is said about a secret never holds a part of it."""
        return await self._whole(digest, lambda: self._unseal(digest))

    def _unseal(self, digest: Digest) -> bytes:
        if self._store.stat(digest).size > MAX_SEALED_BYTES:
            raise Refused(Reason.TOO_LARGE, f"blob {short(digest)} is larger than a sealed secret may be")
        try:
            return self._sealing.unseal(self._store.read(digest))
        except (SealedInvalid, FileDamaged) as error:
            raise Refused(Reason.BAD_BLOB, f"blob {short(digest)}: {error}", hint=error.hint) from error

    async def _write(self, digest: Digest, path: Path, limit: int) -> None:
        """Blob to file. The store verifies: the last piece comes only after the digest was right. Raises Refused."""
        await self._whole(digest, lambda: self._copy(digest, path, limit))

    def _copy(self, digest: Digest, path: Path, limit: int) -> None:
        size = self._store.stat(digest).size
        if size > limit:
            raise Refused(Reason.TOO_LARGE, f"blob {short(digest)} has {size} bytes; at most {limit} are accepted")
        with path.open("wb") as file:
            for piece in self._store.stream(digest):
                file.write(piece)

    async def _whole(self, digest: Digest, read: Callable[[], T]) -> T:
        """What `read` makes of a blob; where that is damaged or gone, once more after it was restored. Raises
        Refused."""
        try:
            try:
                return await asyncio.to_thread(read)
            except (BlobMissing, BlobDamaged):
                if not await self._restore(digest):
                    raise
                return await asyncio.to_thread(read)
        except BlobMissing as error:
            raise _missing([error.digest]) from error
        except BlobDamaged as error:
            raise Refused(Reason.BAD_BLOB, str(error), hint="send the blob again; that repairs it") from error


def _write_private(path: Path, value: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(value)


def blobs_of(spec: ProcessSpec) -> tuple[Digest, ...]:
    return (spec.binary, *spec.config.values(), *spec.secrets.values())


def _missing(digests: list[Digest]) -> Refused:
    count = len(digests)
    return Refused(
        Reason.MISSING_BLOBS,
        f"{count} blob{'s are' if count > 1 else ' is'} not on this host: {', '.join(short(d) for d in digests[:8])}",
        hint="send them first; `lowcloud apply` does",
        missing=tuple(digests),
    )
