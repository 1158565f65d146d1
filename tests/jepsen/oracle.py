"""What checkers are compared with: every order of a tiny history is tried. Written without any of their code."""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, permutations
from typing import Any

from jepsen.history import Call

Apply = Callable[[Any, Call], tuple[bool, Any]]
"""State and call → whether it can have had its outcome there, and the state after it."""


def some_order(calls: Sequence[Call], initial: Any, apply: Apply, *, realtime: bool) -> bool:
    """Whether all acknowledged calls, and some of those without an answer, can have happened one after the other."""
    sure = [call for call in calls if call.ok]
    perhaps = [call for call in calls if call.indeterminate]
    for number in range(len(perhaps) + 1):
        for also in combinations(perhaps, number):
            for order in _orders([*sure, *also], realtime=realtime):
                if _possible(order, initial, apply):
                    return True
    return False


def _orders(calls: Sequence[Call], *, realtime: bool) -> Iterator[tuple[Call, ...]]:
    for order in permutations(calls):
        wrong = realtime and any(
            later.completion is not None and later.ok and later.completion.index < earlier.invocation.index
            for at, earlier in enumerate(order)
            for later in order[at + 1 :]
        )
        if not wrong:
            yield order


def _possible(order: Sequence[Call], initial: Any, apply: Apply) -> bool:
    state = initial
    for call in order:
        possible, state = apply(state, call)
        if not possible:
            return False
    return True


def lists(state: dict[Any, list[Any]], call: Call) -> tuple[bool, dict[Any, list[Any]]]:
    after = {key: list(elements) for key, elements in state.items()}
    for name, key, value in call.value:  # type: ignore[attr-defined]
        if name == "append":
            after.setdefault(key, []).append(value)
        elif call.ok and after.get(key, []) != (value or []):
            return False, state
    return True, after


def register(state: dict[Any, Any], call: Call) -> tuple[bool, dict[Any, Any]]:
    asked: Any = call.value
    key, value = asked
    match call.f:
        case "read":
            return not call.ok or state.get(key) == value, state
        case "write":
            return True, {**state, key: value}
        case _:
            expected, new = value
            return state.get(key) == expected, {**state, key: new}


def growing_set(state: frozenset[Any], call: Call) -> tuple[bool, frozenset[Any]]:
    if call.f == "add":
        return True, state | {call.invocation.value}
    return not call.ok or set(call.value) == state, state  # type: ignore[call-overload]


def counter(state: int, call: Call) -> tuple[bool, int]:
    if call.f == "add":
        return True, state + call.invocation.value  # type: ignore[operator]
    return not call.ok or call.value == state, state
