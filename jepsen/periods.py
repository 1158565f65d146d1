"""From when to when each nemesis was at work.

Knows the names that nemeses give their operations: ``start-NAME`` and ``stop-NAME`` around something that lasts, and
just ``NAME`` for an accident of one moment. Each is recorded twice, when it is begun and when it is done. Does not know
what any of them does.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from jepsen.history import NEMESIS, OBSERVER, Operation

BUSY = "busy"
"""An observer's note: the machine did not keep up, for so long before it (``{"since_s"}``)."""
_START = "start-"
_STOP = "stop-"


@dataclass(frozen=True, slots=True)
class Period:
    """``details``: what the nemesis said when it began, for people. ``lasting``: not an accident of one moment."""

    name: str
    began_ns: int
    ended_ns: int
    details: str = ""
    lasting: bool = True

    @property
    def length_ns(self) -> int:
        return self.ended_ns - self.began_ns

    def overlaps(self, began_ns: int, ended_ns: int) -> bool:
        return self.began_ns <= ended_ns and began_ns <= self.ended_ns


def restored(operations: Iterable[Operation]) -> dict[str, list[tuple[int, int]]]:
    """By node, from when to when it was given back a directory that it had before (nemeses/rejoin.py)."""
    found: dict[str, list[tuple[int, int]]] = {}
    node, began_ns = "", -1
    for each in operations:
        if each.process != NEMESIS:
            continue
        if each.f == "start-rejoin" and isinstance(each.value, str):
            kind, _, name = each.value.partition(" ")
            node = name if kind == "restored" else ""
        elif each.f == "stop-rejoin" and node:
            if began_ns < 0:
                began_ns = each.time_ns
            else:
                found.setdefault(node, []).append((began_ns, each.time_ns))
                node, began_ns = "", -1
    return found


def periods(operations: Sequence[Operation]) -> tuple[Period, ...]:
    """All of them, by their beginnings. From the instant a fault is begun until the instant it is known to be undone.

    What is never undone lasts until the end of the history.
    """
    ended_ns = operations[-1].time_ns if operations else 0
    halves: dict[str, Operation] = {}
    begun: dict[str, Operation] = {}
    found: list[Period] = []
    for each in operations:
        if each.process != NEMESIS:
            continue
        first = halves.pop(each.f, None)
        if first is None:
            halves[each.f] = each
            if each.f.startswith(_START):
                begun.setdefault(each.f.removeprefix(_START), each)
        elif each.f.startswith(_START):
            _add_details(begun, each)
        elif each.f.startswith(_STOP):
            name = each.f.removeprefix(_STOP)
            if (start := begun.pop(name, None)) is not None:
                found.append(Period(name, start.time_ns, each.time_ns, _details(start)))
        else:
            found.append(Period(each.f, first.time_ns, each.time_ns, _details(first) or _details(each), lasting=False))
    found += [Period(name, start.time_ns, ended_ns, _details(start)) for name, start in begun.items()]
    found += [
        Period(name, first.time_ns, ended_ns, _details(first), lasting=False)
        for name, first in halves.items()
        if not name.startswith((_START, _STOP))
    ]
    return tuple(sorted(found, key=lambda each: (each.began_ns, each.ended_ns, each.name)))


def busy(operations: Iterable[Operation]) -> list[Period]:
    """When the machine did not keep up, as observers noted. Not a nemesis: nobody wanted it."""
    return [
        Period(BUSY, max(0, each.time_ns - round(1e9 * since_s)), each.time_ns)
        for each in operations
        if each.process == OBSERVER
        and each.f == BUSY
        and isinstance(each.value, dict)
        and isinstance(since_s := each.value.get("since_s"), int | float)
    ]


def _add_details(begun: dict[str, Operation], done: Operation) -> None:
    """To whom it was done may be known only once it is."""
    name = done.f.removeprefix(_START)
    start = begun.get(name)
    if start is not None and start.value is None:
        begun[name] = replace(start, value=done.value)


def _details(one: Operation) -> str:
    return "" if one.value is None else str(one.value)


def merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same stretches of time without overlaps, in order."""
    found: list[tuple[int, int]] = []
    for began, ended in sorted(spans):
        if found and began <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], ended))
        else:
            found.append((began, ended))
    return found
