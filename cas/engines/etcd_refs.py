"""Refs in etcd: the history that several operators share.

A ref is one key, `/NAME/refs/REF`, whose value (docs/formats.md) holds the digest and the *tokens* of the last moves.

**The truth about a lost answer.** When the leader dies, a compare-and-swap may have happened although no answer came.
So each move has a random token, which its value carries, beside the tokens of the moves before. Asking again with the
same comparison (on etcd's own revision of the key, which never comes back) and the same token is then safe:

- either attempt can succeed, never both, because the first one changes the revision that both compare with;
- where the second one fails, what it finds tells: with the token in it, the first one had succeeded, also when others
  have moved the ref since; without it, the first one did not and, as the revision has passed, never will.

Only if the deadline ends first, or more moves than tokens are kept came between, is the outcome unknown, and that is
what `RefUncertain` says. A ref that is removed leaves its key with the tokens in it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Annotated, Final, Literal

import msgspec

from cas.digest import Digest
from cas.engines.errors import HistoryMoved, RefUncertain
from cas.engines.etcd import EtcdClient, KeyValue, Swap, Unanswered
from cas.errors import RefMoved, StoreUnreadable
from cas.refs import key_of

READ_DEADLINE_S: Final = 8.0
MOVE_DEADLINE_S: Final = 20.0
WATCH_IDLE_S: Final = 20.0
"""After so much silence a watch looks for itself, and finds out whether anybody is there."""
KEPT_MOVES: Final = 32
MAX_TRIES: Final = 64
MAX_VALUE_BYTES: Final = 1 << 16

Token = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]


class RefValue(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="kebab"):
    """What is under a ref's key, as JSON."""

    lowcloud_ref: Literal[1] = 1
    """The format's version."""
    to: Digest | None
    """None: the ref was removed."""
    moves: Annotated[tuple[Token, ...], msgspec.Meta(max_length=KEPT_MOVES)]
    """The tokens of the last moves, newest first."""
    moved_to: Annotated[str, msgspec.Meta(max_length=4096)] | None = None
    """Where `lowcloud migrate` has taken the history: nobody moves this ref any more."""


def encode(value: RefValue) -> bytes:
    return msgspec.json.encode(value)


def decode(name: str, data: bytes) -> RefValue:
    """Raises StoreUnreadable for what is no ref, or one of another version."""
    try:
        if len(data) > MAX_VALUE_BYTES:
            raise ValueError(f"{len(data)} bytes")
        return msgspec.json.decode(data, type=RefValue)
    except (msgspec.MsgspecError, ValueError) as error:
        raise StoreUnreadable(
            f"what etcd has under the ref {name!r} is no ref of a version that this lowcloud knows: {error}",
            hint="`etcdctl get --prefix /` shows it; a newer lowcloud may be needed",
        ) from error


class EtcdRefs:
    """Implements `RefStore` of `cas.interface`, and `watch`. Any thread may call anything."""

    def __init__(
        self,
        client: EtcdClient,
        name: str,
        *,
        token: Callable[[], str] = lambda: secrets.token_hex(8),
        read_deadline_s: float = READ_DEADLINE_S,
        move_deadline_s: float = MOVE_DEADLINE_S,
    ) -> None:
        """`name` is what the cloud is called there (`EtcdAddress.name`)."""
        self._client = client
        self._prefix = f"/{name}/refs/".encode()
        self._token = token
        self._read_deadline_s = read_deadline_s
        self._move_deadline_s = move_deadline_s

    def read_ref(self, name: str) -> Digest | None:
        """As a majority of the cluster has it now. Raises EngineUnreachable, EngineRefused, HistoryMoved."""
        return _target(name, _value(name, self._read(name)))

    def refs(self) -> dict[str, Digest]:
        """Raises as `read_ref`."""
        targets = {name: _target(name, value) for name, value in self.entries().items()}
        return {name: target for name, target in targets.items() if target is not None}

    def entries(self) -> dict[str, RefValue]:
        """What is under each ref's key, also of refs that were removed or retired. Raises as `read_ref`, but never
        HistoryMoved."""
        found = self._client.range(self._prefix, prefix=True, deadline_s=self._read_deadline_s).found
        names = [(entry.key[len(self._prefix) :].decode(errors="replace"), entry) for entry in found]
        return {name: _value(name, entry) for name, entry in names}

    def move_ref(self, name: str, expected: Digest | None, to: Digest | None) -> None:
        """Raises RefMoved, EngineUnreachable where it has not happened, RefUncertain where nobody can know,
        EngineRefused, HistoryMoved."""
        self._move(name, expected, to, moved_to=None)

    def retire(self, name: str, expected: Digest | None, moved_to: str) -> None:
        """Mark that a history has gone elsewhere, if it is still at `expected`: who has the old line is told. Raises as
        `move_ref`."""
        self._move(name, expected, None, moved_to=moved_to)

    def revive(self, name: str, to: Digest) -> None:
        """The opposite, for a history that comes back: set a ref that is retired or not there, or at `to` already.
        Raises as `move_ref`."""
        self._move(name, None, to, moved_to=None, also_retired=True)

    def watch(self, name: str) -> Iterator[Digest | None]:
        """Where a ref is, and then again each time it has moved; moves in quick succession may be given as one. Does
        not end. Raises EngineUnreachable where nobody answers: watching again is safe."""
        key = self._prefix + key_of(name)
        last: Digest | None = None
        first = True
        while True:
            read = self._client.range(key, deadline_s=self._read_deadline_s)
            now = _target(name, _value(name, read.found[0] if read.found else None))
            if first or now != last:
                yield now
            first, last = False, now
            for entry in self._client.watch(key, after_revision=read.revision, idle_s=WATCH_IDLE_S):
                now = _target(name, _value(name, entry))
                if now != last:
                    last = now
                    yield now

    def _read(self, name: str) -> KeyValue | None:
        found = self._client.range(self._prefix + key_of(name), deadline_s=self._read_deadline_s).found
        return found[0] if found else None

    def _move(
        self,
        name: str,
        expected: Digest | None,
        to: Digest | None,
        *,
        moved_to: str | None,
        also_retired: bool = False,
    ) -> None:
        key = self._prefix + key_of(name)
        token = self._token()
        began = now = self._read(name)
        for _ in range(MAX_TRIES):
            value = _value(name, now)
            if value.moved_to is not None and not also_retired:
                raise HistoryMoved(name, value.moved_to)
            if value.to != expected and not (also_retired and value.to == to):
                raise RefMoved(name, expected, value.to)
            following = RefValue(to=to, moves=(token, *value.moves)[:KEPT_MOVES], moved_to=moved_to)
            swap = self._swap(name, key, now, following)
            if swap.succeeded:
                return
            now = swap.now
            if token in _value(name, now).moves:
                return  # An attempt whose answer was lost had succeeded.
            if _passed(began, now) >= KEPT_MOVES:
                raise RefUncertain(name, to, "too many moves by others came between")
        raise RefUncertain(name, to, f"others moved it {MAX_TRIES} times meanwhile")

    def _swap(self, name: str, key: bytes, now: KeyValue | None, following: RefValue) -> Swap:
        try:
            return self._client.swap(
                key, now.mod_revision if now else 0, encode(following), deadline_s=self._move_deadline_s
            )
        except Unanswered as error:
            if error.maybe_done:
                raise RefUncertain(name, following.to, str(error)) from error
            raise


def _value(name: str, entry: KeyValue | None) -> RefValue:
    return RefValue(to=None, moves=()) if entry is None else decode(name, entry.value)


def _target(name: str, value: RefValue) -> Digest | None:
    if value.moved_to is not None:
        raise HistoryMoved(name, value.moved_to)
    return value.to


def _passed(began: KeyValue | None, now: KeyValue | None) -> int:
    """How many writes lie between two readings of a key; too many to know, where a stranger has deleted it."""
    if now is None or (began is not None and began.create_revision != now.create_revision):
        return KEPT_MOVES
    return now.version - (began.version if began else 0)
