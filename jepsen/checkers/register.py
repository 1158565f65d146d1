"""Whether registers behave like one copy that is read, written, and compared and set, each at one instant.

Calls: ``read`` answers ``[key, value]``, ``write`` has ``[key, value]``, ``cas`` has ``[key, [expected, new]]``. Each
key is judged alone: if every key is linearizable, all together are (Herlihy and Wing, 1990). First a look for what is
plainly overwritten, which is quick and says why; then the search of register_search.py.

``lost``: calls that an old primary took with it and that are kept in ``diverged/``: they are no part of this history,
nor are reads of values that only they had written.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from jepsen.checkers.register_search import Action, Stuck, TooLong, search
from jepsen.checkers.result import Findings, Result, of_process
from jepsen.history import Atom, Call, Malformed, atom

NAME: Final = "register"
INITIAL: Final[Atom] = None
LIMIT_S: Final = 60.0
"""For all keys. Judging is exponential at worst; a history that needs longer wants more keys or more values."""


def check(
    calls: Sequence[Call],
    *,
    clock: Callable[[], float],
    initial: Atom = INITIAL,
    lost: Iterable[int] = (),
    limit_s: float = LIMIT_S,
) -> Result:
    """``clock``: seconds that pass. Raises Malformed where calls are not of registers."""
    until = clock() + limit_s
    findings = Findings()
    keys = actions_by_key(calls)
    dropped = _drop_lost(keys, frozenset(lost))
    unknown: list[str] = []
    actions = 0
    for key, of_key in keys.items():
        actions += len(of_key)
        if _overwritten(key, of_key, initial, findings):
            continue
        try:
            stuck = search(of_key, initial, clock, until)
        except TooLong:
            unknown.append(str(key))
        else:
            if stuck is not None:
                _impossible(key, of_key, stuck, findings)
    counts = {"keys": len(keys), "calls": actions, "lost-and-listed": dropped, "keys-unknown": len(unknown)}
    why = f"no answer within {limit_s:g} s for: {', '.join(unknown[:10])}" if unknown else ""
    if not any(action.reads for of_key in keys.values() for action in of_key):
        why = why or "nothing was read: nothing can be said"
    return findings.result(NAME, counts, why)


def actions_by_key(calls: Sequence[Call]) -> dict[Atom, list[Action]]:
    """What may have happened, by key; what certainly did not, and reads without an answer, say nothing."""
    keys: dict[Atom, list[Action]] = {}
    for call in calls:
        if call.f not in {"read", "write", "cas"} or call.failed or (call.f == "read" and not call.ok):
            continue
        key, value = _pair(call.value, call)
        if call.f == "cas":
            expected, new = _pair(value, call)
            action = Action(call, _atom(expected, call), _atom(new, call), demands=True, reads=False)
        else:
            read = call.f == "read"
            action = Action(call, _atom(value, call), _atom(value, call), demands=read, reads=read)
        keys.setdefault(_atom(key, call), []).append(action)
    return keys


def _pair(value: object, call: Call) -> tuple[object, object]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise Malformed(f"operation {call.index}: {value!r} is not a pair")
    return value[0], value[1]


def _atom(value: object, call: Call) -> Atom:
    return atom(value, call.invocation)


def _drop_lost(keys: dict[Atom, list[Action]], lost: frozenset[int]) -> int:
    dropped = 0
    for key, actions in keys.items():
        gone = {action.leaves for action in actions if action.call.index in lost and not action.reads}
        gone -= {action.leaves for action in actions if not action.reads and action.call.index not in lost}
        kept = [
            action
            for action in actions
            if action.call.index not in lost and not (action.reads and action.needs in gone)
        ]
        dropped += len(actions) - len(kept)
        keys[key] = kept
    return dropped


# ------------------------------------------------------------------------------------------------------- overwritten
def _overwritten(key: Atom, actions: Sequence[Action], initial: Atom, findings: Findings) -> bool:
    """Find the first call that found what was overwritten before it began, and not written again."""
    others = _Others([action for action in actions if action.certain])
    writers: dict[tuple[type, Atom], list[Action]] = {}
    for action in actions:
        if not action.reads:
            writers.setdefault((type(action.leaves), action.leaves), []).append(action)
    for action in actions:
        if not (action.certain and action.demands):
            continue
        after = others.last_before(action)
        if after is None and action.possible(initial):
            continue
        begun = [action_ for action_ in writers.get((type(action.needs), action.needs), ()) if action_ is not action]
        until = bisect_left(begun, action.ended, key=lambda each: each.began)
        if any(after is None or each.ended > after.began for each in reversed(begun[:until])):
            continue
        _tell_overwritten(key, action, begun[:until], after, findings)
        return True
    return False


class _Others:
    """What certainly left or found a value: of all that ended before an instant, the last two by their beginnings."""

    def __init__(self, sure: Iterable[Action]) -> None:
        ordered = sorted(sure, key=lambda each: each.ended)
        self._ends = [each.ended for each in ordered]
        self._newest: list[tuple[Action | None, Action | None]] = [(None, None)]
        first: Action | None = None
        second: Action | None = None
        for each in ordered:
            if first is None or each.began > first.began:
                if first is not None and not each.same(first.leaves, each.leaves):
                    second = first
                first = each
            elif not each.same(first.leaves, each.leaves) and (second is None or each.began > second.began):
                second = each
            self._newest.append((first, second))

    def last_before(self, action: Action) -> Action | None:
        """Of those that had ended when ``action`` began, and left or found another value, who began last."""
        for other in self._newest[bisect_left(self._ends, action.began)]:
            if other is not None and not action.possible(other.leaves):
                return other
        return None


def _tell_overwritten(
    key: Atom, action: Action, begun: Sequence[Action], after: Action | None, findings: Findings
) -> None:
    who = f"{of_process(action.call)} found {action.needs} in register {key}"
    if not begun and after is None:
        text = f"{who}, which nobody had begun to write"
    elif after is None:
        text = f"{who}, which nobody had written by then"
    else:
        again = "nobody wrote it again" if begun else "nobody ever wrote it"
        did = "found" if after.reads else "left"
        text = f"{who}, but {of_process(after.call)} had {did} {after.leaves} before that began, and {again}"
    between = [] if after is None else [after.call]
    findings.add("nonlinearizable", text, *(each.call for each in begun[-2:]), *between, action.call)


def _impossible(key: Atom, actions: Sequence[Action], stuck: Stuck, findings: Findings) -> None:
    action, values = stuck.action, sorted(map(str, stuck.values))
    others = [each.call for each in stuck.open if each is not action]
    wrote = "" if action.reads else f", and left {action.leaves}"
    found = f"found {action.needs}{wrote}" if action.demands else f"wrote {action.leaves}"
    earlier = [
        each.call for each in actions if not each.reads and each.began < action.began and str(each.leaves) in values
    ]
    findings.add(
        "nonlinearizable",
        f"{of_process(action.call)} {found} in register {key}, and no order of all calls allows that: before it, and "
        f"before what else was open then ({', '.join(of_process(each) for each in others[:10]) or 'nothing'}), the "
        f"register holds {' or '.join(values[:10])}",
        action.call,
        *others[:10],
        *earlier[-3:],
    )
