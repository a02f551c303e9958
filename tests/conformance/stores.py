"""The stores that must all keep the same promises, and a clock and faults for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

from cas.errors import StoreBusy, StoreFull
from cas.interface import ExchangeStore, RefStore
from cas.memory import MemoryStore
from cas.store import Store


class AnyStore(ExchangeStore, RefStore, Protocol):
    """All that a store can do."""


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Faulty:
    """A store whose writes fail as a string says, a letter for each: `.` works, `f` full, `b` busy. When the string is
    used up, everything works."""

    WRITES = frozenset(
        [
            "put",
            "put_many",
            "put_stream",
            "put_patch",
            "make_patch",
            "receive",
            "lease",
            "release",
            "pin",
            "unpin",
            "move_ref",
            "collect",
            "repack",
        ]
    )
    FAULTS: ClassVar[dict[str, Callable[[], Exception]]] = {
        "f": lambda: StoreFull("no room (injected)"),
        "b": lambda: StoreBusy("busy (injected)"),
    }

    def __init__(self, store: AnyStore, script: str = "") -> None:
        self._store = store
        self.script = script

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name not in self.WRITES:
            return found

        def call(*args: Any, **named: Any) -> Any:
            letter, self.script = self.script[:1], self.script[1:]
            if letter in self.FAULTS:
                raise self.FAULTS[letter]()
            return found(*args, **named)

        return call


def faulty(store: AnyStore, script: str = "") -> AnyStore:
    return cast(AnyStore, Faulty(store, script))


@contextmanager
def open_store(kind: str, directory: Path, clock: Clock) -> Iterator[AnyStore]:
    """A new store of a kind of `KINDS`."""
    if kind == "memory":
        yield MemoryStore(clock=clock)
    else:
        with Store.open(directory / "store", clock=clock) as store:
            yield store if kind == "lmdb" else faulty(store)


KINDS = ("lmdb", "memory", "faulty")
