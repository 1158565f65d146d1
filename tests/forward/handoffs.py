"""Planned handoffs under programs that never retry: ``python -m tests.forward.handoffs --count 20 --mode wal,delete``.

Three nodes; on each a program that writes a database of its own with Python's sqlite3, waits 5 s for a lock, and never
tries a transaction twice. The primary hands off, again and again, to a node by chance. No write may fail; how long each
program had to wait is said. Exit code 1 when a write failed, or what the nodes hold in the end is not what the programs
were told.
"""

import argparse
import itertools
import json
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tests.failover.field import Field
from tests.forward.campaign import Plan, Round, document, play
from tests.forward.faults import Nemesis
from tests.forward.programs import Program, Programs

BETWEEN: Final = 30
"""Transactions of every program between two handoffs."""
BETWEEN_LIMIT_S: Final = 20.0
HANDOFF_LIMIT_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Pause:
    """The longest time between two answers to one program around one handoff; ``role``: of its node, after it."""

    handoff: int
    node: str
    role: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Handoffs:
    """``took_s``: of each, from the command to its answer."""

    round: Round
    took_s: Sequence[float]
    pauses: Sequence[Pause]

    @property
    def upgrades(self) -> int:
        """Transactions that had read before they wrote, and met somebody's lock: SQLite waits for nobody then.

        (``btreeBeginTrans``: the busy handler is called only when no transaction is open yet.)
        """
        return self.round.verdict.codes["statement SQLITE_BUSY"]

    @property
    def failed(self) -> int:
        """All others that were not committed."""
        return self.round.verdict.failed - self.upgrades


def hand_off(
    field: Field,
    count: int,
    modes: Sequence[str],
    *,
    seed: str = "1",
    writers: int = 1,
    own: bool = True,
    say: Callable[[str], object] = print,
) -> Handoffs:
    """So many handoffs under programs on every node. AssertionError when a handoff is refused.

    ``own``: each node's programs have databases of their own, so that nobody's transaction is stale because of another.
    """
    took_s: list[float] = []
    events: list[tuple[str, float]] = []
    pauses: list[Pause] = []
    numbers = random.Random(seed)

    def script(nemesis: Nemesis, programs: Programs) -> None:
        for _ in range(count):
            _await_more(programs, BETWEEN)
            old = field.primary()
            new = numbers.choice(field.others(old))
            since = time.monotonic()
            code, found = old.ask("POST", "/failover", {"to": new.name}, limit_s=HANDOFF_LIMIT_S)
            assert code == 200, (code, found)
            events.append((new.name, since))
            took_s.append(time.monotonic() - since)
            nemesis.counts["failover"] += 1
        _await_more(programs, BETWEEN)
        pauses.extend(_pauses(programs.all, events))

    plan = Plan(modes, own=own, writers=writers)
    return Handoffs(play(field, seed, plan, script=script, say=say), took_s, pauses)


def _await_more(programs: Programs, count: int) -> None:
    since = time.monotonic()
    end = since + BETWEEN_LIMIT_S
    while any(len(each.refresh().acknowledged(since)) < count for each in programs.all):
        assert time.monotonic() < end, f"too slow: {[(each.writer, each.last) for each in programs.all]}"
        time.sleep(0.02)


def _pauses(programs: Sequence[Program], events: Sequence[tuple[str, float]]) -> list[Pause]:
    """For each program and handoff: the longest gap that ends after its beginning and begins before the next one's."""
    found = []
    for program in programs:
        answered = sorted(each.ended_s for each in program.acknowledged())
        for number, (primary, since) in enumerate(events):
            until = events[number + 1][1] if number + 1 < len(events) else answered[-1]
            gaps = [
                later - earlier for earlier, later in itertools.pairwise(answered) if later > since and earlier < until
            ]
            role = "primary" if primary == program.node else "replica"
            found.append(Pause(number, program.node, role, max(gaps)))
    return found


def describe(found: Handoffs) -> str:
    pauses = sorted(each.seconds for each in found.pauses)
    verdict = found.round.verdict
    return (
        f"{len(found.took_s)} handoffs, {verdict.acknowledged} acknowledged {dict(found.round.by_role)}, "
        f"{found.failed} failed ({found.upgrades} more met a lock after they had read); a program's longest pause at a "
        f"handoff: median {statistics.median(pauses):.3f} s, max {pauses[-1]:.3f} s; a handoff took median "
        f"{statistics.median(found.took_s):.3f} s, max {max(found.took_s):.3f} s; {dict(verdict.codes)}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.forward.handoffs", description=__doc__)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--mode", default="wal,delete", help="each in a run of its own")
    parser.add_argument("--writers", type=int, default=1, help="programs on each node")
    parser.add_argument("--shared", action="store_true", help="all write the same database: refusals as stale are seen")
    parser.add_argument("--json", type=Path, help="write everything that was measured")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    results: dict[str, object] = {}
    failed = False
    for mode in options.mode.split(","):
        with Field() as field:
            found = hand_off(
                field, options.count, [mode], seed=options.seed, writers=options.writers, own=not options.shared
            )
        sys.stdout.write(f"{mode}: {describe(found)}\n")
        for problem in found.round.verdict.problems:
            sys.stdout.write(f"{mode}: {problem}\n")
        failed = failed or bool(found.failed or found.round.verdict.problems)
        pauses = [asdict(each) for each in found.pauses]
        results[mode] = {"round": document(found.round), "took_s": found.took_s, "pauses": pauses}
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
