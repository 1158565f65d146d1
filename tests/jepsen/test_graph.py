from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from jepsen.checkers.cycles import KINDS, cycles, name_of
from jepsen.checkers.graph import Graph, Search, components

SIZE: Final = 7
EDGES = st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(0, SIZE - 1), st.sampled_from(KINDS)), max_size=14)


def reachable(edges: list[tuple[int, int, str]], source: int) -> set[int]:
    found: set[int] = set()
    waiting = [source]
    while waiting:
        vertex = waiting.pop()
        for one, two, _ in edges:
            if one == vertex and two != one and two not in found:
                found.add(two)
                waiting.append(two)
    return found


def made(edges: list[tuple[int, int, str]]) -> Graph:
    graph = Graph(SIZE, KINDS)
    for one, two, kind in edges:
        graph.connect(one, two, kind)
    return graph


@given(EDGES)
def test_components_are_what_reaches_each_other(edges: list[tuple[int, int, str]]) -> None:
    reach = {vertex: reachable(edges, vertex) for vertex in range(SIZE)}
    expected = {
        frozenset(other for other in range(SIZE) if other in reach[vertex] and vertex in reach[other])
        for vertex in range(SIZE)
        if vertex in reach[vertex]
    }
    found = components(made(edges).successors(KINDS))
    assert {frozenset(each) for each in found} == expected
    assert len(found) == len(expected)


@given(EDGES)
def test_every_cycle_is_one_and_has_its_name_and_none_is_missed(edges: list[tuple[int, int, str]]) -> None:
    graph = made(edges)
    found = list(cycles(graph))
    have = {(one, two, kind) for one, two, kind in edges}
    for cycle in found:
        assert cycle.name == name_of([step.kind for step in cycle.steps])
        for step, following in zip(cycle.steps, [*cycle.steps[1:], cycle.steps[0]], strict=True):
            assert (step.source, step.target, step.kind) in have
            assert step.target == following.source
    for component in components(graph.successors(KINDS)):
        assert any({step.source for step in cycle.steps} <= set(component) for cycle in found)


@given(EDGES)
def test_the_strongest_name_that_there_is_is_found(edges: list[tuple[int, int, str]]) -> None:
    names = {cycle.name for cycle in cycles(made(edges))}
    for kinds, allowed in (
        (("ww",), {"G0"}),
        (("ww", "wr"), {"G0", "G1c"}),
        (("ww", "wr", "rw"), {"G0", "G1c", "G-single", "G2-item"}),
    ):
        if components(made([edge for edge in edges if edge[2] in kinds]).successors(KINDS)):
            assert names & allowed


def test_a_long_cycle_is_found_without_recursion() -> None:
    size = 50_000
    graph = Graph(size, KINDS)
    for vertex in range(size):
        graph.connect(vertex, (vertex + 1) % size, "rw" if vertex == 0 else "ww")
    (cycle,) = cycles(graph)
    assert (cycle.name, len(cycle.steps)) == ("G-single", size)


def test_a_search_that_is_tired_finds_nothing_more() -> None:
    search = Search(2)
    assert search.way({0: [1], 1: [2], 2: [3], 3: []}, 0, 3) is None
    assert search.tired
    assert Search(10).way({0: [1], 1: [2], 2: [3], 3: []}, 0, 3) == [0, 1, 2, 3]
