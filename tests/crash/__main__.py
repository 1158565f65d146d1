"""Long runs: ``python -m tests.crash --seed N --points N``, and ``--trace FILE`` to go through one that was kept.

Each run records new traces (what is in them depends on the machine's pace), so a trace in which something was found
is kept: its path, the seed and the point repeat it.
"""

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

import structlog

from tests.crash.mounting import mount_and_go_on
from tests.crash.record import Recorded, record_primary, record_replica
from tests.crash.recording import load_trace
from tests.crash.replay import Failure, Replay
from tests.support.nodes import Nodes


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--kind", choices=["primary", "replica", "both"], default="both")
    parser.add_argument("--wal-only", action="store_true", help="no rollback journals")
    parser.add_argument("--strict", action="store_true", help="also losses that no file system has")
    parser.add_argument("--unsafe", action="store_true", help="synchronous=OFF also with rollback journals (primary)")
    parser.add_argument("--refuse-every", type=int, default=0, help="one in so many writes finds no room (primary)")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--actions", type=int, default=40)
    parser.add_argument("--trace", type=Path, help="a kept trace, instead of recording")
    parser.add_argument("--point", type=int, help="only this point")
    parser.add_argument("--mounts", type=int, default=0, help="so many points under real nodes, with a replica")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "litereplica-crash-traces")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    kinds = ["primary", "replica"] if options.kind == "both" else [options.kind]
    if options.trace is not None:
        kinds = [options.trace.stem]
    failed = False
    for kind in kinds:
        failed |= _run(kind, options)
    return int(failed)


def _run(kind: str, options: argparse.Namespace) -> bool:
    path = options.trace
    if path is None:
        options.keep.mkdir(parents=True, exist_ok=True)
        path = options.keep / f"{kind}-{options.seed}.trace"
        recorded = _record(kind, path, options)
        path.with_suffix(".groups").write_text(json.dumps(recorded.groups), encoding="utf-8")
    else:
        recorded = Recorded(load_trace(path), json.loads(path.with_suffix(".groups").read_text("utf-8")), {})
    replay = Replay(recorded.trace, groups=recorded.groups, strict=options.strict)
    oracle = replay.oracle
    say(f"{kind}: {len(recorded.trace)} steps, {len(oracle.states)} transactions; actions {recorded.counts}")
    for problem in oracle.problems:
        say(f"WHILE NOTHING CRASHED: {problem}")
    result = replay.run(options.seed, options.points, only=options.point)
    _say_failures(result.failures, f"--trace {path} --seed {options.seed} --points {options.points}")
    say(
        f"{kind}: seed {options.seed}, {result.points} points, {result.starts} starts, {result.took_s:.0f} s, "
        f"{result.points_per_s:.0f} points/s, {len(result.failures)} failures "
        f"({sum(each.strict_only for each in result.failures)} stricter than any real file system)"
    )
    mounted = _mount(replay, options)
    if options.trace is None and not mounted and not result.failures and not oracle.problems:
        path.unlink()
        path.with_suffix(".groups").unlink()
    return bool(mounted or result.failures or oracle.problems)


def _say_failures(failures: list[Failure], repeat: str) -> None:
    """One of each sort, the most frequent first."""
    sorts: dict[str, list[Failure]] = {}
    for each in failures:
        sorts.setdefault(re.sub(r"[0-9a-f]{16}|/[^ :]+|\d+", "_", each.problem.splitlines()[0]), []).append(each)
    for found in sorted(sorts.values(), key=len, reverse=True):
        # What a real file system can do comes first.
        one = min(found, key=lambda each: (each.strict_only, each.number))
        strict = sum(each.strict_only for each in found)
        say(f"FAILED {len(found)} times, {strict} of them by losses stricter than any real file system: {one}")
        say(f"  repeat: python -m tests.crash {repeat} --point {one.number}")


def _mount(replay: Replay, options: argparse.Namespace) -> int:
    """How many of the points under real nodes failed."""
    failed = 0
    for number, (step, crash, image) in enumerate(replay.images(options.seed, options.mounts)):
        try:
            mount_and_go_on(image, number, killed=crash.names is None, rollback=not options.wal_only)
        except Exception as error:  # noqa: BLE001  whatever it is, it is a finding
            failed += 1
            say(f"FAILED UNDER A NODE: after step {step}, {crash}: {type(error).__name__}: {error}")
    if options.mounts:
        say(f"{options.mounts} points under real nodes, {failed} failures")
    return failed


def _record(kind: str, path: Path, options: argparse.Namespace) -> Recorded:
    path.unlink(missing_ok=True)
    nodes = Nodes()
    try:
        rollback = not options.wal_only
        if kind == "replica":
            return record_replica(
                nodes, path, options.seed, rounds=options.rounds, actions=options.actions, rollback=rollback
            )
        return record_primary(
            nodes,
            path,
            options.seed,
            rounds=options.rounds,
            actions=options.actions,
            rollback=rollback,
            unsafe=options.unsafe,
            refuse_every=options.refuse_every,
        )
    except BaseException:
        nodes.print_logs()
        raise
    finally:
        for problem in nodes.tear_down():
            say(problem)


if __name__ == "__main__":
    sys.exit(main())
