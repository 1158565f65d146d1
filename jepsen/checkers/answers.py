"""Whether clients were told what nobody may ever be told, or met what nobody may ever meet, whatever the workload.

That a database is damaged: also when it is well again a moment later. (SQLite also says so where the kernel answers a
read with EIO: os_unix.c makes SQLITE_IOERR_CORRUPTFS of it. So it is counted only, while daemons are killed or disks
fail; whether a database is damaged then is seen in the end.) Nothing at all: a call that is still without an
answer when the client gives it up hangs. Their own end: a process ends with SIGBUS in memory that it shares with other
clients of the database (the wal-index) when the daemon that it comes from is killed or cannot read its disk.
"""

from collections.abc import Sequence
from typing import Final

from jepsen.checkers.result import Findings, Result, of_process
from jepsen.history import Call
from jepsen.periods import Period

NAME: Final = "answers"
DAMAGED: Final = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_FORMAT")
HUNG: Final = "no answer within"
"""How a client's error begins when it was given up."""
ENDED: Final = "the client ended with"
"""... when its process ended by itself."""
MAPPING_GONE: Final = "SIGBUS"
UNREADABLE: Final = frozenset({"kill", "kill-all", "rejoin", "io-error"})
"""Nemeses under which daemons end without a farewell, or pages cannot be read."""
STARTS_S: Final = 5.0
"""A daemon that is started again has removed the dead mount by then; who uses that may meet it until it is gone."""


def check(calls: Sequence[Call], periods: Sequence[Period] = ()) -> Result:
    """Of every call that ended with an error."""
    findings = Findings()
    misread = 0
    errors = [call for call in calls if call.completion is not None and call.completion.error]
    for call in errors:
        assert call.completion is not None
        said = call.completion.error
        text = f"{of_process(call)} on {call.node or 'some node'} ({call.f}): {said}"
        if any(each in said for each in DAMAGED):
            if _during(UNREADABLE, call, periods):
                misread += 1
            else:
                findings.add("damaged", text, call)
        elif said.startswith(HUNG):
            findings.add("hung", text, call)
        elif said.startswith(ENDED) and not (MAPPING_GONE in said and _during(UNREADABLE, call, periods)):
            findings.add("ended", text, call)
    return findings.result(NAME, {"calls": len(calls), "errors": len(errors), "misread": misread})


def _during(names: frozenset[str], call: Call, periods: Sequence[Period]) -> bool:
    """Whether one of these nemeses was at work at some time of a call."""
    assert call.completion is not None
    began_ns, ended_ns = call.invocation.time_ns - round(STARTS_S * 1e9), call.completion.time_ns
    return any(each.name in names and each.overlaps(began_ns, ended_ns) for each in periods)
