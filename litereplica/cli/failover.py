"""``litereplica failover``: have another primary.

Knows what a person is told before it is done, and how the outcome is shown. Does not know how it is done (the node's
``POST /failover``), nor decides anything: the nodes do.
"""

import sys
import time
from dataclasses import dataclass
from typing import Any, Final

import click

from litereplica.cli.cluster_view import lag_text, nodes_of, status_of, total_of
from litereplica.cli.options import Options, command, node_url, print_json
from litereplica.errors import Refused, Unavailable

# The node that is asked gives up after some 70 s, having said why.
OUTCOME_LIMIT_S: Final = 80.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is about to be done: to whom, and what a person should know before. ``done``: there is nothing to do."""

    target: str
    lines: tuple[str, ...]
    done: bool = False


@command("failover", short_help="Have another primary, without losing anything.")
@click.option("--to", metavar="NODE", help="The new primary; default: the most advanced candidate.")
@click.option("--force", is_flag=True, help="Also when the primary does not answer, or an application blocks it.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def failover(options: Options, to: str | None, force: bool, yes: bool) -> None:
    """Hand the role of the primary over to another node, having said what will happen.

    Any node may be asked. Writers wait for some tenths of a second; nothing is lost. With --force another node takes
    over from a primary that does not answer: what only that one had is set aside when it returns.

    Exit code 1 when the nodes refuse, 3 when the outcome is unknown: it is safe to ask again, with the same --to.
    """
    from litereplica.cli.client import get, post  # noqa: PLC0415 - only when it is about to be used

    url = node_url(options)
    plan = plan_of(get(url, "/cluster"), to, force=force)
    click.echo("\n".join(plan.lines), err=options.json)
    if not plan.done:
        _confirm(yes=yes)
    began = time.monotonic()
    try:
        answer = post(url, "/failover", {"to": plan.target, "force": force}, answer_timeout_s=OUTCOME_LIMIT_S)
    except Unavailable as error:
        raise Unavailable(f"{error.message}; it is safe to ask again, with --to {plan.target}") from error
    seconds = round(time.monotonic() - began, 3)
    if options.json:
        print_json({**answer, "seconds": seconds})
    elif not plan.done:
        click.echo(f"{answer.get('primary')} is the primary now, after {seconds:.2f} s")


def _confirm(*, yes: bool) -> None:
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Refused("this changes the primary, and nobody is there to be asked: add --yes")
    if not click.confirm("Do it?", err=True):
        raise Refused("nothing was done")


def plan_of(document: dict[str, Any], to: str | None, *, force: bool) -> Plan:
    """Say what a failover would do, from a cluster document. Raises Refused, Unavailable when it can only fail."""
    nodes = {str(each.get("name")): each for each in nodes_of(document)}
    asked = status_of(nodes.get(str(document.get("node")), {}))
    primary = document.get("primary") or asked.get("primary")
    if to is not None and to not in nodes:
        raise Refused(f"no node {to!r} in the cluster: there are {', '.join(sorted(nodes))}")
    if to is not None and to == document.get("primary"):
        return Plan(to, (f"{to} is the primary already",), done=True)
    leading = nodes.get(str(primary), {})
    if primary is not None and not leading.get("answers") and not force:
        raise Unavailable(
            f"{primary}, the primary, does not answer ({leading.get('reason', 'it is not known where it is')}): ask "
            "again, or use --force when it is gone"
        )
    target = _target(nodes, asked, to, str(primary))
    there = status_of(nodes[target])
    if leading.get("answers"):
        return Plan(target, tuple(_handoff(status_of(leading), there, force=force)))
    return Plan(target, tuple(_takeover(nodes, primary, there)))


def _target(nodes: dict[str, dict[str, Any]], asked: dict[str, Any], to: str | None, primary: str) -> str:
    """Who is to be primary: as told, or the most advanced candidate that answers."""
    members = {str(each.get("name")): each for each in asked.get("members") or []}
    if to is not None:
        if not nodes[to].get("answers"):
            raise Refused(f"{to} does not answer ({nodes[to].get('reason')}): choose another, or start it")
        if not members.get(to, {}).get("candidate", True):
            raise Refused(f"{to} may not become primary: its configuration says node.candidate: false")
        return to

    def rank(name: str) -> tuple[int, int, int, str]:  # as in an election
        member = members[name]
        total = total_of(status_of(nodes[name])) or 0
        return -int(member.get("epoch") or 0), -total, -int(member.get("priority") or 0), name

    found = [
        name
        for name, member in members.items()
        if member.get("candidate") and name != primary and nodes.get(name, {}).get("answers")
    ]
    if not found:
        raise Refused("there is no other candidate that answers: start one; 'litereplica status' lists the nodes")
    return min(found, key=rank)


def _handoff(leading: dict[str, Any], there: dict[str, Any], *, force: bool) -> list[str]:
    lines = [f"{leading.get('node')} (primary, epoch {leading.get('epoch')}) hands over to {there.get('node')}."]
    behind = _more(leading, there)
    first = f"{there.get('node')} is {_transactions(behind)} behind and gets them first. " if behind else ""
    lines.append(f"{first}Writers wait meanwhile, some tenths of a second as a rule. Nothing is lost.")
    if force:
        lines.append("--force: a transaction that an application has open by then, and does not end, fails.")
    return lines


def _takeover(nodes: dict[str, dict[str, Any]], primary: str | None, there: dict[str, Any]) -> list[str]:
    name = there.get("node")
    if primary is None:
        lines = [f"No node is primary. {name} takes over, as soon as the lease may be had."]
    else:
        reason = nodes.get(primary, {}).get("reason", "it is not known where it is")
        lines = [
            f"{primary}, the primary, does not answer ({reason}).",
            f"{name} takes over when {primary} does not renew its lease.",
        ]
        lags = [each.get("lag_ms") for each in there.get("databases") or []]
        lag = lag_text(max((each for each in lags if isinstance(each, int | float)), default=None))
        since = f"; it was last in step with it {lag} ago" if lag else ""
        lines.append(
            f"What {primary} committed and {name} has not is lost to the cluster{since}. {primary} sets it aside when "
            "it returns: litereplica diverged."
        )
    for other in nodes.values():
        more = _more(status_of(other), there)
        if more:
            lines.append(
                f"{other.get('name')} has {_transactions(more)} that {name} has not: --to {other.get('name')}?"
            )
    return lines


def _more(one: dict[str, Any], other: dict[str, Any]) -> int:
    """How many transactions one node has more than another."""
    ours, theirs = total_of(one), total_of(other)
    return max(0, ours - theirs) if ours is not None and theirs is not None else 0


def _transactions(count: int) -> str:
    return f"{count} transaction{'' if count == 1 else 's'}"
