"""Whether money is neither made nor destroyed by transfers between accounts.

Calls: ``read`` answers a map from account to balance; ``transfer`` has ``{"from", "to", "amount"}``. A read is one
snapshot, so its balances add up to ``total`` wherever and whenever it was made; a replica's may be old, never torn.
"""

from collections.abc import Collection, Sequence

from jepsen.checkers.result import Findings, Result
from jepsen.history import Call, Malformed, number

NAME = "bank"


def check(calls: Sequence[Call], *, total: int, accounts: Collection[str] = (), negative: bool = False) -> Result:
    """``accounts``: the names of all, none when nobody says. ``negative``: balances may be below 0."""
    findings = Findings()
    reads = 0
    for call in calls:
        if call.f == "read" and call.ok:
            reads += 1
            _read(call, total, frozenset(accounts), findings, negative=negative)
    transfers = [call for call in calls if call.f == "transfer"]
    counts = {
        "reads": reads,
        "transfers": len(transfers),
        "acknowledged": sum(call.ok for call in transfers),
        "indeterminate": sum(call.indeterminate for call in transfers),
    }
    return findings.result(NAME, counts, "" if reads else "no read was answered")


def _read(call: Call, total: int, accounts: frozenset[str], findings: Findings, *, negative: bool) -> None:
    assert call.completion is not None
    if not isinstance(call.value, dict):
        raise Malformed(f"operation {call.completion.index}: {call.value!r} is not a map of balances")
    who = f"T{call.index}" + (f" on {call.node}" if call.node else "")
    found = call.value
    if accounts and found.keys() != accounts:
        missing, unknown = sorted(accounts - found.keys()), sorted(found.keys() - accounts)
        findings.add(
            "wrong-accounts",
            f"{who} found {len(found)} accounts; missing: {', '.join(missing) or 'none'}, unknown: "
            f"{', '.join(unknown) or 'none'}",
            call,
        )
        return
    balances = {account: number(balance, call.completion) for account, balance in found.items()}
    if sum(balances.values()) != total:
        findings.add("wrong-total", f"{who} found {sum(balances.values())} in all, not {total}", call)
    below = [account for account, balance in balances.items() if balance < 0]
    if below and not negative:
        findings.add("negative", f"{who} found less than nothing in {', '.join(below)}", call)
