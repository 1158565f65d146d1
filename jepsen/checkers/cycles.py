"""Cycles of dependencies between transactions, named as Adya and Elle name them.

Knows four kinds of edges: ``ww`` (overwrote), ``wr`` (read what was written), ``rw`` (did not yet see what was
written), ``rt`` (was over before the other began); and which cycle has which name. Does not know transactions.

- G0: only ww. G1c: ww and at least one wr. G-single: exactly one rw. G2-item: two or more rw.
- NAME-realtime: the same, and at least one rt: only strict serializability forbids it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from jepsen.checkers.graph import Graph, Search, Step, components

KINDS: Final = ("ww", "wr", "rw", "rt")
OF_A_KIND: Final = 3
"""Cycles of one name that are looked for in one component: the first ones explain it."""
EFFORT: Final = 20_000_000
"""Edges looked at in all searches together: some seconds. Whether there is a cycle is known before any search."""


@dataclass(frozen=True, slots=True)
class Cycle:
    """``steps``: each begins where the one before it ends, and the first where the last ends."""

    name: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class _Level:
    """``needed``: the edge that makes it this level. ``others``: what the way back may be made of."""

    name: str
    needed: str
    others: tuple[str, ...]


_LEVELS: Final = (
    _Level("G0", "ww", ("ww",)),
    _Level("G1c", "wr", ("ww", "wr")),
    _Level("G-single", "rw", ("ww", "wr")),
    _Level("G2-item", "rw", ("ww", "wr", "rw")),
    _Level("G0-realtime", "rt", ("ww", "rt")),
    _Level("G1c-realtime", "wr", ("ww", "wr", "rt")),
    _Level("G-single-realtime", "rw", ("ww", "wr", "rt")),
    _Level("G2-item-realtime", "rw", KINDS),
)


def name_of(kinds: Sequence[str]) -> str:
    """The name of a cycle made of such edges."""
    antidependencies = kinds.count("rw")
    name = "G2-item" if antidependencies > 1 else "G-single" if antidependencies else "G1c" if "wr" in kinds else "G0"
    return f"{name}-realtime" if "rt" in kinds else name


def cycles(graph: Graph) -> Iterator[Cycle]:
    """Some cycles of every component, each once: none if and only if the graph has none."""
    search = Search(EFFORT)
    for component in components(graph.successors(KINDS)):
        found: set[frozenset[tuple[int, int]]] = set()
        for level in _LEVELS:
            number = 0
            for cycle in _of_level(graph, set(component), level, search):
                edges = frozenset((step.source, step.target) for step in cycle.steps)
                if edges not in found:
                    found.add(edges)
                    yield cycle
                    number += 1
                if number >= OF_A_KIND:
                    break
        if not found:
            # The searches had become too long: any cycle, whatever its name.
            yield _any(graph, component)


def _of_level(graph: Graph, component: set[int], level: _Level, search: Search) -> Iterator[Cycle]:
    """Cycles of exactly this name: one edge that is needed, and the shortest way back from its end."""
    back = graph.successors(level.others, component)
    kinds = level.others if level.needed in level.others else (*level.others, level.needed)
    inside = components(graph.successors(kinds, component))
    for part in inside:
        for source, target in graph.edges(level.needed, set(part)):
            if search.tired:
                return
            way = search.way(back, target, source)
            if way is None:
                continue
            steps = (
                Step(source, target, level.needed),
                *(Step(one, two, graph.kind(one, two, level.others)) for one, two in pairwise(way)),
            )
            if name_of([step.kind for step in steps]) == level.name:
                yield Cycle(level.name, steps)


def _any(graph: Graph, component: list[int]) -> Cycle:
    inside = graph.successors(KINDS, component)
    first = inside[component[0]][0]
    way = Search(sum(map(len, inside.values())) + 1).way(inside, first, component[0])
    assert way is not None, "a component leads from each of its vertices to each other"
    vertices = [component[0], *way]
    steps = tuple(Step(one, two, graph.kind(one, two, KINDS)) for one, two in pairwise(vertices))
    return Cycle(name_of([step.kind for step in steps]), steps)
