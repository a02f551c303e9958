"""Secrets of a cloud: which are sealed to which host, and where the newest of each is found.

A secret is set once for each host that needs it: sealed to that host's key (`cas.sealed`), stored as a blob, and named
by the ref `secret/HISTORY/NAME/HOST`, so that all who share the refs share the secrets, and each overlay has its own.
Nobody but the host can open it again, the one who set it included. A release names the sealed blob; so a rollback also
brings back the secret of its time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple, Protocol

from cas import sealed
from cas.digest import Digest
from cas.interface import Stored
from deployer.errors import BadInput
from deployer.language.schema import Definition

PREFIX: Final = "secret/"
"""How the refs of secrets begin. A history's name has no slash."""
LEASE_OWNER: Final = "secret"
LEASE_S: Final = 3600.0


class SecretInvalid(BadInput):
    """A secret that cannot be sealed. The message never shows it."""


class SecretStore(Protocol):
    """What is asked of a store."""

    def put(self, data: bytes, *, name: str | None = None, expect: Digest | None = None) -> Stored: ...

    def read(self, digest: Digest) -> bytes: ...

    def lease(self, digests: Iterable[Digest], *, owner: str, ttl_s: float) -> None: ...

    def read_ref(self, name: str) -> Digest | None: ...

    def move_ref(self, name: str, expected: Digest | None, to: Digest | None) -> None: ...

    def refs(self) -> dict[str, Digest]: ...


class SealedSecret(NamedTuple):
    """A secret as it is for one host."""

    name: str
    host: str
    digest: Digest
    """Of the sealed blob."""


class Secrets:
    """The secrets of one history (`prod`, or an overlay's name)."""

    def __init__(self, store: SecretStore, history: str) -> None:
        self._store = store
        self._history = history

    def newest(self, name: str, host: str) -> Digest | None:
        """What was last sealed to this host; None where nothing was."""
        return self._store.read_ref(self._ref(name, host))

    def every(self) -> list[SealedSecret]:
        """All of them, by name and host."""
        start = f"{PREFIX}{self._history}/"
        found = []
        for ref, digest in self._store.refs().items():
            name, _, host = ref.removeprefix(start).partition("/")
            if ref.startswith(start) and host:
                found.append(SealedSecret(name, host, digest))
        return sorted(found)

    def put(self, name: str, value: bytes, keys: Mapping[str, str], *, at_unix_s: int) -> list[SealedSecret]:
        """Seal a value to these hosts' public keys (64 hex digits, as `HostFacts` has them) and make it the newest.
        Raises SecretInvalid before anything is stored; RefMoved where somebody else sets the same secret now."""
        if not value:
            raise SecretInvalid("the secret is empty", hint="give its value on standard input, or with --file")
        blobs = {host: _seal(name, value, host, key, at_unix_s) for host, key in sorted(keys.items())}
        done = []
        for host, blob in blobs.items():
            ref = self._ref(name, host)
            before = self._store.read_ref(ref)
            digest = self._store.put(blob).digest
            self._store.lease([digest], owner=LEASE_OWNER, ttl_s=LEASE_S)
            self._store.move_ref(ref, before, digest)
            done.append(SealedSecret(name, host, digest))
        return done

    def remove(self, name: str, hosts: Iterable[str]) -> list[SealedSecret]:
        """Forget a secret for these hosts. What releases name stays, so that they can come back."""
        gone = []
        for host in sorted(hosts):
            digest = self.newest(name, host)
            if digest is not None:
                self._store.move_ref(self._ref(name, host), digest, None)
                gone.append(SealedSecret(name, host, digest))
        return gone

    def _ref(self, name: str, host: str) -> str:
        return f"{PREFIX}{self._history}/{name}/{host}"


def users(definition: Definition, name: str) -> dict[str, list[str]]:
    """The processes that use a secret, and their hosts."""
    return {
        process_name: list(process.hosts)
        for process_name, process in sorted(definition.process.items())
        if name in process.secret.values()
    }


def _seal(name: str, value: bytes, host: str, key: str, at_unix_s: int) -> bytes:
    try:
        return sealed.seal(value, name=name, recipient=bytes.fromhex(key), at_unix_s=at_unix_s)
    except ValueError as error:
        raise SecretInvalid(f"{name} cannot be sealed to {host}: {error}") from None
