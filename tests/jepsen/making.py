"""Histories by hand: operations in the order in which they are said."""

from typing import Any, Final

from jepsen.history import NEMESIS, OBSERVER, Call, Operation, Type, pair

STEP_NS: Final = 1_000_000


class Making:
    """Each operation comes a millisecond after the one before it, unless told otherwise."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.now_ns = 0
        self._open: dict[int, tuple[str, Any]] = {}

    def begin(self, process: int, f: str, value: Any = None, node: str = "") -> int:
        """The index, which names the call."""
        self._open[process] = f, value
        return self._note(process, "invoke", f, value, node)

    def end(self, process: int, type_: Type = "ok", value: Any = ..., node: str = "", error: str = "") -> int:
        f, asked = self._open.pop(process)
        return self._note(process, type_, f, asked if value is ... else value, node, error)

    def did(
        self, process: int, f: str, value: Any = None, answer: Any = ..., type_: Type = "ok", node: str = ""
    ) -> int:
        """Begun and ended with nothing in between; the index of the invocation."""
        index = self.begin(process, f, value, node)
        self.end(process, type_, answer, node)
        return index

    def nemesis(self, f: str, value: Any = None) -> None:
        self._note(NEMESIS, "info", f, value)
        self._note(NEMESIS, "info", f, value)

    def observed(self, f: str, value: Any) -> None:
        self._note(OBSERVER, "info", f, value)

    def wait(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)

    def calls(self) -> tuple[Call, ...]:
        return pair(self.operations)

    def _note(self, process: int | str, type_: Type, f: str, value: Any, node: str = "", error: str = "") -> int:
        self.now_ns += STEP_NS
        self.operations.append(Operation(len(self.operations), self.now_ns, process, type_, f, value, node, error))
        return len(self.operations) - 1


def append(key: Any, element: Any) -> list[Any]:
    return ["append", key, element]


def read(key: Any, *elements: Any) -> list[Any]:
    return ["r", key, list(elements)]


def asked(parts: list[Any]) -> list[Any]:
    """What a transaction asks for that answers ``parts``."""
    return [[name, key, None if name == "r" else value] for name, key, value in parts]


def transactions(*several: list[Any], types: dict[int, Type] | None = None, together: bool = True) -> tuple[Call, ...]:
    """One transaction each. ``together``: all at the same time; else one after the other, in this order."""
    making = Making()
    types = types or {}
    if together:
        for process, parts in enumerate(several):
            making.begin(process, "txn", asked(parts))
        for process, parts in enumerate(several):
            type_ = types.get(process, "ok")
            making.end(process, type_, parts if type_ == "ok" else asked(parts))
    else:
        for process, parts in enumerate(several):
            type_ = types.get(process, "ok")
            making.did(process, "txn", asked(parts), parts if type_ == "ok" else asked(parts), type_)
    return making.calls()
