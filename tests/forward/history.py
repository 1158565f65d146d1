"""What programs tried, and what they were told: their logs as values.

Knows the log lines of program.py. Does not know processes, nor what is in any database.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal

Outcome = Literal["acknowledged", "failed", "open"]
COMMIT: Final = "commit"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One transaction. ``open``: its program was never told, or has not been yet.

    ``commit_s``: when COMMIT was given, 0 when it never was; ``ended_s``: when the answer was there. ``stage`` and
    ``code`` are of an error. ``seen``: the program read the row after the error.
    """

    writer: str
    node: str
    number: int
    database: str
    kind: str
    began_s: float
    outcome: Outcome = "open"
    commit_s: float = 0.0
    ended_s: float = 0.0
    stage: str = ""
    code: str = ""
    text: str = ""
    seen: bool = False

    @property
    def token(self) -> tuple[str, int]:
        return self.writer, self.number


@dataclass(frozen=True, slots=True)
class Misread:
    """A read that cannot be, right after the transaction ``number`` had been acknowledged."""

    writer: str
    node: str
    number: int
    what: str


class History:
    """What one program said, taken in as it grows."""

    def __init__(self, writer: str, node: str) -> None:
        self.writer = writer
        self.node = node
        self.misread: list[Misread] = []
        self._attempts: dict[int, Attempt] = {}
        self._rest = ""

    def feed(self, text: str) -> None:
        """Any piece of the log, in order; a line may end in a later piece."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._take(*line.split(" ", 1))

    @property
    def attempts(self) -> list[Attempt]:
        return list(self._attempts.values())

    @property
    def last(self) -> Attempt | None:
        """The newest."""
        return next(reversed(self._attempts.values()), None)

    def acknowledged(self, since_s: float = 0.0) -> list[Attempt]:
        """Those that were begun after an instant, the newest first."""
        found = []
        for each in reversed(self._attempts.values()):
            if each.began_s < since_s:
                break
            if each.outcome == "acknowledged":
                found.append(each)
        return found

    def _take(self, kind: str, rest: str) -> None:
        first, _, rest = rest.partition(" ")
        number = int(first)
        if kind == "B":
            database, what, at = rest.split()
            self._attempts[number] = Attempt(self.writer, self.node, number, database, what, float(at))
        elif kind == "A":
            commit, done = map(float, rest.split())
            self._change(number, outcome="acknowledged", commit_s=commit, ended_s=done)
        elif kind == "F":
            stage, commit_, at, code, text = rest.split(" ", 4)
            times = {"commit_s": float(commit_), "ended_s": float(at)}
            self._change(number, outcome="failed", stage=stage, code=code, text=text, **times)
        elif kind == "S":
            self._change(number, seen=True)
        else:
            assert kind == "M", (kind, rest)
            self.misread.append(Misread(self.writer, self.node, number, rest))

    def _change(self, number: int, **values: object) -> None:
        self._attempts[number] = replace(self._attempts[number], **values)  # type: ignore[arg-type]


def attempts_of(histories: Iterable[History]) -> list[Attempt]:
    return [attempt for each in histories for attempt in each.attempts]
