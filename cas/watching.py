"""Watching a ref that does not tell by itself when it moves: a ref in LMDB is looked at again and again, which costs a
few microseconds each time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from cas.digest import Digest
from cas.interface import RefStore

LOOK_S = 0.2


def watch(refs: RefStore, name: str, *, pause: Callable[[float], None] = time.sleep) -> Iterator[Digest | None]:
    """Where a ref is, and then again each time it is found to have moved. Does not end."""
    last = refs.read_ref(name)
    yield last
    while True:
        pause(LOOK_S)
        now = refs.read_ref(name)
        if now != last:
            last = now
            yield now
