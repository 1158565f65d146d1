"""``python -m jepsen replay HISTORY``: judge a stored run again.

Exit code 0: valid; 1: an anomaly; 2: nobody can tell; 3: the history cannot be read.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

from jepsen.checkers.result import Validity
from jepsen.description import Description
from jepsen.edn_history import read_history, write_history
from jepsen.history import Malformed
from jepsen.judge import CHECKERS, Judgement, judge, verdict_line
from jepsen.lines import Record, read
from jepsen.report import page

EXIT_CODES: Final[dict[Validity, int]] = {True: 0, False: 1, "unknown": 2}
UNREADABLE: Final = 3


def main(arguments: list[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m jepsen", description="Break litereplica, and check what it promises."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    replay = commands.add_parser("replay", help="judge a stored run again", description=__doc__)
    replay.add_argument("history", type=Path, help="JSON lines of a run, or a history in EDN (name ends in .edn)")
    replay.add_argument("--workload", choices=sorted(CHECKERS), help="of a history that does not say it")
    replay.add_argument("--total", type=int, help="of all accounts of a bank whose history does not say it")
    replay.add_argument("--html", type=Path, metavar="FILE", help="write the report")
    replay.add_argument("--edn", type=Path, metavar="FILE", help="write what clients did, for other checkers")
    options = parser.parse_args(arguments)
    try:
        return _replay(options)
    except (Malformed, OSError) as error:
        sys.stderr.write(f"{options.history}: {error}\n")
        return UNREADABLE


def _replay(options: argparse.Namespace) -> int:
    content: bytes = options.history.read_bytes()
    record = Record(read_history(_text(content))) if options.history.suffix == ".edn" else read(content)
    judgement = judge(record, clock=time.monotonic, description=_description(options, record))
    _say(record, judgement)
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


def _say(record: Record, judgement: Judgement) -> None:
    lines = [verdict_line(judgement)]
    if record.torn:
        lines.append("the last line of the history is cut off and was left out")
    for result in judgement.results:
        lines += [f"  {result.checker}: {anomaly.kind}: {anomaly.text}" for anomaly in result.anomalies]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
