"""Flipping bits in a store's data, through LMDB and behind its back."""

from __future__ import annotations

from pathlib import Path

from cas.store import Store


def values(store: Store, database: str) -> list[tuple[bytes, bytes]]:
    env = store.access.env
    with env.lmdb.begin() as txn:
        return [(bytes(key), bytes(value)) for key, value in txn.cursor(getattr(env, database))]


def flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def overwrite(store: Store, database: str, key: bytes, value: bytes | None) -> None:
    """Change or delete one value, past everything that guards it."""
    env = store.access.env
    with env.lmdb.begin(write=True) as txn:
        if value is None:
            txn.delete(key, db=getattr(env, database))
        else:
            txn.put(key, value, db=getattr(env, database))


def flip_in_file(directory: Path, pattern: bytes, bit: int = 0) -> None:
    """Change the bytes of the closed store's file where the pattern lies."""
    path = directory / "data.mdb"
    data = path.read_bytes()
    places = _places(data, pattern)
    assert places, "the pattern is not in the file"
    with path.open("r+b") as file:
        for place in places:
            file.seek(place)
            file.write(flip(pattern, bit))


def _places(data: bytes, pattern: bytes) -> list[int]:
    found = []
    start = data.find(pattern)
    while start >= 0:
        found.append(start)
        start = data.find(pattern, start + 1)
    return found
