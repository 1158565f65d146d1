"""Whether readers of a node ever see an older state after a newer one.

Calls: ``read`` answers ``{"database", "seen", "txid"}``: ``seen`` is a counter in the database that every transaction
raises, ``txid`` the TXID of the node's position just before the read (or None). ``increment`` raises the counter.

On one node, a read that began after another had ended shows at least the same, whichever process made it. Between
nodes nothing is promised: a replica lags (who wants more waits for a TXID, see own_writes.py).

Across failover, in its documented form: a node that has transactions which its cluster does not have keeps them in
``diverged/``, lists them, and goes back to the last common position. So each entry there excuses one step back on its
node and database, after it was made, and not below the position that it names. (The position steps back before what
readers see, by as long as the applier needs: whoever began before ``shown_until_ns``, or sees just what was seen when
the position stepped back, may see the lost state, and both are one step.)

A node that is given back the directory that it had some time ago begins where it was then: what its readers saw before
bounds nobody.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from jepsen.checkers.result import Findings, Result, of_process
from jepsen.ending import Kept
from jepsen.history import Atom, Call, Malformed, entry_of, number

NAME = "monotonic"

Span = tuple[int, int]
"""From when to when a node was given its old directory, in ns of the history's clock."""


@dataclass(frozen=True, slots=True)
class _Seen:
    call: Call
    seen: int
    txid: int | None


@dataclass(slots=True)
class _Place:
    """One database on one node. ``entries``: that have excused nothing yet. ``went_back``: since which operation.

    ``restores``: those that no read has begun after.

    ``half_used``: those that have excused a step of the position alone, and what was seen then.
    """

    newest: _Seen | None = None
    deepest: _Seen | None = None
    restores: list[Span] = field(default_factory=list)
    entries: list[Kept] = field(default_factory=list)
    half_used: dict[Kept, int] = field(default_factory=dict)
    went_back: int = -1


def check(
    calls: Sequence[Call],
    *,
    diverged: Mapping[str, Sequence[Kept]] | None = None,
    restored: Mapping[str, Sequence[Span]] | None = None,
) -> Result:
    """``diverged``, ``restored``: by node. Raises Malformed where a read is not of this kind."""
    findings = Findings()
    places: dict[tuple[str, Atom], _Place] = {}
    bounds: dict[int, tuple[_Seen | None, _Seen | None]] = {}
    increments = backs = reads = 0
    for _, call, begins in _events(calls):
        if call.f == "increment":
            increments += begins
            continue
        place = _place(call, places, diverged or {}, restored or {})
        if begins:
            while place.restores and place.restores[0][1] < call.invocation.time_ns:
                place.restores.pop(0)
                place.newest = place.deepest = None
            bounds[call.index] = place.newest, place.deepest
            continue
        reads += 1
        one = _seen(call)
        if any(_overlaps(call, span) for span in (restored or {}).get(call.node, ())):
            del bounds[call.index]
            continue
        if increments and one.seen > increments:
            text = f"{of_process(call)} saw {one.seen} on {call.node}, and only {increments} increments had been begun"
            findings.add("from-nowhere", text, call)
        backs += _judge(one, bounds.pop(call.index), place, findings)
    counts = {
        "reads": reads,
        "increments": increments,
        "places": len(places),
        "excused": backs,
    }
    return findings.result(NAME, counts, "" if reads else "no read was answered")


def _events(calls: Iterable[Call]) -> list[tuple[int, Call, bool]]:
    found: list[tuple[int, Call, bool]] = []
    for call in calls:
        if call.f == "increment" and not call.failed:
            found.append((call.index, call, True))
        elif call.f == "read" and call.ok and call.completion is not None:
            found += [(call.index, call, True), (call.completion.index, call, False)]
    return sorted(found, key=lambda each: each[0])


def _overlaps(call: Call, span: Span) -> bool:
    assert call.completion is not None
    return call.invocation.time_ns <= span[1] and span[0] <= call.completion.time_ns


def _place(
    call: Call,
    places: dict[tuple[str, Atom], _Place],
    diverged: Mapping[str, Sequence[Kept]],
    restored: Mapping[str, Sequence[Span]],
) -> _Place:
    assert call.completion is not None
    database = entry_of(call.completion, "database")
    if not isinstance(database, str) or not call.node:
        raise Malformed(f"operation {call.completion.index}: a read says of which database on which node it was")
    key = call.node, database
    if key not in places:
        entries = sorted(diverged.get(call.node, ()), key=lambda each: each.time_ns)
        places[key] = _Place(
            entries=[each for each in entries if each.database == database],
            restores=sorted(restored.get(call.node, ())),
        )
    return places[key]


def _seen(call: Call) -> _Seen:
    assert call.completion is not None
    txid = entry_of(call.completion, "txid", None)
    seen = number(entry_of(call.completion, "seen"), call.completion)
    return _Seen(call, seen, None if txid is None else number(txid, call.completion))


def _judge(one: _Seen, bound: tuple[_Seen | None, _Seen | None], place: _Place, findings: Findings) -> bool:
    """Compare a read with what was known when it began; whether it goes back and that is excused."""
    if one.call.index < place.went_back:
        # It began before the step back was seen, so it may show either side of it, and bounds nobody.
        return False
    newest, deepest = bound
    behind = [each for each in (newest, deepest) if each is not None and _behind(one, each)]
    if not behind:
        # The last one of those that saw the same: until then it was to be seen.
        place.newest = one if place.newest is None or one.seen >= place.newest.seen else place.newest
        if one.txid is not None and (place.deepest is None or one.txid > (place.deepest.txid or 0)):
            place.deepest = one
        return False
    entry = _excuse(one, newest, deepest, place)
    if entry is None:
        first = behind[0]
        findings.add("went-back", f"{_said(one)}, and {_said(first)} before that began", first.call, one.call)
    elif entry in place.half_used:
        del place.half_used[entry]
    else:
        place.entries.remove(entry)
        if newest is not None and one.seen >= newest.seen:
            place.half_used[entry] = one.seen
    assert one.call.completion is not None
    place.newest = one
    place.deepest = one if one.txid is not None else None
    place.went_back = one.call.completion.index
    return entry is not None


def _behind(one: _Seen, other: _Seen) -> bool:
    return one.seen < other.seen or (one.txid is not None and other.txid is not None and one.txid < other.txid)


def _excuse(one: _Seen, newest: _Seen | None, deepest: _Seen | None, place: _Place) -> Kept | None:
    """The first entry of ``diverged/`` that this step back can be."""
    assert one.call.completion is not None
    now_ns = one.call.completion.time_ns
    seen_ns = now_ns if newest is None else newest.call.invocation.time_ns
    unapplied = [each for each, lost in place.half_used.items() if newest is not None and newest.seen == lost]
    recent = [each for each in place.half_used if seen_ns <= each.shown_until_ns]
    for entry in [*unapplied, *recent, *place.entries]:
        if entry.time_ns > now_ns:
            continue
        if one.txid is not None and one.txid < entry.base_txid:
            continue
        if entry in unapplied:
            return entry
        if deepest is not None and (deepest.txid or 0) > entry.end_txid and not _meanwhile(deepest, entry):
            continue
        return entry
    return None


def _meanwhile(one: _Seen, entry: Kept) -> bool:
    """Whether a node was putting a history aside: its position may be of the cluster's before what readers see is."""
    assert one.call.completion is not None
    return entry.time_ns <= one.call.completion.time_ns <= entry.shown_until_ns


def _said(one: _Seen) -> str:
    at = "" if one.txid is None else f" at TXID {one.txid:016x}"
    return f"{of_process(one.call)} saw {one.seen}{at} on {one.call.node}"
