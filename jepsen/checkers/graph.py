"""Directed graphs of many vertices: strongly connected components, and shortest ways.

Knows vertices as numbers from 0 and edges by kind. Does not know what they stand for. Nothing here recurses: histories
are longer than Python's stack.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

Successors = Sequence[Sequence[int]]
"""By vertex: where its edges lead."""


@dataclass(frozen=True, slots=True)
class Step:
    """One edge of a way."""

    source: int
    target: int
    kind: str


class Graph:
    """``kinds``: of edges, the most telling first; between two vertices the first of those asked for is named."""

    def __init__(self, vertices: int, kinds: Iterable[str]) -> None:
        self._edges: dict[str, list[set[int]]] = {kind: [set() for _ in range(vertices)] for kind in kinds}

    def connect(self, source: int, target: int, kind: str) -> None:
        """An edge; one from a vertex to itself says nothing here and is left out."""
        if source != target:
            self._edges[kind][source].add(target)

    def count(self, kind: str) -> int:
        return sum(len(targets) for targets in self._edges[kind])

    def successors(self, kinds: Sequence[str], within: Iterable[int] | None = None) -> dict[int, list[int]]:
        """Edges of some kinds; ``within``: only between these vertices."""
        if within is None:
            every = zip(*(self._edges[kind] for kind in kinds), strict=True)
            return {vertex: [one for targets in several for one in targets] for vertex, several in enumerate(every)}
        inside = set(within)
        chosen = [self._edges[kind] for kind in kinds]
        return {
            vertex: [target for targets in chosen for target in sorted(targets[vertex] & inside)]
            for vertex in sorted(inside)
        }

    def edges(self, kind: str, within: set[int]) -> Iterator[tuple[int, int]]:
        """All edges of one kind between some vertices, in order."""
        for source in sorted(within):
            for target in sorted(self._edges[kind][source] & within):
                yield source, target

    def kind(self, source: int, target: int, kinds: Sequence[str]) -> str:
        return next(kind for kind in kinds if target in self._edges[kind][source])


def components(successors: dict[int, list[int]]) -> list[list[int]]:
    """Strongly connected components of two vertices or more (Tarjan 1972, with a stack of its own)."""
    order: dict[int, int] = {}
    lowest: dict[int, int] = {}
    open_: list[int] = []
    is_open: set[int] = set()
    found: list[list[int]] = []
    for root, first in successors.items():
        if root in order:
            continue
        order[root] = lowest[root] = len(order)
        open_.append(root)
        is_open.add(root)
        path = [(root, iter(first))]
        while path:
            vertex, rest = path[-1]
            for target in rest:
                if target not in order:
                    order[target] = lowest[target] = len(order)
                    open_.append(target)
                    is_open.add(target)
                    path.append((target, iter(successors[target])))
                    break
                if target in is_open:
                    lowest[vertex] = min(lowest[vertex], order[target])
            else:
                path.pop()
                if path:
                    above = path[-1][0]
                    lowest[above] = min(lowest[above], lowest[vertex])
                if lowest[vertex] == order[vertex]:
                    component = _close(open_, is_open, vertex)
                    if len(component) > 1:
                        found.append(component)
    return found


def _close(open_: list[int], is_open: set[int], vertex: int) -> list[int]:
    start = len(open_) - 1
    while open_[start] != vertex:
        start -= 1
    component = open_[start:]
    del open_[start:]
    is_open.difference_update(component)
    return component


class Search:
    """Shortest ways, as long as the effort that all searches together may take lasts."""

    def __init__(self, effort: int) -> None:
        self._effort = effort

    @property
    def tired(self) -> bool:
        return self._effort <= 0

    def way(self, successors: dict[int, list[int]], source: int, target: int) -> list[int] | None:
        """The vertices from ``source`` to ``target``; None when there is no way, or no effort is left."""
        came_from = {source: source}
        waiting = deque([source])
        while waiting and self._effort > 0:
            vertex = waiting.popleft()
            for following in successors[vertex]:
                self._effort -= 1
                if following in came_from:
                    continue
                came_from[following] = vertex
                if following == target:
                    return _walked(came_from, target)
                waiting.append(following)
        return None


def _walked(came_from: dict[int, int], target: int) -> list[int]:
    way = [target]
    while came_from[way[-1]] != way[-1]:
        way.append(came_from[way[-1]])
    return way[::-1]
