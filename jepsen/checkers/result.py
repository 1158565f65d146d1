"""What a checker answers."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from jepsen.history import Call, Operation

Validity = Literal["unknown"] | bool
SHOWN_OF_A_KIND: Final = 20
"""Anomalies of one kind that are kept with their operations: one is enough to find the cause, thousands hide it."""


@dataclass(frozen=True, slots=True)
class Anomaly:
    """Something that must not be: ``kind`` as README.md explains it, ``text`` for people, and who took part."""

    kind: str
    text: str
    operations: tuple[Operation, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """``valid``: True, False, or "unknown" when the checker cannot tell; ``why`` then says what is missing.

    ``counts``: of what was looked at, and of every kind of anomaly all of them, also those that are not listed.
    """

    checker: str
    valid: Validity
    anomalies: tuple[Anomaly, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    why: str = ""


class Findings:
    """Anomalies as a checker meets them: all counted, the first of each kind kept."""

    def __init__(self) -> None:
        self._kept: list[Anomaly] = []
        self._numbers: Counter[str] = Counter()

    def add(self, kind: str, text: str, *calls: Call, operations: Iterable[Operation] = ()) -> None:
        self._numbers[kind] += 1
        if self._numbers[kind] <= SHOWN_OF_A_KIND:
            involved = {each.index: each for call in calls for each in call.operations}
            involved |= {each.index: each for each in operations}
            self._kept.append(Anomaly(kind, text, tuple(involved[index] for index in sorted(involved))))

    def take(self, result: "Result", prefix: str) -> dict[str, int]:
        """All anomalies of a result on a part of the history; what it counted besides them."""
        for anomaly in result.anomalies:
            self.add(anomaly.kind, f"{prefix}: {anomaly.text}", operations=anomaly.operations)
        kept = Counter(anomaly.kind for anomaly in result.anomalies)
        for kind, number in kept.items():
            self._numbers[kind] += result.counts[kind] - number
        return {name: number for name, number in result.counts.items() if name not in kept}

    def __len__(self) -> int:
        return self._numbers.total()

    def result(self, checker: str, counts: Mapping[str, int], unknown: str = "") -> Result:
        """False when there is any anomaly; else unknown when there is a reason for that; else True."""
        valid: Validity = False if self._numbers else "unknown" if unknown else True
        return Result(checker, valid, tuple(self._kept), {**counts, **self._numbers}, unknown)


def overall(results: Iterable[Result]) -> Validity:
    """False if one is, else unknown if one is; of no results at all nothing is known."""
    all_valid = [each.valid for each in results]
    if any(each is False for each in all_valid):
        return False
    return "unknown" if not all_valid or "unknown" in all_valid else True


def of_process(call: Call) -> str:
    """How a call is named in explanations."""
    return f"T{call.index} (process {call.invocation.process})"
