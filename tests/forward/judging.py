"""Whether a history and what is in the databases in the end go together.

A success is there exactly once; an error is nowhere, unless its outcome is one that nobody could know; the counter is
the number of rows; what belongs to one transaction is there as a whole; nothing took longer than its limit. Pure: knows
attempts and rows, and no process.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

from tests.forward.history import COMMIT, Attempt, Misread
from tests.forward.program import SEVERAL

Token = tuple[str, int]
Interval = tuple[float, float]
DAMAGED: Final = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_FORMAT")
"""What no application may ever be told, even if everything is well again afterwards."""
EXAMPLES: Final = 8
"""Of each kind of problem, so that a report stays one that is read."""


@dataclass(frozen=True, slots=True)
class Content:
    """What a database holds: how often each row of ``entry``, the counter, rows of ``side`` and ``bulk``.

    ``misplaced``: rows that were written by somebody who had not seen all rows before them.
    """

    entries: Mapping[Token, int]
    counter: int
    side: Mapping[Token, int]
    bulk: Mapping[str, int]
    misplaced: tuple[tuple[int, int, str, int], ...] = ()
    """(id, place, writer, number)."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What happened beside the programs, by node.

    ``killed``: between which instants a daemon was killed; ``unknown``: (database, instant) of each answer that the
    daemon itself calls unknown; ``paused``: when it could answer nobody; ``kept``: what nodes keep in diverged/ ;
    ``unplanned``: another may have taken over from a primary without its consent.
    """

    killed: Mapping[str, Sequence[Interval]] = field(default_factory=dict)
    unknown: Mapping[str, Sequence[tuple[str, float]]] = field(default_factory=dict)
    paused: Mapping[str, Sequence[Interval]] = field(default_factory=dict)
    kept: frozenset[Token] = frozenset()
    unplanned: bool = False


@dataclass(slots=True)
class Verdict:
    """``problems``: what must not be. ``kept``: acknowledged, and only in diverged/ after an unplanned takeover.

    ``unknown_there`` and ``unknown_away``: nobody could know, and it turned out so.
    """

    acknowledged: int = 0
    failed: int = 0
    unknown_there: int = 0
    unknown_away: int = 0
    kept: int = 0
    longest_s: float = 0.0
    codes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        # Not asdict: it makes a Counter of pairs again.
        return {each.name: getattr(self, each.name) for each in fields(self)}


def may_be_either(attempt: Attempt, facts: Facts, slack_s: float) -> bool:
    """Whether nobody but the database can say what became of it."""
    if attempt.outcome == "open":
        return True
    if attempt.outcome == "acknowledged" or attempt.stage != COMMIT:
        return False
    killed = any(
        attempt.commit_s <= until and attempt.ended_s >= since for since, until in facts.killed.get(attempt.node, ())
    )
    return killed or any(
        database == attempt.database and attempt.commit_s - slack_s <= at <= attempt.ended_s + slack_s
        for database, at in facts.unknown.get(attempt.node, ())
    )


def judge(
    attempts: Sequence[Attempt],
    misread: Iterable[Misread],
    contents: Mapping[str, Content],
    facts: Facts,
    *,
    limit_s: float,
    slack_s: float = 0.05,
) -> Verdict:
    """``limit_s``: of one transaction, from its first statement to its answer, pauses of its node not counted.

    ``slack_s``: how far the clocks of a log line and of a program may seem apart.
    """
    verdict = Verdict()
    found: dict[str, list[object]] = defaultdict(list)
    known: dict[str, set[Token]] = defaultdict(set)
    for each in attempts:
        _judge_one(each, contents[each.database], facts, slack_s, verdict, found)
        known[each.database].add(each.token)
        took_s = _took_s(each, facts)
        verdict.longest_s = max(verdict.longest_s, took_s)
        if took_s > limit_s:
            found[f"took longer than {limit_s:g} s"].append((round(took_s, 3), each))
    for each_misread in misread:
        if (each_misread.writer, each_misread.number) not in facts.kept:
            found["read what cannot be"].append(each_misread)
    for database, content in contents.items():
        rows = sum(content.entries.values())
        if content.counter != rows:
            found["the counter is not the number of rows"].append((database, content.counter, rows))
        if content.misplaced:
            found["written on top of what its writer had not seen"].append((database, content.misplaced[:EXAMPLES]))
        if strange := set(content.entries) - known[database]:
            found["rows that nobody wrote"].append((database, sorted(strange)[:EXAMPLES]))
        _judge_parts(database, attempts, content, found)
    if verdict.kept and not facts.unplanned:
        found["acknowledged, and only in diverged/, though nobody took over unplanned"].append(verdict.kept)
    for what, examples in found.items():
        verdict.problems.append(f"{len(examples)} × {what}: {examples[:EXAMPLES]}")
    return verdict


def _judge_one(
    attempt: Attempt, content: Content, facts: Facts, slack_s: float, verdict: Verdict, found: dict[str, list[object]]
) -> None:
    times = content.entries.get(attempt.token, 0)
    if times > 1:
        found["there more than once"].append((times, attempt))
    if attempt.outcome == "acknowledged":
        verdict.acknowledged += 1
        if not times and attempt.token in facts.kept:
            verdict.kept += 1
        elif not times:
            found["acknowledged and lost"].append(attempt)
        return
    if attempt.outcome == "failed":
        verdict.failed += 1
        verdict.codes[f"{attempt.stage} {attempt.code}"] += 1
        if attempt.code.startswith(DAMAGED):
            found["told that the database is damaged"].append(attempt)
    if may_be_either(attempt, facts, slack_s):
        verdict.unknown_there += bool(times)
        verdict.unknown_away += not times
    elif times:
        found["refused and there"].append(attempt)
    elif attempt.seen:
        found["refused, and read by its own program"].append(attempt)


def _judge_parts(database: str, attempts: Sequence[Attempt], content: Content, found: dict[str, list[object]]) -> None:
    """What a transaction wrote beside its row is there if its row is."""
    newest: dict[str, int] = {}
    for each in attempts:
        if each.database != database:
            continue
        there = each.token in content.entries
        wanted = SEVERAL if there and each.kind == "several" else 0
        if content.side.get(each.token, 0) != wanted:
            found["part of a transaction"].append((content.side.get(each.token, 0), wanted, each))
        if there and each.kind == "bulk":
            newest[each.writer] = max(newest.get(each.writer, 0), each.number)
    if newest != dict(content.bulk):
        found["the newest bulk rows are not those of the newest transactions"].append((database, newest, content.bulk))


def _took_s(attempt: Attempt, facts: Facts) -> float:
    """From its first statement to its answer, without the time in which its node stood still."""
    if attempt.outcome == "open":
        return 0.0
    paused_s = sum(
        max(0.0, min(until, attempt.ended_s) - max(since, attempt.began_s))
        for since, until in facts.paused.get(attempt.node, ())
    )
    return attempt.ended_s - attempt.began_s - paused_s


def total(verdicts: Iterable[Verdict]) -> Verdict:
    """All of them as one."""
    whole = Verdict()
    for each in verdicts:
        for name in ("acknowledged", "failed", "unknown_there", "unknown_away", "kept"):
            setattr(whole, name, getattr(whole, name) + getattr(each, name))
        whole.longest_s = max(whole.longest_s, each.longest_s)
        whole.codes += each.codes
        whole.problems += each.problems
    return whole
