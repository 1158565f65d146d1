"""Whether who writes through proxies reads back what he wrote, on whatever node, as long as he sends their cookie.

Calls on registers, of which each value is written once: ``write``, ``cas`` and confirmed ``read``, as of register.py;
and ``look`` at ``{"key"}``, answered with ``"value"`` and ``"after"``: the index of the last write, of whatever, that
its client was acknowledged by a proxy. Whatever was over before that write began is in what the look shows, and the
write itself. A look may show more.

``lost``: calls that are kept in ``diverged/``. A cookie of a lost history is good for nothing, and the proxy says so. A
node that goes back to the cluster's history may show the lost one for a moment more (docs/guarantees.md).
"""

from collections.abc import Iterable, Sequence
from typing import Final

from jepsen.checkers.result import Findings, Result, of_process
from jepsen.history import Atom, Call, Malformed, atom, entry_of, number

NAME: Final = "cookies"
LOOK: Final = "look"


def check(calls: Sequence[Call], *, lost: Iterable[int] = ()) -> Result:
    """Raises Malformed where calls are not of this kind."""
    findings = Findings()
    gone = frozenset(lost)
    by_index = {call.index: call for call in calls}
    of_key: dict[Atom, list[tuple[Atom, Call]]] = {}
    for call in calls:
        if call.f in {"write", "cas", "read"}:
            key, value = _leaves(call)
            of_key.setdefault(key, []).append((value, call))
    looks = [call for call in calls if call.f == LOOK and call.ok]
    excused = 0
    for look in looks:
        assert look.completion is not None
        after = by_index.get(number(entry_of(look.completion, "after"), look.completion))
        if after is None:
            raise Malformed(f"operation {look.completion.index}: it was after what is no call")
        of_this = of_key.get(atom(entry_of(look.completion, "key"), look.completion), [])
        shown = atom(entry_of(look.completion, "value"), look.completion)
        if after.index in gone or any(call.index in gone for value, call in of_this if value == shown):
            excused += 1
        else:
            _look(look, after, shown, [each for each in of_this if each[1].index not in gone], findings)
    return findings.result(NAME, {"looks": len(looks), "of-lost-histories": excused})


def _leaves(call: Call) -> tuple[Atom, Atom]:
    """(key, what the register holds when it has happened)."""
    value = call.value
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise Malformed(f"operation {call.index}: {value!r} is not a pair")
    key, left = value
    if call.f == "cas":
        if not isinstance(left, list | tuple) or len(left) != 2:
            raise Malformed(f"operation {call.index}: {left!r} is not a pair")
        left = left[1]
    return atom(key, call.invocation), atom(left, call.invocation)


def _look(look: Call, after: Call, shown: Atom, others: Sequence[tuple[Atom, Call]], findings: Findings) -> None:
    who = f"{of_process(look)} on {look.node or 'some node'} saw {shown}"
    writer = next((call for value, call in others if call.f != "read" and value == shown), None)
    if shown is not None and writer is None:
        findings.add("from-nowhere", f"{who}, which nobody wrote", look)
    elif writer is not None and writer.failed:
        findings.add("failed-seen", f"{who}, whose write had failed", writer, look)
    else:
        # Of all that must be seen, who began last.
        due = max(
            (call for value, call in others if call.ok and value != shown and (call.before(after) or call is after)),
            key=lambda call: call.index,
            default=None,
        )
        if due is not None and (writer is None or writer.before(due)):
            text = f"{who} after T{after.index}, of its own client, but T{due.index} had come after that by then"
            findings.add("not-seen", text, *([writer] if writer is not None else []), due, after, look)
