"""Whether a read that waited for a TXID shows what had that TXID, or a newer state, on whatever node.

Calls: ``write`` of ``{"key", "value"}``, answered with ``"txid"`` beside them: the position after the commit, so at
least the TXID of the write. ``read`` of ``{"key", "after"}``: it waited until its node had applied TXID ``after``;
answered with ``"value"`` beside them (None: there is no such key). Every value of a key is written once.

``lost``: calls that are kept in ``diverged/``. Who reads after a TXID of a lost history gets what the cluster has at
that TXID now: that is documented, and such writes are not expected. Until a node has put a history aside it shows that
one; the cluster gives the same TXIDs to other transactions meanwhile, which nobody can expect to see there.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from jepsen.checkers.result import Findings, Result, of_process
from jepsen.ending import Kept
from jepsen.history import Atom, Call, Malformed, atom, entry_of, number

NAME: Final = "own-writes"


@dataclass(slots=True)
class _Key:
    """``acknowledged``: (TXID, write). ``by_value``: every write, by what it wrote."""

    acknowledged: list[tuple[int, Call]] = field(default_factory=list)
    by_value: dict[Atom, Call] = field(default_factory=dict)


def check(
    calls: Sequence[Call], *, lost: Iterable[int] = (), diverged: Mapping[str, Sequence[Kept]] | None = None
) -> Result:
    """``diverged``: by node. Raises Malformed where calls are not of this kind."""
    findings = Findings()
    excused = frozenset(lost)
    keys: dict[Atom, _Key] = {}
    for call in calls:
        if call.f == "write":
            _write(call, keys, excused)
    reads = [call for call in calls if call.f == "read" and call.ok]
    elsewhere = {call.index for call in reads if _of_lost_history(call, (diverged or {}).get(call.node, ()))}
    uncertain = sum(_read(call, keys, excused, findings, elsewhere=call.index in elsewhere) for call in reads)
    writes = [call for call in calls if call.f == "write"]
    counts = {
        "writes": len(writes),
        "acknowledged": sum(call.ok for call in writes),
        "indeterminate": sum(call.indeterminate for call in writes),
        "lost-and-listed": sum(call.index in excused for call in writes),
        "reads": len(reads),
        "reads-of-indeterminate": uncertain,
        "reads-of-lost-histories": len(elsewhere),
    }
    return findings.result(NAME, counts, "" if reads else "no read was answered")


def _write(call: Call, keys: dict[Atom, _Key], excused: frozenset[int]) -> None:
    key = keys.setdefault(atom(entry_of(call.invocation, "key"), call.invocation), _Key())
    value = atom(entry_of(call.invocation, "value"), call.invocation)
    if value in key.by_value:
        raise Malformed(f"operation {call.index}: {value} was written before, by T{key.by_value[value].index}")
    key.by_value[value] = call
    if call.ok and call.completion is not None:
        txid = number(entry_of(call.completion, "txid"), call.completion)
        if call.index not in excused:
            key.acknowledged.append((txid, call))


def _of_lost_history(read: Call, entries: Sequence[Kept]) -> bool:
    """Whether its node had, for the TXID that was waited for, what it put aside later."""
    assert read.completion is not None
    after = number(entry_of(read.completion, "after"), read.completion)
    began_ns = read.invocation.time_ns
    return any(entry.base_txid < after <= entry.end_txid and began_ns < entry.shown_until_ns for entry in entries)


def _read(call: Call, keys: dict[Atom, _Key], excused: frozenset[int], findings: Findings, *, elsewhere: bool) -> bool:
    """Whether it shows a write without an answer, of which nothing can be said.

    ``elsewhere``: in a lost history, where nothing of the cluster's is expected.
    """
    assert call.completion is not None
    key_name = atom(entry_of(call.completion, "key"), call.completion)
    after = number(entry_of(call.completion, "after"), call.completion)
    value = atom(entry_of(call.completion, "value"), call.completion)
    key = keys.get(key_name, _Key())
    # A write that was begun later has been given the same TXID in another history.
    begun = [write for txid, write in key.acknowledged if txid <= after and write.index < call.completion.index]
    known = [] if elsewhere else begun
    expected = max(known, key=lambda write: write.index, default=None)
    who = f"{of_process(call)} waited for TXID {after:016x}{f' on {call.node}' if call.node else ''}"
    found = key.by_value.get(value)
    if value is None and found is None:
        if expected is not None:
            findings.add("not-seen", f"{who} and found no {key_name}, of T{expected.index}", expected, call)
    elif found is None:
        findings.add("from-nowhere", f"{who} and read {value} of {key_name}, which nobody ever wrote", call)
    elif found.failed:
        findings.add("failed-seen", f"{who} and read {value} of {key_name}, whose write had failed", found, call)
    elif found.index > call.completion.index:
        findings.add("from-future", f"{who} and read {value} of {key_name} before it was written", call, found)
    elif expected is not None and found.before(expected):
        text = f"{who} and read {value} of {key_name}, but T{expected.index} had overwritten it by then"
        findings.add("not-seen", text, found, expected, call)
    return found is not None and (found.indeterminate or found.index in excused)
