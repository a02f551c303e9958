"""From file names to digests: every file that a definition names goes into the store, and the definition that comes out
names blobs alone.

A file is read twice: once for its digest, which is then leased, once to store it; so a collection that runs meanwhile
cannot take away what was just stored, and a file that changes under the reader is noticed. It is stored under the name
of its first use (`process.web.binary`), not of its path: a build that writes `web-1.2.wasm`, then `web-1.3.wasm` still
finds the version before as the base of its delta.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import BinaryIO, NamedTuple

import msgspec

from cas.digest import Digest, digest_of_chunks, is_digest
from cas.errors import BlobDamaged, BlobMissing, BlobTooLarge, DigestMismatch
from cas.interface import BlobStore, Stored
from deployer.cloud.regular_file import NotReadable, open_regular
from deployer.language.definition import Parsed
from deployer.language.positions import Path
from deployer.language.problems import DefinitionInvalid, Problem
from deployer.language.reading import Finding
from deployer.language.schema import Definition, Process, Secret
from deployer.language.wording import near_hint, quoted
from deployer.resolving.grants import ungranted
from deployer.resolving.lock import Lock, Locked
from deployer.resolving.wasm_imports import Facts, FactsReader, NotWasm, facts_of

CHUNK_BYTES = 256 << 10
MAX_FILE_BYTES = 4 << 30
LEASE_OWNER = "resolve"
LEASE_S = 3600.0
MAX_NEIGHBOURS = 1000
"""Files of a directory that are compared with the name of a missing one."""


class Resolved(NamedTuple):
    """A definition without file names, and how it came about."""

    definition: Definition
    lock: Lock
    warnings: tuple[Problem, ...]
    """What is allowed but looks wrong, such as a program that opens sockets in a process that may use none."""
    stored: dict[str, Stored]
    """What was put into the store, by file name as written."""


class _Use(NamedTuple):
    """One place where the definition names a file or a blob."""

    path: Path
    name: str
    is_binary: bool
    stored_as: str


SealedFor = Callable[[str, str], Digest | None]
"""The newest blob in which a secret (by name) was sealed to a host; None where there is none."""


def resolve(
    parsed: Parsed,
    store: BlobStore,
    *,
    locked: Lock | None = None,
    before: Lock | None = None,
    sealed: SealedFor | None = None,
) -> Resolved:
    """Store every file that the definition names and check that every digest is there. With `locked`, no file is read:
    each name stands for what the lock says, and the store must have it; nor are binaries looked into again. `before` is
    the lock that the new one replaces, from which the bases are known; `sealed` tells of secrets.

    Raises DefinitionInvalid with everything that is missing or cannot be read, and what the store raises when it is
    full or busy."""
    work = _Resolution(parsed.directory, store, locked, overlay=parsed.overlay)
    uses = _by_name(parsed.definition)
    work.protect(uses)
    for name, of_name in uses.items():
        work.add(name, of_name)
    secrets = work.secrets(parsed.definition, sealed or _nothing_sealed)
    if work.findings:
        raise DefinitionInvalid(parsed.problems(work.findings))
    definition = _named_by_digest(parsed.definition, work.blobs, secrets)
    blobs = {name: _with_base(name, one, before) for name, one in work.blobs.items()} if before else work.blobs
    findings = ungranted(parsed.definition, work.facts)
    return Resolved(definition, Lock(blobs, secrets), (*parsed.warnings, *parsed.problems(findings)), work.stored)


class _Refused(Exception):
    """A file or blob cannot be used."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class _Resolution:
    """The state of one run: what has been found out about each name so far."""

    def __init__(
        self, directory: FilePath, store: BlobStore, locked: Lock | None, *, overlay: str | None = None
    ) -> None:
        self.secret_set = f"lowcloud {f'-e {overlay} ' if overlay else ''}secret set"
        self.directory = directory
        self.store = store
        self.locked = locked
        self.missing: set[Digest] = set()
        self.blobs: dict[str, Locked] = {}
        self.facts: dict[str, Facts] = {}
        self.stored: dict[str, Stored] = {}
        self.findings: list[Finding] = []

    def protect(self, names: Iterable[str]) -> None:
        """Lease every blob that is known by its digest beforehand, and see which are not here."""
        entries = self.locked.blob if self.locked else {}
        digests = [name for name in names if is_digest(name)]
        digests += [entries[name].digest for name in names if name in entries]
        self.store.lease(digests, owner=LEASE_OWNER, ttl_s=LEASE_S)
        self.missing = set(self.store.missing(digests))

    def add(self, name: str, uses: list[_Use]) -> None:
        binaries = [use for use in uses if use.is_binary]
        try:
            if self.locked is not None:
                self.blobs[name] = self.from_lock(name, self.locked)
            elif is_digest(name):
                self.blobs[name] = self.from_store(name, bool(binaries))
            else:
                self.blobs[name] = self.from_file(name, uses[0].stored_as, bool(binaries))
        except _Refused as refused:
            self.findings += [Finding(use.path, str(refused), refused.hint) for use in uses]
        except NotWasm as wrong:
            self.findings += [Finding(use.path, f"{quoted(name)} cannot run: {wrong}", wrong.hint) for use in binaries]

    def from_lock(self, name: str, locked: Lock) -> Locked:
        entry = locked.blob.get(name)
        if entry is None or (is_digest(name) and entry.digest != name):
            raise _Refused(f"{quoted(name)} is not in the lock file", "write it anew with `lowcloud resolve`")
        self.must_be_here(entry.digest)
        return entry

    def from_store(self, digest: Digest, is_binary: bool) -> Locked:
        self.must_be_here(digest)
        try:
            size = self.store.stat(digest).size
            if not is_binary:
                return Locked(digest, size, "file")
            self.facts[digest] = facts_of(self.store.stream(digest))
        except (BlobMissing, BlobDamaged) as error:
            raise _Refused(str(error), error.hint) from None
        return _locked(digest, size, self.facts[digest])

    def must_be_here(self, digest: Digest) -> None:
        if digest in self.missing:
            raise _Refused(f"the store has no blob {digest}", BlobMissing.hint)

    def from_file(self, name: str, stored_as: str, is_binary: bool) -> Locked:
        with _opened(self.directory, name) as file:
            reader = FactsReader() if is_binary else None
            digest = digest_of_chunks(_shown_to(reader, _chunks(file)))
            if reader is not None:
                self.facts[name] = reader.facts()
            self.store.lease([digest], owner=LEASE_OWNER, ttl_s=LEASE_S)
            file.seek(0)
            try:
                stored = self.store.put_stream(_chunks(file), name=stored_as, expect=digest)
            except DigestMismatch:
                raise _Refused(f"{quoted(name)} changed while it was read", "resolve again when it is done") from None
            except BlobTooLarge as error:
                raise _Refused(f"{quoted(name)}: {error}", error.hint) from None
        self.stored[name] = stored
        return _locked(digest, stored.size, self.facts.get(name))

    def secrets(self, definition: Definition, newest: SealedFor) -> dict[str, dict[str, Digest]]:
        """For every secret that a process uses, on each of its hosts: what was sealed for it. What the definition
        itself says comes first."""
        found: dict[str, dict[str, Digest]] = {}
        for process, guest_path, name, host in _secret_uses(definition):
            written = definition.secret[name].sealed if name in definition.secret else {}
            known = self.locked.secret.get(name, {}).get(host) if self.locked else newest(name, host)
            digest = written.get(host, known)
            path = ("process", process, "secret", guest_path)
            if digest is not None:
                found.setdefault(name, {})[host] = digest
            elif self.locked is not None:
                message = f"the secret {quoted(name)} for host {host} is not in the lock file"
                self.findings.append(Finding(path, message, "write it anew with `lowcloud resolve`"))
            else:
                message = f"the secret {quoted(name)} is not set for host {host}"
                hint = f"{self.secret_set} {name} --for {process} < FILE"
                self.findings.append(Finding(path, message, hint))
        self.must_have_sealed(definition, found)
        return found

    def must_have_sealed(self, definition: Definition, found: dict[str, dict[str, Digest]]) -> None:
        digests = sorted({digest for hosts in found.values() for digest in hosts.values()})
        self.store.lease(digests, owner=LEASE_OWNER, ttl_s=LEASE_S)
        missing = set(self.store.missing(digests))
        for process, guest_path, name, host in _secret_uses(definition) if missing else ():
            digest = found.get(name, {}).get(host)
            if digest in missing:
                path = ("process", process, "secret", guest_path)
                message = f"the store has no blob {digest}, which holds {quoted(name)} for host {host}"
                self.findings.append(Finding(path, message, f"{self.secret_set} {name} --host {host} < FILE"))


def _nothing_sealed(_name: str, _host: str) -> Digest | None:
    return None


def _secret_uses(definition: Definition) -> Iterator[tuple[str, str, str, str]]:
    """Process, guest path, secret and host."""
    for process_name, process in sorted(definition.process.items()):
        for guest_path, name in sorted(process.secret.items()):
            for host in process.hosts:
                yield process_name, guest_path, name, host


def _with_base(name: str, one: Locked, before: Lock) -> Locked:
    """The lock's next entry of a name: its base is what the name stood for before, and stays while that does."""
    previous = before.blob.get(name)
    if previous is None or is_digest(name):
        return one
    return msgspec.structs.replace(one, base=previous.base if previous.digest == one.digest else previous.digest)


def _locked(digest: Digest, size: int, facts: Facts | None) -> Locked:
    return Locked(digest, size, facts.kind, facts.imports) if facts else Locked(digest, size, "file")


def _shown_to(reader: FactsReader | None, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Pass pieces on, letting the reader see them. Raises NotWasm."""
    for chunk in chunks:
        if reader is not None:
            reader.feed(chunk)
        yield chunk


def _by_name(definition: Definition) -> dict[str, list[_Use]]:
    """Every name of a file or blob with its uses, in the order of the processes' names: the first use names the blob
    in the store, whatever the order of the file."""
    uses: dict[str, list[_Use]] = {}
    for name, process in sorted(definition.process.items()):
        uses.setdefault(process.binary, []).append(
            _Use(("process", name, "binary"), process.binary, True, f"process.{name}.binary")
        )
        for guest_path, reference in sorted(process.config.items()):
            uses.setdefault(reference, []).append(
                _Use(("process", name, "config", guest_path), reference, False, f"process.{name}.config.{guest_path}")
            )
    return uses


@contextmanager
def _opened(directory: FilePath, name: str) -> Iterator[BinaryIO]:
    """Open a regular file. Raises _Refused."""
    path = directory / name
    try:
        file = open_regular(path)
    except NotReadable as reason:
        if reason.missing:
            raise _Refused(f"there is no file {quoted(name)}", _missing_hint(path)) from None
        raise _Refused(f"{quoted(name)} {reason}") from None
    with file:
        if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
            raise _Refused(f"{quoted(name)} is larger than {MAX_FILE_BYTES >> 30} GiB")
        yield file


def _missing_hint(path: FilePath) -> str:
    """A file of nearly this name beside it; otherwise where it was looked for."""
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry, _ in zip(entries, range(MAX_NEIGHBOURS), strict=False)]
    except OSError:
        return f"there is no directory {path.parent}"
    near = near_hint(path.name, names, "")
    return near if near.startswith("did you mean") else f"looked for {path}; build it first, or correct the path"


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    """The rest of a file, no more than `MAX_FILE_BYTES` of it. Raises _Refused."""
    left = MAX_FILE_BYTES
    while left > 0:
        try:
            chunk = file.read(min(CHUNK_BYTES, left))
        except OSError as error:
            raise _Refused(f"cannot read {quoted(str(file.name))}: {error.strerror}") from None
        if not chunk:
            return
        left -= len(chunk)
        yield chunk


def _named_by_digest(
    definition: Definition, blobs: dict[str, Locked], secrets: dict[str, dict[str, Digest]]
) -> Definition:
    def resolved(process: Process) -> Process:
        config = {path: blobs[reference].digest for path, reference in process.config.items()}
        return msgspec.structs.replace(process, binary=blobs[process.binary].digest, config=config)

    processes = {name: resolved(process) for name, process in definition.process.items()}
    return msgspec.structs.replace(
        definition,
        process=processes,
        secret={name: Secret(sealed=dict(sorted(hosts.items()))) for name, hosts in sorted(secrets.items())},
    )
