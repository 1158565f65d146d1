"""``python -m jepsen run``, ``matrix``, ``mutants`` and ``replay``: break a cluster and judge what came of it.

Exit code 0: valid; 1: an anomaly; 2: nobody can tell; 3: the history cannot be read.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jepsen.checkers.result import Validity
from jepsen.description import Description
from jepsen.edn_history import read_history, write_history
from jepsen.expected_log import EXPECTED
from jepsen.history import Malformed
from jepsen.judge import CHECKERS, Judgement, judge, verdict_line
from jepsen.lines import Record, read
from jepsen.report import page

if TYPE_CHECKING:
    from jepsen import matrix

EXIT_CODES: Final[dict[Validity, int]] = {True: 0, False: 1, "unknown": 2}
UNREADABLE: Final = 3
STORE: Final = Path(__file__).with_name("store")
"""Where histories are kept unless told otherwise."""
CELLS: Final = "cells.jsonl"
TABLE: Final = "table.md"
"""In the folder of many runs, unless told otherwise."""
ALL: Final = "all"
_NEMESIS_HELP: Final = f"names of nemeses or of kinds (partition, pause, disk), or {ALL}; none: nothing"


def main(arguments: list[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m jepsen", description="Break litereplica, and check what it promises."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _run_parser(commands.add_parser("run", help="one workload, or several at once, under some nemeses"))
    _matrix_parser(commands.add_parser("matrix", help="every workload under every nemesis"))
    _mutants_parser(commands.add_parser("mutants", help="plant bugs, and see whether they are found"))
    replay = commands.add_parser("replay", help="judge a stored run again", description=__doc__)
    replay.add_argument("history", type=Path, help="JSON lines of a run, or a history in EDN (name ends in .edn)")
    replay.add_argument("--workload", choices=sorted(CHECKERS), help="of a history that does not say it")
    replay.add_argument("--total", type=int, help="of all accounts of a bank whose history does not say it")
    replay.add_argument("--html", type=Path, metavar="FILE", help="write the report")
    replay.add_argument("--edn", type=Path, metavar="FILE", help="write what clients did, for other checkers")
    options = parser.parse_args(arguments)
    if options.command == "replay":
        try:
            return _replay(options)
        except (Malformed, OSError) as error:
            sys.stderr.write(f"{options.history}: {error}\n")
            return UNREADABLE
    # Dozens of processes come and go: what they import is compiled once.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    return {"run": _run, "matrix": _matrix, "mutants": _mutants}[options.command](options)


# -------------------------------------------------------------------------------------------------------------- run
def _run_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workload",
        type=_names,
        required=True,
        metavar="A,B",
        help=f"of {', '.join(sorted(CHECKERS))}, or {ALL}; several: at once, on one cluster",
    )
    parser.add_argument("--nemesis", type=_names, default=(), metavar="A,B", help=_NEMESIS_HELP)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--times",
        type=int,
        default=1,
        help="so many runs one after the other on one cluster, with the seeds that follow",
    )
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--replication", choices=("async", "sync"), default="async")
    parser.add_argument("--mutation", default="", metavar="NAME", help="plant this bug (jepsen/mutations) in all nodes")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="of the history and the report")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _run(options: argparse.Namespace) -> int:
    # Only who makes runs needs what they are made with: a history is judged anywhere.
    from jepsen.runner import Plan, anomalies, run  # noqa: PLC0415

    workloads = _chosen("workload", options.workload)
    nemeses = _chosen("nemesis", options.nemesis)
    common = nemeses, 60 * options.minutes, options.seed, options.nodes, options.replication, options.mutation
    folder = options.out or STORE / f"{_now()}-{workloads[0] if len(workloads) == 1 else 'several'}-{options.seed}"
    folders = [folder / each if len(workloads) > 1 else folder for each in workloads]
    plans = tuple(Plan(each, *common) for each in workloads)
    if options.times > 1:
        return _legs(plans, options.times, folder)
    try:
        outcomes = run(plans, folders, _say)
    except AssertionError as error:
        # What it found is written by then, but for what could not even begin.
        _say(f"  it broke off, or could not be taken down in order: {error}")
        return EXIT_CODES[False]
    for outcome, place in zip(outcomes, folders, strict=True):
        for line in anomalies(outcome.judgement):
            _say(f"  {line}")
        _say(f"history and report: {place}")
    codes = {EXIT_CODES[outcome.judgement.valid] for outcome in outcomes}
    return 1 if 1 in codes else max(codes)


def _legs(plans: "matrix.Round", times: int, folder: Path) -> int:
    """Again and again. What is in the folder already is not run again."""
    from jepsen import matrix  # noqa: PLC0415

    return _tell_cells(
        matrix.run_all(matrix.legs(plans, times), folder, folder / CELLS, _say, clusters="one"), folder / TABLE
    )


def _tell_cells(cells: "Sequence[matrix.Cell]", markdown_file: Path | None) -> int:
    """The table of many runs; the exit code."""
    from jepsen.tables import markdown  # noqa: PLC0415

    table = markdown(cells)
    if markdown_file is not None:
        markdown_file.write_text(table, encoding="utf-8")
    _say(table)
    verdicts = {each.verdict for each in cells}
    return 1 if "INVALID" in verdicts else 2 if "UNKNOWN" in verdicts else 0


def _chosen(what: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """``names``, all of which there are, each once; everything for ``all``, and several for the name of a kind."""
    from jepsen.nemeses import KINDS, NEMESES  # noqa: PLC0415
    from jepsen.workloads import WORKLOADS  # noqa: PLC0415

    known = tuple(WORKLOADS if what == "workload" else NEMESES)
    if names == (ALL,):
        return known
    kinds = {} if what == "workload" else KINDS
    found = tuple(dict.fromkeys(each for name in names for each in kinds.get(name, (name,))))
    if unknown := [name for name in found if name not in known]:
        sys.exit(f"{', '.join(unknown)}: no such {what}; there are {', '.join((*known, *kinds))}")
    return found


def _now() -> str:
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%S")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


# ----------------------------------------------------------------------------------------------------------- matrix
def _matrix_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=2.0, help="of each run")
    parser.add_argument("--workloads", type=_names, default=(ALL,), metavar="A,B")
    parser.add_argument("--nemeses", type=_names, default=(ALL,), metavar="A,B")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--short", action="store_true", help="every workload and every nemesis once, in 5 minutes")
    parser.add_argument(
        "--together", action="store_true", help="all workloads at once, under one nemesis after another"
    )
    parser.add_argument(
        "--forward-all",
        action="store_true",
        help="together: also those that do not need it on a cluster that forwards: half the time, a milder checker",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="a line for each run; what it has is not run again")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="of histories and reports")
    parser.add_argument("--keep", action="store_true", help="histories of valid runs too")


def _matrix(options: argparse.Namespace) -> int:
    from jepsen import matrix  # noqa: PLC0415

    out = options.out or STORE / f"{_now()}-matrix"
    cells_file = options.json or out / CELLS
    clusters: matrix.Clusters
    if options.short:
        short = matrix.short_together if options.together else matrix.short_plans
        rounds, clusters = short(options.seed), "one"
    else:
        named = _chosen("workload", options.workloads), _chosen("nemesis", options.nemeses)
        which = *named, 60 * options.minutes, options.seed
        if options.together:
            rounds, clusters = matrix.together(*which, forward_all=options.forward_all), "alike"
        else:
            rounds, clusters = matrix.plans(*which), "new"
    cells = matrix.run_all(rounds, out, cells_file, _say, clusters=clusters, keep=options.keep)
    return _tell_cells(cells, options.markdown)


# ---------------------------------------------------------------------------------------------------------- mutants
def _mutants_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", type=_names, default=(ALL,), metavar="A,B", help="these bugs")
    parser.add_argument("--times", type=int, default=1, help="so often each")
    parser.add_argument("--controls", action="store_true", help="each run once without its bug, too")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="of histories and reports")


def _mutants(options: argparse.Namespace) -> int:
    """0 when each bug was found each time, and every control was valid."""
    from jepsen.mutants import MUTANTS, hunt_all, markdown  # noqa: PLC0415

    names = tuple(MUTANTS) if options.only == (ALL,) else options.only
    if unknown := [name for name in names if name not in MUTANTS]:
        sys.exit(f"{', '.join(unknown)}: no such bug; there are {', '.join(MUTANTS)}")
    out = options.out or STORE / f"{_now()}-mutants"
    hunts = hunt_all(names, out, _say, times=options.times, controls=options.controls)
    table = markdown(hunts)
    if options.markdown is not None:
        options.markdown.write_text(table, encoding="utf-8")
    _say(table)
    return 0 if all(each.is_right for each in hunts) else 1


# ----------------------------------------------------------------------------------------------------------- replay
def _replay(options: argparse.Namespace) -> int:
    content: bytes = options.history.read_bytes()
    record = Record(read_history(_text(content))) if options.history.suffix == ".edn" else read(content)
    judgement = judge(record, clock=time.monotonic, description=_description(options, record), expected=EXPECTED)
    _tell(record, judgement)
    if options.html is not None:
        options.html.write_text(page(record, judgement), encoding="utf-8")
    if options.edn is not None:
        with options.edn.open("w", encoding="utf-8") as stream:
            write_history(record.operations, stream, clients_only=True)
    return EXIT_CODES[judgement.valid]


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"not UTF-8: {error}") from error


def _description(options: argparse.Namespace, record: Record) -> Description | None:
    found = record.description
    if options.workload is not None:
        found = replace(found or Description(""), workload=options.workload)
    if options.total is not None and found is not None:
        found = replace(found, total=options.total)
    return found


def _tell(record: Record, judgement: Judgement) -> None:
    lines = [verdict_line(judgement)]
    if record.torn:
        lines.append("the last line of the history is cut off and was left out")
    for result in judgement.results:
        lines += [f"  {result.checker}: {anomaly.kind}: {anomaly.text}" for anomaly in result.anomalies]
    sys.stdout.write("\n".join(lines) + "\n")


def _end_in_order() -> None:
    """A run that is told to end takes its cluster down. A shell that runs it in the background has SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)


if __name__ == "__main__":
    _end_in_order()
    sys.exit(main())
