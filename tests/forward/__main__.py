"""Long runs: ``python -m tests.forward --minutes 10 --seed 1 --mode wal,delete --nodes 3 --faults kill,cut,pause``.

Nodes and Consul servers as real processes in network namespaces. Programs that know only SQLite write on every node at
once; databases are made on any node; nodes, appliers and programs are killed, wires go dead, primaries hand off, nodes
stand still. After every round every success must be in all nodes exactly once, every error nowhere, and all nodes equal
byte for byte. Exit code 1 when something of that, or a round, failed.
"""

import argparse
import json
import os
import platform
import signal
import sqlite3
import subprocess
import sys
import time
import traceback
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.failover.field import NAMES, Field
from tests.forward.campaign import Plan, Round, document, play
from tests.forward.faults import FAULTS
from tests.forward.judging import total
from tests.support.sql import SqlError


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Campaign:
    """Rounds on one field; on a new one after a failure."""

    def __init__(self, plan: Plan, nodes: int, ttl_s: float, seed: int) -> None:
        self.rounds: list[Round] = []
        self.failures: list[str] = []
        self._plan = plan
        self._names = NAMES[:nodes]
        self._ttl_s = ttl_s
        self._seed = seed

    def run(self, seconds: float, only: int | None) -> None:
        end = time.monotonic() + seconds
        with ExitStack() as stack:
            field: Field | None = None
            number = only or 1
            while time.monotonic() < end:
                seed = f"{self._seed}/{number}"
                say(f"round {number}, seed {seed}")
                try:
                    field = field or stack.enter_context(Field(self._names, ttl_s=self._ttl_s))
                    self._take(seed, play(field, seed, self._plan, say=say))
                except (AssertionError, OSError, SqlError, subprocess.SubprocessError) as error:
                    self._failed(seed, error, field)
                    self._close(stack)
                    field = None
                if only is not None:
                    break
                number += 1
            self._close(stack)

    def _take(self, seed: str, one: Round) -> None:
        self.rounds.append(one)
        verdict = one.verdict
        say(
            f"round {seed}: {verdict.acknowledged} acknowledged {dict(one.by_role)}, {verdict.failed} refused, unknown "
            f"{verdict.unknown_there} there / {verdict.unknown_away} not, {verdict.kept} only in diverged/, longest "
            f"{verdict.longest_s:.2f} s; made on {one.made_on}; {dict(one.faults)}; {dict(verdict.codes)}"
        )
        assert not verdict.problems, "\n".join(verdict.problems)

    def _failed(self, when: str, error: Exception, field: Field | None) -> None:
        self.failures.append(f"{when}: {error}")
        say(f"{when} FAILED\n{traceback.format_exc()}")
        if field is not None:
            field.surprising = False
            say(field.logs())

    def _close(self, stack: ExitStack) -> None:
        """Take the field down; what it finds then that should not be there is a failure too."""
        try:
            stack.close()
        except AssertionError as error:
            self._failed("the end", error, None)

    def summary(self) -> dict[str, Any]:
        """What is written as JSON."""
        whole = total(each.verdict for each in self.rounds)
        roles: Counter[str] = sum((each.by_role for each in self.rounds), Counter())
        faults: Counter[str] = sum((each.faults for each in self.rounds), Counter())
        return {
            "seed": self._seed,
            "nodes": len(self._names),
            "plan": asdict(self._plan),
            "failures": self.failures,
            "rounds": [document(each) for each in self.rounds],
            "by_role": dict(roles),
            "faults": dict(faults),
            "verdict": whole.document(),
        }

    def __str__(self) -> str:
        found = self.summary()
        verdict = found["verdict"]
        return (
            f"{len(self.rounds)} rounds, {len(self.failures)} failures; {verdict['acknowledged']} acknowledged "
            f"{found['by_role']}, {verdict['failed']} refused, unknown {verdict['unknown_there']} there / "
            f"{verdict['unknown_away']} not, {verdict['kept']} only in diverged/; longest {verdict['longest_s']:.2f} "
            f"s; {found['faults']}"
        )


def listed(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.forward", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mode", type=listed, default=("wal", "delete"), help="journal modes, a database of each")
    parser.add_argument("--nodes", type=int, choices=(2, 3), default=3)
    parser.add_argument("--faults", type=listed, default=FAULTS, help=f"of {','.join(FAULTS)}; empty for none")
    parser.add_argument("--writers", type=int, default=1, help="programs on each node")
    parser.add_argument("--seconds", type=float, default=20, help="of one round, without its beginning and its end")
    parser.add_argument("--ttl", type=float, default=3, help="of the lease, in seconds")
    parser.add_argument("--round", type=int, help="only this round of the seed")
    parser.add_argument("--json", type=Path, help="write everything that was found")
    options = parser.parse_args()
    if unknown := set(options.faults) - set(FAULTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    # Take everything down before the end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    plan = Plan(modes=options.mode, faults=options.faults, writers=options.writers, seconds=options.seconds)
    campaign = Campaign(plan, options.nodes, options.ttl, options.seed)
    campaign.run(options.minutes * 60, options.round)
    say(str(campaign))
    if options.json is not None:
        machine = {
            "cpus": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
        }
        found = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine} | campaign.summary()
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(bool(campaign.failures) or not campaign.rounds)


if __name__ == "__main__":
    sys.exit(main())
