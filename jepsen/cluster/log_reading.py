"""The log of a node, read as the checkers want it: lines with an instant and a level, and changes of its role.

Knows the text form of log lines (litereplica/logs.py writes it). Does not know where logs are, or which lines are
right.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime
from typing import Final

from jepsen.ending import LogLine, Role, RoleChange

_LINE: Final = re.compile(r"^(\d{4}-\d\d-\d\dT\S+Z) (debug|info|warning|error|critical) +(\S+)")
_FIELD: Final = re.compile(r' (\w+)=("(?:[^"\\]|\\.)*"|\S+)')
_QUIET: Final = frozenset({"debug", "info"})
UNFORMATTED: Final = "unformatted"
"""The event of what is written to a log and is no line of it: a traceback, a complaint of a library."""
ROLES: Final[dict[str, Role]] = {"primary": "primary", "replica": "replica"}


def lines(text: str, node: str, clock_ns: Callable[[int], int]) -> list[LogLine]:
    """``clock_ns``: from nanoseconds since 1970 to the clock of the history.

    What follows a line from level warning up without being one itself (a traceback) belongs to it; anywhere else it is
    an error of its own.
    """
    found: list[LogLine] = []
    for each in text.splitlines():
        match = _LINE.match(each)
        if match is not None:
            at, level, event = match.groups()
            found.append(LogLine(clock_ns(_since_1970_ns(at)), node, level, event, each))
        elif each.strip() and found and found[-1].level not in _QUIET:
            found[-1] = replace(found[-1], text=f"{found[-1].text}\n{each}")
        elif each.strip():
            time_ns = found[-1].time_ns if found else 0
            found.append(LogLine(time_ns, node, "error", UNFORMATTED, each))
    return found


def _since_1970_ns(at: str) -> int:
    moment = datetime.fromisoformat(at)
    return int(moment.replace(microsecond=0).timestamp()) * 1_000_000_000 + moment.microsecond * 1000


def fields(line: LogLine) -> dict[str, str]:
    """The fields of a line, as they were before those with blanks were quoted."""
    found: list[tuple[str, str]] = _FIELD.findall(line.text.partition("\n")[0])
    return {name: json.loads(value) if value.startswith('"') else value for name, value in found}


def role_changes(found: Iterable[LogLine]) -> list[RoleChange]:
    """Of every line that says that a node has another role from now on."""
    changes = []
    for line in found:
        if line.event == "role_changed":
            said = fields(line)
            changes.append(RoleChange(line.time_ns, line.node, ROLES.get(said["role"], "none"), int(said["epoch"])))
    return changes
