"""A client, in a process of its own: does what it is told with SQLite, and answers what it was answered.

Run as ``python -m jepsen.client OPTIONS``, a JSON object: ``workload``, ``tag``, ``seed``, ``places``: {node: {mount,
namespace}}. One order a line on standard input, one answer a line on standard output; the end of its input is its end.
``{"prepare": NODE}`` makes the workload's databases; every other order is one of workloads.base.Order.

Answers: ``{"type", "value", "error"}``, and ``node`` where another than the one asked did it; ``type`` is ok; fail (it
certainly did not happen); info (nobody knows); or unclear: an error at COMMIT, of which only the node's log can say
more.
"""

import json
import random
import sqlite3
import sys
from pathlib import Path
from typing import Any, Final

from jepsen.session import COMMIT, DONE, Place, Session, Undone
from jepsen.workloads import WORKLOADS
from jepsen.workloads.base import Order, Workload

UNCLEAR: Final = "unclear"
CERTAIN_AT_COMMIT: Final = ("SQLITE_BUSY", "SQLITE_FULL")
"""A lock was not to be had, or no room: SQLite has not begun to commit, and rolls back."""
KEPT_SHARE: Final = 0.5
"""Of errors after which a client goes on with the same connection."""
CUT_OFF: Final = ("SQLITE_CANTOPEN", "SQLITE_IOERR_FSTAT", "SQLITE_IOERR_READ")
"""What a connection says whose node has gone back behind a change of the schema; among others."""


class Client:
    """One workload, one session."""

    def __init__(self, workload: Workload, session: Session, numbers: random.Random) -> None:
        self._workload = workload
        self._session = session
        self._numbers = numbers

    def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        """Do what a line says; the answer."""
        if "prepare" in order:
            self._workload.prepare(self._session, order["prepare"])
            return {"type": "ok", "value": None, "error": ""}
        return self._perform(Order(**order))

    def _perform(self, order: Order) -> dict[str, Any]:
        session = self._session
        session.begin()
        try:
            value = self._workload.perform(session, order, self._numbers)
        except Undone as reason:
            session.after_error(keep=True)
            return self._answer("fail", str(reason))
        except (sqlite3.Error, OSError) as error:
            type_ = _type_of(error, session)
            said = f"{session.stage}: {_name_of(error)}: {error}{f' ({order.how})' if order.how else ''}"
            # Such a connection has the files of a history that is lost, and never works again.
            is_cut_off = _name_of(error) in CUT_OFF
            session.after_error(keep=not is_cut_off and self._numbers.random() < KEPT_SHARE)
            return self._answer(type_, said)
        return self._answer("ok", "", value)

    def _answer(self, type_: str, error: str, value: object = None) -> dict[str, Any]:
        answer = {"type": type_, "value": value, "error": error}
        return answer | ({"node": self._session.answered_by} if self._session.answered_by else {})


def _type_of(error: Exception, session: Session) -> str:
    """What an error says of the call."""
    if not session.writes or session.stage not in {COMMIT, DONE}:
        return "fail"
    if session.stage == DONE or not isinstance(error, sqlite3.Error):
        return "info"
    return "fail" if _name_of(error).startswith(CERTAIN_AT_COMMIT) else UNCLEAR


def _name_of(error: Exception) -> str:
    return str(getattr(error, "sqlite_errorname", type(error).__name__))


def main() -> None:
    """Until nobody orders anything any more."""
    options: dict[str, Any] = json.loads(sys.argv[1])
    places = {node: Place(Path(where["mount"]), where["namespace"]) for node, where in options["places"].items()}
    workload = WORKLOADS[options["workload"]](options["tag"])
    client = Client(workload, Session(places), random.Random(options["seed"]))  # noqa: S311  chance, no secret
    for line in sys.stdin:
        sys.stdout.write(json.dumps(client.obey(json.loads(line)), separators=(",", ":")) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
