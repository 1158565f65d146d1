"""Whether there was one primary at a time.

Takes what nodes said of their roles in their logs, at the instants of one clock, and who acknowledged what. An epoch
belongs to one node for ever; the epochs of a node rise; and nothing is acknowledged under an epoch that was begun after
something of a later epoch had been acknowledged.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from jepsen.checkers.result import Findings, Result, of_process
from jepsen.ending import RoleChange
from jepsen.history import Call

NAME = "primaries"


@dataclass(frozen=True, slots=True)
class Reign:
    """A node was primary, as far as it knew; until the end when ``ended_ns`` is None."""

    node: str
    epoch: int
    began_ns: int
    ended_ns: int | None


def reigns(roles: Sequence[RoleChange]) -> list[Reign]:
    """In the order in which they began."""
    found: list[Reign] = []
    current: dict[str, RoleChange] = {}
    for each in sorted(roles, key=lambda each: each.time_ns):
        before = current.get(each.node)
        if before is not None and (each.role, each.epoch) == (before.role, before.epoch):
            continue
        if before is not None and before.role == "primary":
            found.append(Reign(each.node, before.epoch, before.time_ns, each.time_ns))
        current[each.node] = each
    found += [Reign(each.node, each.epoch, each.time_ns, None) for each in current.values() if each.role == "primary"]
    return sorted(found, key=lambda each: (each.began_ns, each.epoch))


def check(calls: Sequence[Call], roles: Sequence[RoleChange], *, forwards: bool = False) -> Result:
    """``roles``: of all nodes, from their logs; those of a killed process end with its next one.

    ``forwards``: a node that is the primary no more has others commit what it is asked for: of what was begun before
    and acknowledged afterwards nobody can say which it was.
    """
    findings = Findings()
    every = reigns(roles)
    _epochs(every, findings)
    acknowledged = [call for call in calls if call.ok and call.writes]
    by_node: dict[str, list[Reign]] = {}
    for each in every:
        by_node.setdefault(each.node, []).append(each)
    epochs = {
        call.index: epoch for call in acknowledged if (epoch := _epoch(call, by_node, forwards=forwards)) is not None
    }
    _in_order([call for call in acknowledged if call.index in epochs], epochs, findings)
    counts = {
        "reigns": len(every),
        "epochs": len({each.epoch for each in every}),
        "acknowledged": len(acknowledged),
        "elsewhere": len(acknowledged) - len(epochs),
    }
    return findings.result(NAME, counts, "" if every else "no node ever said that it was primary")


def _epochs(every: Sequence[Reign], findings: Findings) -> None:
    owners: dict[int, str] = {}
    newest: dict[str, int] = {}
    for each in every:
        owner = owners.setdefault(each.epoch, each.node)
        if owner != each.node:
            findings.add("two-primaries", f"{owner} and {each.node} were both primary with epoch {each.epoch}")
        if each.epoch < newest.get(each.node, 0):
            text = f"{each.node} was primary with epoch {each.epoch} after epoch {newest[each.node]}"
            findings.add("epoch-went-back", text)
        newest[each.node] = max(each.epoch, newest.get(each.node, 0))


def _epoch(call: Call, by_node: dict[str, list[Reign]], *, forwards: bool) -> int | None:
    """Under which epoch a call was acknowledged; None when its node was not primary: then it was forwarded."""
    assert call.completion is not None
    of_node = by_node.get(call.node, [])
    at = bisect_right(of_node, call.completion.time_ns, key=lambda each: each.began_ns) - 1
    if at < 0:
        return None
    reign = of_node[at]
    until_ns = call.completion.time_ns if forwards else call.invocation.time_ns
    over = reign.ended_ns is not None and reign.ended_ns < until_ns
    return None if over else reign.epoch


def _in_order(calls: Sequence[Call], epochs: dict[int, int], findings: Findings) -> None:
    ended = sorted(calls, key=lambda each: each.completion.index if each.completion is not None else 0)
    newest: Call | None = None
    at = 0
    for call in calls:
        while at < len(ended) and ended[at].before(call):
            if newest is None or epochs[ended[at].index] > epochs[newest.index]:
                newest = ended[at]
            at += 1
        if newest is not None and epochs[call.index] < epochs[newest.index]:
            findings.add(
                "late-acknowledgement",
                f"{of_process(call)} was acknowledged by {call.node} in epoch {epochs[call.index]}, and {newest.node} "
                f"had acknowledged T{newest.index} in epoch {epochs[newest.index]} before it began",
                newest,
                call,
            )
