"""``python -m tests.differential --seed N --minutes M``: random programs, seed after seed, until the time is up.

Each seed is a program of its own, on new nodes. A difference is printed with its seed and the program so far, which is
kept in a file that ``--program`` runs again and ``--shorten`` makes shorter. Exit code 1 when there was a difference.
"""

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.differential.generating import FEATURES, Generator
from tests.differential.operations import Operation, parse_program, program_text
from tests.differential.running import Difference, Run, describe
from tests.differential.shortening import shorten

STEPS = 300
# What --only stands for: a name for some features, or the features themselves.
GROUPS = {"wal": FEATURES - {"rollback", "resize"}}


def features_of(only: str, without: str) -> frozenset[str]:
    found = GROUPS.get(only) or (frozenset(only.split(",")) if only else FEATURES)
    unknown = (found | set(filter(None, without.split(",")))) - FEATURES
    if unknown:
        raise SystemExit(f"no such feature: {', '.join(sorted(unknown))}; there are {', '.join(sorted(FEATURES))}")
    return frozenset(found - set(without.split(",")))


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def run_seed(seed: int, features: frozenset[str], steps: int, replicas: int) -> int:
    """How many operations it had. Raises Difference."""
    with Run(replicas, rollback="rollback" in features) as run:
        try:
            run.all(Generator(seed, features).program(run.state, steps))
        except Difference as difference:
            say(describe(difference, f"DIFFERENCE, seed {seed}", run.logs()))
            raise
        return len(run.done)


def run_program(program: list[Operation], replicas: int, *, rollback: bool, quiet: bool = False) -> Difference | None:
    """What differs, if anything."""
    with Run(replicas, rollback=rollback) as run:
        try:
            run.all(program)
        except Difference as difference:
            if not quiet:
                say(describe(difference, "DIFFERENCE", run.logs()))
            return difference
    return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.differential", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first one")
    parser.add_argument("--minutes", type=float, default=1.0, help="no new seed after that")
    parser.add_argument("--seeds", type=int, default=1 << 30, help="at most so many")
    parser.add_argument("--steps", type=int, default=STEPS, help="operations of each program")
    parser.add_argument("--replicas", type=int, default=-1, help="default: one or two, as the seed says")
    parser.add_argument("--only", default="", help=f"'wal', or of: {', '.join(sorted(FEATURES))}")
    parser.add_argument("--without", default="", help="features, with commas")
    parser.add_argument("--keep-going", action="store_true", help="go on with the next seed after a difference")
    parser.add_argument("--program", type=Path, help="run this file instead")
    parser.add_argument("--shorten", action="store_true", help="make the program shorter as long as it differs")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()), help="where programs are kept")
    options = parser.parse_args()
    # As Ctrl-C does: nodes and mounts are taken down.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    features = features_of(options.only, options.without)
    rollback = "rollback" in features
    if options.program:
        program = parse_program(options.program.read_text(encoding="utf-8"))
        replicas = 1 if options.replicas < 0 else options.replicas
        if options.shorten:
            program = shorten(program, lambda each: run_program(each, replicas, rollback=rollback, quiet=True))
            options.program.with_suffix(".short").write_text(program_text(program), encoding="utf-8")
        return 1 if run_program(program, replicas, rollback=rollback) else 0
    end = time.monotonic() + 60 * options.minutes
    seed, operations, differences = options.seed, 0, []
    while time.monotonic() < end and seed < options.seed + options.seeds:
        replicas = 1 + seed % 2 if options.replicas < 0 else options.replicas
        started = time.monotonic()
        try:
            done = run_seed(seed, features, options.steps, replicas)
        except Difference as difference:
            kept = options.out / f"differential-{seed}.program"
            kept.write_text(program_text(difference.program), encoding="utf-8")
            say(f"seed {seed} differs; its program is in {kept}")
            differences.append(seed)
            if not options.keep_going:
                break
        else:
            operations += done
            say(f"seed {seed}: {done} operations, {time.monotonic() - started:.1f} s")
        seed += 1
    say(f"{seed - options.seed} programs, {operations} operations without a difference; differences: {differences}")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
