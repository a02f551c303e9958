"""The two questions that ordering asks of a directed graph, both answered in linear time: where are its cycles, and how
deep is each node. Nodes are `0 … count-1`; `edges[a]` holds every `b` that comes after `a`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet

Edges = Mapping[int, AbstractSet[int]]


def cycles(count: int, edges: Edges, *, among: Sequence[int] | None = None) -> list[list[int]]:
    """The groups of two nodes or more that can all reach each other, each sorted; `among`: only from these nodes.
    Tarjan's algorithm, without recursion, because a chain can be as long as a fleet is large."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    found: list[list[int]] = []
    for root in range(count) if among is None else among:
        if root in index:
            continue
        work: list[tuple[int, Iterator[int]]] = []
        _enter(root, index, low, stack, on_stack)
        work.append((root, iter(sorted(edges.get(root, ())))))
        while work:
            node, following = work[-1]
            for after in following:
                if after not in index:
                    _enter(after, index, low, stack, on_stack)
                    work.append((after, iter(sorted(edges.get(after, ())))))
                    break
                if after in on_stack:
                    low[node] = min(low[node], index[after])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    group = _leave(node, stack, on_stack)
                    if len(group) > 1:
                        found.append(sorted(group))
    return found


def _enter(node: int, index: dict[int, int], low: dict[int, int], stack: list[int], on_stack: set[int]) -> None:
    index[node] = low[node] = len(index)
    stack.append(node)
    on_stack.add(node)


def _leave(node: int, stack: list[int], on_stack: set[int]) -> list[int]:
    group = []
    while True:
        member = stack.pop()
        on_stack.discard(member)
        group.append(member)
        if member == node:
            return group


def levels(count: int, edges: Edges, weights: Sequence[int]) -> list[int]:
    """For each node the greatest sum of weights on a path that leads to it, itself not counted. Raises ValueError where
    the graph has a cycle."""
    waits = [0] * count
    for following in edges.values():
        for after in following:
            waits[after] += 1
    level = [0] * count
    ready = [node for node in range(count) if waits[node] == 0]
    done = 0
    while ready:
        node = ready.pop()
        done += 1
        for after in edges.get(node, ()):
            level[after] = max(level[after], level[node] + weights[node])
            waits[after] -= 1
            if waits[after] == 0:
                ready.append(after)
    if done != count:
        raise ValueError("a graph with a cycle has no levels")
    return level
