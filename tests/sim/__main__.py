"""Long runs: ``python -m tests.sim --seed N --schedules M``. A failure prints its seed, which repeats it."""

import argparse
import sys
import time
import traceback

import structlog

from tests.sim.gate import run
from tests.sim.plane import Mutation
from tests.sim.world import World

FAULTS_S = 40.0


def simulate(seed: int, mutation: Mutation | None = None, faults_s: float = FAULTS_S) -> World:
    """One schedule. Raises Violated."""
    world = World(seed, mutation)
    run(lambda: world.run(faults_s), seed)
    return world


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--schedules", type=int, default=1000)
    parser.add_argument("--log", action="store_true", help="show every log line")
    options = parser.parse_args()
    if not options.log:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    began, failed = time.monotonic(), 0
    outcomes: dict[str, int] = {}
    for seed in range(options.seed, options.seed + options.schedules):
        try:
            world = simulate(seed)
        except Exception:  # noqa: BLE001  whatever it is, the seed repeats it
            failed += 1
            sys.stdout.write(f"--- seed {seed}\n{traceback.format_exc()}\n")
            sys.stdout.flush()
            continue
        checker = world.checker
        found = {
            "acknowledged": len(checker.acknowledged),
            "promotions": checker.promotions,
            "handoffs": checker.handoffs,
            "diverged": sum(len(each.durable.diverged) for each in world.nodes),
            **world.outcomes,
        }
        for what, count in found.items():
            outcomes[what] = outcomes.get(what, 0) + count
    sys.stdout.write(f"{options.schedules} schedules, {failed} failed, {time.monotonic() - began:.0f} s: {outcomes}\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
