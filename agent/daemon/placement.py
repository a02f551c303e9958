"""Which CPUs each process runs on. Pure.

Whole cores are dedicated: a process that is given 2 has two CPUs that no other process of this host runs on.
Everything else (shares, and cores with a fraction) runs on the CPUs that are left. A process keeps its CPUs as long as
it lives, so that nothing moves when others come and go. Where dedicating would leave a share without a CPU, what
does not fit runs with the shares; where the host is told to give more cores than the machine has, nothing is pinned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

MILLI: Final = 1000


def assign(
    cpus: Sequence[int], wants: Mapping[str, int], held: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """CPUs by process; an empty tuple means all.

    `cpus`: those this host may use. `wants`: thousandths of a core by process. `held`: what each has now.
    """
    available = sorted(set(cpus))
    if sum(wants.values()) > len(available) * MILLI:
        return dict.fromkeys(wants, ())
    whole = {name: milli // MILLI for name, milli in wants.items() if milli % MILLI == 0}
    sharers = [name for name in wants if name not in whole]
    room = len(available) - (1 if sharers else 0)
    given: dict[str, tuple[int, ...]] = {}
    free = set(available)
    for name, count in sorted(whole.items(), key=lambda item: (not _keeps(item, held, free), item[0])):
        if count > room:
            continue
        room -= count
        kept = [cpu for cpu in held.get(name, ()) if cpu in free] if _keeps((name, count), held, free) else []
        chosen = kept or sorted(free, reverse=True)[:count]
        free -= set(chosen)
        given[name] = tuple(sorted(chosen))
    rest = tuple(sorted(free))
    unpinned = rest if len(rest) < len(available) else ()
    return {name: given.get(name, unpinned) for name in wants}


def closable(cpus: Sequence[int], wants: Mapping[str, int], given: Mapping[str, tuple[int, ...]]) -> set[str]:
    """The processes whose whole cores can be closed to every other program of the machine. The first CPU never is: the
    agent, and all that the machine does besides, need one."""
    first = min(cpus, default=0)
    return {
        name
        for name, milli in wants.items()
        if len(given[name]) * MILLI == milli and given[name] and first not in given[name]
    }


def _keeps(item: tuple[str, int], held: Mapping[str, tuple[int, ...]], free: set[int]) -> bool:
    name, count = item
    return len(held.get(name, ())) == count and set(held[name]) <= free
