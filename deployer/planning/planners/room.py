"""In which order processes on a full host can change size, and which of them must end first so that the others can.

A process that needs more of one thing and less of another (memory for cores) can change only while there is room for
what it needs more of, and makes room by changing. So a host's changes are put in a row; where no row works, one of them
is split: it is stopped before all others and started after them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Final, NamedTuple

Room = tuple[int, int, int]
"""Thousandths of cores, bytes of memory, bytes of disk."""
NOTHING: Final[Room] = (0, 0, 0)
MOST_SEARCHED: Final = 8
"""With more changes on one host the first row that comes up is taken, not the one with the fewest splits."""


class Change(NamedTuple):
    """One process that changes."""

    before: Room
    """What it has."""
    growth: Room
    """What it will have more than that; below zero: less."""


class Row(NamedTuple):
    order: tuple[int, ...]
    split: frozenset[int]


def row(used: Room, capacity: Room, changes: Mapping[int, Change]) -> Row:
    """The order in which these changes fit one after the other on a host of which `used` is taken, and those that
    have to be split: as few as can be, for up to `MOST_SEARCHED` changes."""
    numbers = sorted(changes)
    if len(numbers) > MOST_SEARCHED:
        return _greedy(used, capacity, changes)
    for size in range(len(numbers) + 1):
        for split in itertools.combinations(numbers, size):
            room = add(used, *(negative(changes[n].before) for n in split))
            order = _order(room, capacity, {n: changes[n] for n in numbers if n not in split}, set())
            if order is not None:
                return Row(order, frozenset(split))
    raise AssertionError("with all of them split there is nothing to put in a row")


def fits(used: Room, capacity: Room, growth: Room) -> bool:
    """Whether there is room for this. What does not grow fits even where too much is taken already."""
    return all(more <= 0 or has + more <= most for has, more, most in zip(used, growth, capacity, strict=True))


def add(*rooms: Room) -> Room:
    return sum(r[0] for r in rooms), sum(r[1] for r in rooms), sum(r[2] for r in rooms)


def negative(room: Room) -> Room:
    return -room[0], -room[1], -room[2]


def positive(room: Room) -> Room:
    return max(room[0], 0), max(room[1], 0), max(room[2], 0)


def _order(
    used: Room, capacity: Room, changes: Mapping[int, Change], hopeless: set[frozenset[int]]
) -> tuple[int, ...] | None:
    """What is left to do decides what is taken, so a set of changes that led nowhere once is not tried again."""
    left = frozenset(changes)
    if not left:
        return ()
    if left in hopeless:
        return None
    for number in sorted(left):
        growth = changes[number].growth
        if fits(used, capacity, growth):
            rest = {n: change for n, change in changes.items() if n != number}
            after = _order(add(used, growth), capacity, rest, hopeless)
            if after is not None:
                return (number, *after)
    hopeless.add(left)
    return None


def _greedy(used: Room, capacity: Room, changes: Mapping[int, Change]) -> Row:
    left, order, split = dict(changes), [], set()
    while left:
        number = next((n for n in sorted(left) if fits(used, capacity, left[n].growth)), None)
        if number is None:
            number = max(sorted(left), key=lambda n: left[n].before)
            split.add(number)
            used = add(used, negative(left.pop(number).before))
        else:
            order.append(number)
            used = add(used, left.pop(number).growth)
    return Row(tuple(order), frozenset(split))
