"""Long runs: ``python -m tests.failover --runs 50 --what kill,cut,handoff --ttl 3,5 --json FILE``.

Three nodes and three Consul servers as real processes, each in a network namespace of its own. Every accident is
measured in so many runs at each ttl, and after every run all nodes must be equal byte for byte, and every acknowledged
transaction be there or be listed in diverged/. Exit code 1 when that, or a run, failed.
"""

import argparse
import json
import math
import os
import platform
import random
import signal
import statistics
import sys
import traceback
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.failover.field import Field
from tests.failover.measuring import ACCIDENTS, Run


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Series:
    """All runs of one accident at one ttl."""

    def __init__(self, what: str, ttl_s: float) -> None:
        self.what = what
        self.ttl_s = ttl_s
        self.runs: list[Run] = []
        self.failures: list[str] = []

    def go(self, count: int, seed: int) -> None:
        """On one field; on a new one after a failure."""
        numbers = random.Random(f"{seed} {self.what} {self.ttl_s}")
        with ExitStack() as stack:
            self._runs(count, numbers, stack)
            self._end(stack)

    def _runs(self, count: int, numbers: random.Random, stack: ExitStack) -> None:
        field: Field | None = None
        for number in range(1, count + 1):
            try:
                if field is None:
                    field = stack.enter_context(Field(ttl_s=self.ttl_s, on_replica="refuse"))
                run = ACCIDENTS[self.what](field, numbers)
            except (AssertionError, OSError) as error:
                self._failed(f"run {number}", error, field)
                self._end(stack)
                field = None
            else:
                self.runs.append(run)
                say(f"{self.what} ttl {self.ttl_s:g} s, {number}/{count}: {run.away_s:.3f} s, lost {run.lost}")

    def _end(self, stack: ExitStack) -> None:
        """Take the field down; what it finds then that should not be there is a failure too."""
        try:
            stack.close()
        except AssertionError as error:
            self._failed("the end", error, None)

    def _failed(self, when: str, error: Exception, field: Field | None) -> None:
        self.failures.append(f"{when}: {error}")
        say(f"{self.what} ttl {self.ttl_s:g} s, {when} FAILED\n{traceback.format_exc()}")
        if field is not None:
            field.surprising = False
            say(field.logs())

    def summary(self) -> dict[str, Any]:
        """What is written as JSON. Percentiles are nearest ranks: of 50 runs, p99 is the longest."""
        times = sorted(run.away_s for run in self.runs)
        found: dict[str, Any] = {"what": self.what, "ttl_s": self.ttl_s, "failures": self.failures}
        if times:
            found |= {
                "median_s": statistics.median(times),
                "p99_s": times[math.ceil(0.99 * len(times)) - 1],
                "max_s": times[-1],
                "acknowledged": sum(run.acknowledged for run in self.runs),
                "lost": sum(run.lost for run in self.runs),
            }
        return found | {"runs": [asdict(run) for run in self.runs]}

    def __str__(self) -> str:
        found = self.summary()
        if not self.runs:
            return f"{self.what:8} ttl {self.ttl_s:g} s: no run succeeded"
        return (
            f"{self.what:8} ttl {self.ttl_s:g} s: median {found['median_s']:.3f} s, p99 {found['p99_s']:.3f} s, max "
            f"{found['max_s']:.3f} s over {len(self.runs)} runs; {found['acknowledged']} acknowledged, {found['lost']} "
            f"of them only in diverged/; {len(self.failures)} runs failed"
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.failover", description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--what", default="kill,cut,handoff", help=f"of {', '.join(ACCIDENTS)}")
    parser.add_argument("--ttl", default="3,5", help="seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write everything that was measured")
    options = parser.parse_args()
    # Take everything down before the end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    wanted = options.what.split(",")
    if unknown := set(wanted) - set(ACCIDENTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    made = [Series(what, float(ttl)) for what in wanted for ttl in options.ttl.split(",")]
    for each in made:
        each.go(options.runs, options.seed)
    for each in made:
        say(str(each))
    if options.json is not None:
        document = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()},
            "seed": options.seed,
            "series": [each.summary() for each in made],
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return int(any(each.failures for each in made))


if __name__ == "__main__":
    sys.exit(main())
