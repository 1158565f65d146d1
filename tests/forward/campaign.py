"""One round on a field: programs on all nodes, faults, an end in order, and everything looked at.

Knows the field, its databases, and where the judge's facts come from. Does not know how figures are shown.
"""

import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tests.cluster.comparing import assert_same
from tests.failover.checking import kept, monotonic, reigns_of
from tests.failover.field import Field
from tests.failover.machine import Machine
from tests.forward.faults import Nemesis
from tests.forward.judging import Content, Facts, Token, Verdict, judge
from tests.forward.programs import BUSY_S, Program, Programs, prepare
from tests.support.sql import SqlError, run_sql
from tests.support.waiting import wait_until

OUTCOME_S: Final = 10.0
"""How long a node tries to find out what became of a transaction: ``writes.timeout`` as it is by default."""
TRANSACTION_LIMIT_S: Final = 2 * BUSY_S + OUTCOME_S + 5.0
"""SQLite's wait for a lock, at BEGIN and again at COMMIT in a rollback mode, the node's for an outcome; and this
machine's two cores."""
PROGRESS: Final = 3
"""Transactions on every node in every database after everything is well."""
PROGRESS_LIMIT_S: Final = 45.0
"""A connection that was open when a node was killed may have to wait out what it began then."""
BEGIN_LIMIT_S: Final = 30.0
SAME_LIMIT_S: Final = 40.0
# Of a COMMIT, and of the fsync that SQLite makes after one.
UNKNOWN_EVENTS: Final = ("commit_outcome_unknown", "commit_unknown", "commit_not_completed")
"""A node says so when it tells an application an error although the transaction may be committed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """``modes``: one new database of each, or, with ``own``, one for each node, so that no two nodes write the same.

    ``writers``: programs on each node. ``faults``: of faults.FAULTS.
    """

    modes: Sequence[str] = ("wal", "delete")
    own: bool = False
    faults: Sequence[str] = ()
    writers: int = 1
    seconds: float = 20.0


@dataclass(slots=True)
class Round:
    """What came of one. ``made_on``: whose mount the databases were made on, and whether as the primary."""

    made_on: str
    verdict: Verdict
    faults: Counter[str] = field(default_factory=Counter)
    by_role: Counter[str] = field(default_factory=Counter)


Script = Callable[[Nemesis, Programs], object]


def play(
    field: Field,
    seed: str,
    plan: Plan,
    *,
    maker: Machine | None = None,
    script: Script | None = None,
    say: Callable[[str], object] = print,
) -> Round:
    """``maker``: on whose mount the databases are made, by chance otherwise. ``script``: instead of faults by chance.

    AssertionError when the field does not become well, stands still, or its nodes differ.
    """
    numbers = random.Random(seed)
    primary = field.await_settled()
    maker = maker or numbers.choice(field.all)
    databases: dict[str, list[str]] = {}
    for names in [[each.name] for each in field.all] if plan.own else [[each.name for each in field.all]]:
        made = [f"{mode}-{time.monotonic_ns():x}.db" for mode in plan.modes]
        for mode, database in zip(plan.modes, made, strict=True):
            prepare(maker.path(database), mode)
        databases |= dict.fromkeys(names, made)
    field.await_settled()
    say(f"  {databases} made on {maker.name}, {primary.name} is primary")
    with Programs(field.folder / f"programs-{time.monotonic_ns():x}", seed) as programs:
        for node in field.all * plan.writers:
            programs.start(node, databases[node.name])
        begun = {node.name: _of(programs, node) for node in field.all}
        programs.await_progress(begun, 1, BEGIN_LIMIT_S)

        def restart(ended: Program) -> Program:
            return programs.start(field.nodes[ended.node], databases[ended.node])

        nemesis = Nemesis(field, programs, numbers, plan.faults, restart, lambda line: say(f"  {line}"))
        if script is None:
            _go(nemesis, numbers, plan)
        else:
            script(nemesis, programs)
        nemesis.heal()
        programs.await_progress({node.name: _of(programs, node) for node in field.all}, PROGRESS, PROGRESS_LIMIT_S)
        problems = programs.end()
    say("  programs have ended")
    verdict = _look(field, sorted({each for names in databases.values() for each in names}), programs, nemesis)
    verdict.problems += problems
    reigns = {node.name: reigns_of(node) for node in field.all}
    roles = Counter(
        "on the primary" if any(began <= each.ended_s < ended for began, ended in reigns[each.node]) else "on a replica"
        for each in programs.attempts()
        if each.outcome == "acknowledged"
    )
    made_on = f"{maker.name} ({'primary' if maker is primary else 'replica'})"
    return Round(made_on, verdict, nemesis.counts, roles)


def _of(programs: Programs, node: Machine) -> list[Program]:
    return [each for each in programs.running() if each.node == node.name]


def _go(nemesis: Nemesis, numbers: random.Random, plan: Plan) -> None:
    end = time.monotonic() + plan.seconds
    while (left_s := end - time.monotonic()) > 0:
        if plan.faults:
            nemesis.meet()
        time.sleep(min(left_s, nemesis.pause_s()))
        if numbers.random() < 0.4:
            nemesis.heal()


def _look(field: Field, databases: Sequence[str], programs: Programs, nemesis: Nemesis) -> Verdict:
    """Everybody has ended: every node takes one more transaction, all become equal, and the judge looks."""
    primary = field.await_settled()
    for database in databases:
        for node in field.all:
            _write_last(node, database)
    primary = field.await_settled()
    for database in databases:
        for node in field.others(primary):
            # Appliers try again after up to a minute when readers were in the way, and readers were.
            with contextlib.suppress(SqlError):
                run_sql(node.path(database), "PRAGMA wal_checkpoint(TRUNCATE)", mode="rw")
    assert_same([primary, *field.others(primary)], *databases, limit_s=SAME_LIMIT_S)
    contents = {each: content_of(primary, each) for each in databases}
    facts = Facts(
        killed=nemesis.killed,
        unknown={node.name: _unknown(node) for node in field.all},
        paused=nemesis.paused,
        kept=frozenset(_kept(field, databases)),
        unplanned=nemesis.unplanned,
    )
    return judge(programs.attempts(), programs.misread(), contents, facts, limit_s=TRANSACTION_LIMIT_S)


def _write_last(node: Machine, database: str) -> None:
    """Nobody else writes: a node that is well takes it, at the first or at the second try. Not one of the judged."""

    def taken() -> bool:
        try:
            run_sql(node.path(database), "UPDATE side SET place = place WHERE 0; UPDATE counter SET value = value;")
        except SqlError:
            return False
        return True

    wait_until(taken, f"{node.name} takes a transaction of {database}", BEGIN_LIMIT_S)


def content_of(node: Machine, database: str) -> Content:
    """What a database holds, as an application reads it."""
    path = node.path(database)

    def counted(table: str) -> dict[Token, int]:
        found = run_sql(path, f"SELECT writer, number, count(*) FROM {table} GROUP BY 1, 2", mode="ro")
        return {(writer, number): count for writer, number, count in found}

    ((counter,),) = run_sql(path, "SELECT value FROM counter", mode="ro")
    bulk = dict(run_sql(path, "SELECT writer, number FROM bulk", mode="ro"))
    misplaced = run_sql(path, "SELECT id, place, writer, number FROM entry WHERE place != id - 1", mode="ro")
    return Content(counted("entry"), counter, counted("side"), bulk, tuple(misplaced))


def _unknown(node: Machine) -> list[tuple[str, float]]:
    """(database, instant) of each answer that a node's log calls unknown."""
    found = []
    for line in (line for event in UNKNOWN_EVENTS for line in node.log_lines(event)):
        database = next(word.partition("=")[2] for word in line.split() if word.startswith("database="))
        found.append((database.strip("'\""), monotonic(line.split()[0])))
    return found


def _kept(field: Field, databases: Sequence[str]) -> set[Token]:
    """Rows of everything of these databases that any node has put aside."""
    found: set[Token] = set()
    for node in field.all:
        for entry in kept(node):
            if entry["database"] not in databases:
                continue
            target = node.folder / f"export-{entry['id']}-{entry['kept_ms']}"
            node.command("diverged", "export", entry["id"], str(target))
            found |= set(run_sql(target, "SELECT writer, number FROM entry", mode="rw"))
    return found


def document(one: Round) -> dict[str, Any]:
    """For JSON."""
    return {
        "made_on": one.made_on,
        "faults": dict(one.faults),
        "by_role": dict(one.by_role),
        "verdict": one.verdict.document(),
    }
