"""Whether transactions that append to lists and read them can have happened one after the other.

Every list that is read says in which order its elements came, so dependencies between transactions are known and not
guessed: who overwrote what (ww), who read whose element (wr), who did not yet see whose element (rw). A serial order
exists if and only if these have no cycle, no read shows what failed (G1a) or half of a transaction (G1b), and every
list has one order. With ``realtime`` the order must also agree with time: what was over before something else began
comes before it (strict serializability).

The names are those of Adya (Weak Consistency, 1999) and of Elle (Kingsbury and Alvaro, 2020).

``lost``: calls that an old primary took with it and that are kept in ``diverged/``. They are no part of this history,
nor are reads that saw them; but nobody whose own writes survived may have seen them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Final

from jepsen.checkers.cycles import KINDS, Cycle, cycles
from jepsen.checkers.graph import Graph, Step
from jepsen.checkers.result import Findings, Result, of_process
from jepsen.checkers.transactions import Transaction, disagreements, shortened, transactions
from jepsen.checkers.versions import Orders, Versions
from jepsen.history import Atom, Call

NAME: Final = "append"
UNREAD_OF_A_KEY: Final = 64
"""Acknowledged elements that nobody saw, times readers of all others, are edges: of more than so many of each (a key
that was hardly read) only the first are used. An anomaly that needs the others is missed."""


def check(calls: Sequence[Call], *, realtime: bool = False, lost: Iterable[int] = ()) -> Result:
    """Raises Malformed where calls are not such transactions."""
    findings = Findings()
    every = transactions(calls)
    kept, dropped = _without_lost(every, frozenset(lost), findings)
    for one in kept:
        for text in disagreements(one):
            findings.add("internal", text, one.call)
    orders = Orders(kept, findings)
    graph = _graph(orders)
    if realtime:
        _add_realtime(graph, orders)
    for cycle in cycles(graph):
        calls_of = [orders.transactions[step.source].call for step in cycle.steps]
        findings.add(cycle.name, explain(cycle, orders), *calls_of)
    counts = {
        "transactions": len(every),
        "acknowledged": sum(one.call.ok for one in every),
        "indeterminate": sum(one.call.indeterminate for one in every),
        "failed": sum(one.call.failed for one in every),
        "lost-and-listed": dropped,
        "lists": len(orders.versions),
        **{kind: graph.count(kind) for kind in KINDS if realtime or kind != "rt"},
    }
    read = any(one.reads for one in kept)
    return findings.result(NAME, counts, "" if read else "nothing was read: nothing can be said")


def _without_lost(every: list[Transaction], lost: frozenset[int], findings: Findings) -> tuple[list[Transaction], int]:
    """Transactions of this history alone, and how many are not."""
    if not lost:
        return every, 0
    gone = {element: one for one in every if one.call.index in lost for element in one.appends}
    kept: list[Transaction] = []
    for one in every:
        if one.call.index in lost:
            continue
        read = ((key, each) for key, elements in one.reads for each in elements)
        seen = {element: gone[element] for element in read if element in gone}
        if not seen:
            kept.append(one)
        elif one.appends:
            unharmed = tuple(
                (key, elements) for key, elements in one.reads if not any((key, each) in seen for each in elements)
            )
            kept.append(replace(one, reads=unharmed))
            (key, element), writer = next(iter(seen.items()))
            findings.add(
                "based-on-lost",
                f"{one.name} survived, and had read {element} in {key}, of {writer.name}, which was lost",
                one.call,
                writer.call,
            )
    return kept, len(every) - len(kept)


# ------------------------------------------------------------------------------------------------------------- edges
def _graph(orders: Orders) -> Graph:
    graph = Graph(len(orders.transactions), KINDS)
    for key, versions in orders.versions.items():
        writers = [orders.writers.get((key, element)) for element in versions.order]
        known = [writer for writer in writers if writer is not None]
        for one, two in pairwise(known):
            graph.connect(one, two, "ww")
        for length, readers in versions.readers.items():
            _connect_readers(graph, writers, length, readers)
        _connect_unread(graph, orders, key, versions, known)
    return graph


def _connect_readers(graph: Graph, writers: list[int | None], length: int, readers: list[int]) -> None:
    """From the writer of the last element that was read, and to the writer of the first that was not.

    Where the list was read in the middle of a transaction (G1b), to the first of another one.
    """
    read = writers[length - 1] if length else None
    next_ = next((writer for writer in writers[length:] if writer is not None and writer != read), None)
    for reader in readers:
        if read is not None:
            graph.connect(read, reader, "wr")
        if next_ is not None:
            graph.connect(reader, next_, "rw")


def _connect_unread(graph: Graph, orders: Orders, key: Atom, versions: Versions, known: list[int]) -> None:
    """What nobody saw was appended after everything that somebody saw."""
    last = versions.readers.get(len(versions.order), [])[:UNREAD_OF_A_KEY]
    for element in versions.unread[:UNREAD_OF_A_KEY]:
        writer = orders.writers[key, element]
        if known:
            graph.connect(known[-1], writer, "ww")
        for reader in last:
            graph.connect(reader, writer, "rw")


def _add_realtime(graph: Graph, orders: Orders) -> None:
    """From each transaction to those that began after it was acknowledged, without what follows from others.

    ``front``: acknowledged, and not before any other acknowledged one; so no more edges than calls at a time.
    """
    events: list[tuple[int, int, bool]] = []
    for number, one in enumerate(orders.transactions):
        if one.call.ok:
            assert one.call.completion is not None
            events += [(one.call.index, number, True), (one.call.completion.index, number, False)]
        elif orders.happened(number):
            events.append((one.call.index, number, True))
    front: set[int] = set()
    before: dict[int, set[int]] = {}
    for _, number, begins in sorted(events):
        if begins:
            before[number] = set(front)
            for each in front:
                graph.connect(each, number, "rt")
        else:
            front -= before.pop(number)
            front.add(number)


# ------------------------------------------------------------------------------------------------------------- words
def explain(cycle: Cycle, orders: Orders) -> str:
    """Each step of a cycle, and why all together cannot be."""
    first = orders.transactions[cycle.steps[0].source]
    said = [_step(step, orders) for step in cycle.steps]
    names = " < ".join(orders.transactions[step.source].name for step in cycle.steps)
    who = ", ".join(of_process(orders.transactions[step.source].call) for step in cycle.steps)
    return f"{who}: {'; '.join(said)}. So {names} < {first.name}: a cycle."


def _step(step: Step, orders: Orders) -> str:
    one, two = orders.transactions[step.source], orders.transactions[step.target]
    if step.kind == "rt":
        assert one.call.completion is not None
        return (
            f"{one.name} was acknowledged (operation {one.call.completion.index}) before {two.name} was begun "
            f"(operation {two.call.index})"
        )
    if step.kind == "wr":
        key, element = next(
            (key, read[-1])
            for key, read in two.reads
            if read and key in orders.versions and orders.writers.get((key, read[-1])) == step.source
        )
        return f"{two.name} read {element} as the last element of {key}, which {one.name} had appended"
    if step.kind == "ww":
        return _overwrote(step, orders)
    key, read, element = next(
        (key, read, element)
        for key, read in one.reads
        if key in orders.versions
        for element in _following(orders.versions[key], read)
        if orders.writers.get((key, element)) == step.target
    )
    return f"{one.name} read {shortened(read)} of {key} and so did not see {element}, which {two.name} appended next"


def _overwrote(step: Step, orders: Orders) -> str:
    one, two = orders.transactions[step.source], orders.transactions[step.target]
    for key, element in two.appends:
        if (versions := orders.versions.get(key)) is None:
            continue
        earlier = versions.order
        if element in earlier:
            earlier = earlier[: earlier.index(element)]
        previous = next((each for each in reversed(earlier) if (key, each) in orders.writers), None)
        if previous is not None and orders.writers[key, previous] == step.source:
            return f"{two.name} appended {element} to {key} after {previous}, which {one.name} had appended"
    raise AssertionError("an edge without a reason")


def _following(versions: Versions, read: list[Atom]) -> list[Atom]:
    """What may come next after a list that was read."""
    return versions.order[len(read) :] or versions.unread
