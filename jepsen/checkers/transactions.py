"""Transactions that append to lists and read them, taken out of calls.

Knows what one transaction did, and whether it agrees with itself. Does not know the others.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from jepsen.history import TRANSACTION, Atom, Call, Malformed, atom, micro_operations

Element = tuple[Atom, Atom]
"""A key and what was appended to it."""
SHOWN_ELEMENTS: Final = 12


@dataclass(frozen=True, slots=True)
class Transaction:
    """``appends``: every (key, element), in order. ``reads``: every (key, list), of an acknowledged one only."""

    call: Call
    appends: tuple[Element, ...]
    reads: tuple[tuple[Atom, list[Atom]], ...]

    @property
    def name(self) -> str:
        return f"T{self.call.index}"


def transactions(calls: Iterable[Call]) -> list[Transaction]:
    """Of every call that is one. Raises Malformed where an element was appended twice: nobody could tell them apart."""
    found: list[Transaction] = []
    seen: dict[Element, int] = {}
    for call in calls:
        if call.f != TRANSACTION:
            continue
        one = _transaction(call)
        for element in one.appends:
            if element in seen:
                raise Malformed(f"{element[1]} is appended to {element[0]} by T{seen[element]} and by {one.name}")
            seen[element] = call.index
        found.append(one)
    return found


def _transaction(call: Call) -> Transaction:
    appends: list[Element] = []
    reads: list[tuple[Atom, list[Atom]]] = []
    source = call.completion if call.ok and call.completion is not None else call.invocation
    for name, key, value in micro_operations(source):
        key_ = atom(key, source)
        if name == "append":
            appends.append((key_, atom(value, source)))
        elif call.ok:
            reads.append((key_, _elements(value, call)))
    if call.ok:
        _agrees(call, appends)
    return Transaction(call, tuple(appends), tuple(reads))


def _elements(value: object, call: Call) -> list[Atom]:
    """The list that a read answered; nothing at all is an empty one."""
    assert call.completion is not None
    if value is None:
        return []
    if not isinstance(value, list):
        raise Malformed(f"operation {call.completion.index}: {value!r} was read, which is not a list")
    for element in value:
        if element.__class__ is not int:
            atom(element, call.completion)
    return value


def _agrees(call: Call, appends: list[Element]) -> None:
    """What was acknowledged appended what was asked for."""
    asked = [(key, value) for name, key, value in micro_operations(call.invocation) if name == "append"]
    if asked != appends:
        raise Malformed(f"operation {call.index} asked for other appends than were acknowledged")


def disagreements(one: Transaction) -> list[str]:
    """Where a transaction contradicts itself, by what it had read and appended before and was to append later."""
    if not one.call.ok or not one.reads:
        return []
    assert one.call.completion is not None
    found: list[str] = []
    known: dict[Atom, list[Atom]] = {}
    own: dict[Atom, list[Atom]] = {}
    later = set(one.appends)
    for name, key_, value in micro_operations(one.call.completion):
        key = atom(key_, one.call.completion)
        if name == "append":
            element = atom(value, one.call.completion)
            later.remove((key, element))
            own.setdefault(key, []).append(element)
            if key in known:
                known[key] = [*known[key], element]
            continue
        read = _elements(value, one.call)
        if text := _disagreement(read, known.get(key), own.get(key, [])):
            found.append(f"{one.name}: key {key}: {text}")
        if later and (early := [each for each in read if (key, each) in later]):
            found.append(f"{one.name}: key {key}: it read {shortened(early)} and appended it only then")
        known[key] = read
    return found


def _disagreement(read: list[Atom], known: list[Atom] | None, own: list[Atom]) -> str:
    if known is not None and read != known:
        return f"it read {shortened(read)} where, by what it had done, it has {shortened(known)}"
    if known is None and own and read[-len(own) :] != own:
        return f"it appended {shortened(own)} and then read {shortened(read)}"
    return ""


def shortened(elements: Sequence[object]) -> str:
    """A list for people: of a long one the beginning and the end."""
    if len(elements) <= SHOWN_ELEMENTS:
        return f"[{', '.join(map(str, elements))}]"
    rest = ", ".join(map(str, elements[-SHOWN_ELEMENTS + 3 :]))
    return f"[{', '.join(map(str, elements[:2]))}, … {len(elements)} in all …, {rest}]"
