"""``python -m benchmarks``: every question in one run, next to the plain disk and to the C pass-through.

Knows the command line, the order of the questions, and that nothing may be left behind: no mount, process or file,
also after a failure or Ctrl-C. Exit codes: 0 all measured, 1 some system failed in some question, 2 wrong usage,
3 nothing could be measured.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from benchmarks import (
    checkpoint,
    counts,
    forwarding,
    idle,
    large,
    proxy,
    reads,
    rollback,
    sizes,
    small,
    snapshot,
    startup,
    visible,
)
from benchmarks.harness import machine, node, report
from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.figures import Answer
from benchmarks.harness.mounts import unmount_below
from benchmarks.harness.processes import REPOSITORY
from benchmarks.harness.question import Effort
from benchmarks.harness.systems import OWN_SYSTEMS, Lab, System, build_floor

QUESTIONS = [
    module.QUESTION
    for module in (
        small, rollback, large, checkpoint, reads, visible, forwarding, proxy, snapshot, startup, idle, sizes, counts,
    )
]  # fmt: skip
QUICK = Effort(quick=True, rounds=3, seconds=1.0)
FULL = Effort(quick=False, rounds=5, seconds=2.0)
# Longer is no better: 20, 40 and 80 us are equal within the noise, 10 us and less are worse (docs/benchmarks.md).
POLL_US = 40


def peer(text: str) -> System:
    name, separator, directories = text.partition("=")
    primary, _, replica = directories.partition(",")
    if not (name and separator and primary):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PRIMARY_DIR[,REPLICA_DIR]")
    for directory in filter(None, (primary, replica)):
        if not Path(directory).is_dir():
            raise argparse.ArgumentTypeError(f"{directory} is not a directory")
    return System(name, Path(primary).resolve(), Path(replica).resolve() if replica else None)


def names(known: Sequence[str], text: str) -> tuple[str, ...]:
    chosen = tuple(filter(None, text.split(",")))
    for name in chosen:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of: {', '.join(known)}")
    return chosen


def arguments() -> argparse.Namespace:
    questions = [question.name for question in QUESTIONS]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measures litereplica; docs/benchmarks.md."
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds, smaller databases")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every raw round and the machine's facts there")
    parser.add_argument("--peer", type=peer, action="append", default=[], metavar="NAME=PRIMARY_DIR[,REPLICA_DIR]",
                        help="another system's mounted directories, measured by the same client")  # fmt: skip
    parser.add_argument("--only", type=lambda text: names(questions, text), default=tuple(questions),
                        metavar="NAME,…", help=f"questions to ask: {', '.join(questions)}")  # fmt: skip
    parser.add_argument("--systems", type=lambda text: names(OWN_SYSTEMS, text), default=OWN_SYSTEMS,
                        metavar="NAME,…", help=f"systems to measure: {', '.join(OWN_SYSTEMS)}")  # fmt: skip
    parser.add_argument("--dir", type=Path, metavar="DIR", default=REPOSITORY / ".benchmarks",
                        help="where the run's temporary folder is made: the disk that is measured")  # fmt: skip
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each question")
    parser.add_argument("--poll-us", type=int, default=POLL_US, metavar="US",
                        help="how long the C pass-through polls before it sleeps (default %(default)s)")  # fmt: skip
    return parser.parse_args()


@contextlib.contextmanager
def run_folder(parent: Path) -> Iterator[Path]:
    """A folder of this run's own, gone afterwards with all that was mounted in it."""
    made = not parent.exists()
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=parent)).resolve()
    try:
        yield folder
    finally:
        if left := unmount_below(folder):
            print(f"still mounted, so nothing was removed: {left[0]}", file=sys.stderr)
        else:
            shutil.rmtree(folder)
            if made:
                with contextlib.suppress(OSError):
                    parent.rmdir()


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """The first signal unwinds through every cleanup; further ones must not cut the cleanup short."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def measure(options: argparse.Namespace, effort: Effort, folder: Path) -> tuple[dict[str, object], bool]:
    """Asks every question, printing as it goes; the document, and whether everything succeeded."""
    facts = machine.facts(folder) | {"litereplica": node.version(), "floor_poll_us": options.poll_us}
    print(report.heading(facts), flush=True)
    lab = Lab(folder, build_floor(folder), options.poll_us, tuple(options.peer), options.systems)
    answers: dict[str, object] = {}
    complete = True
    for question in QUESTIONS:
        if question.name not in options.only:
            continue
        begin = time.monotonic()
        try:
            answer = question.ask(lab, effort)
        except BenchmarkError as error:
            answer = Answer([], {"question": str(error)})
        complete = complete and not answer.failures
        print(report.section(question.title, answer), flush=True)
        answers[question.name] = answer.document() | {
            "title": question.title,
            "seconds": time.monotonic() - begin,
            "load_after": os.getloadavg(),
        }
    return {"machine": facts, "quick": effort.quick, "rounds": effort.rounds, "questions": answers}, complete


def main() -> int:
    options = arguments()
    effort = QUICK if options.quick else FULL
    if options.rounds:
        effort = Effort(effort.quick, options.rounds, effort.seconds)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        with run_folder(options.dir) as folder:
            document, complete = measure(options, effort, folder)
    except KeyboardInterrupt:
        print("interrupted; everything was cleaned up", file=sys.stderr)
        return 130
    except BenchmarkError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 3
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
