"""What clients and nemeses did, and when: operations, in the order in which they were recorded.

Knows an operation, which completion belongs to which invocation, and what may not stand in a history. Does not know
files (lines.py, edn_history.py) or what is right (checkers/).

An operation is recorded twice: when it is begun (``invoke``) and when its outcome is known. ``ok``: it happened.
``fail``: it certainly did not. ``info``: nobody knows, and it may still happen at any later time. A process whose
operation ended with ``info`` does nothing more; whoever goes on in its place has a new number.

Two processes are not clients: ``nemesis``, which breaks things (both halves of what it does are ``info``), and
``observer``, which notes what it saw (one ``info`` each).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, cast, get_args

from litereplica.errors import Corrupt

Type = Literal["invoke", "ok", "fail", "info"]
TYPES: Final[dict[str, Type]] = {name: name for name in get_args(Type)}
NEMESIS: Final = "nemesis"
OBSERVER: Final = "observer"
TRANSACTION: Final = "txn"
WRITING: Final = frozenset({"add", "append", "cas", "change", "create", "increment", "insert", "transfer", "write"})
"""Names of operations that change something, besides transactions that append."""

Atom = int | float | str | bool | None
"""What a key, an element or the value of a register is."""


class Malformed(Corrupt):
    """A history breaks its form: it cannot be judged."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One line of a history.

    ``time_ns``: since the start of the run, on one monotonic clock. ``index``: rises by one with each line of a run (an
    outside history may leave some out). ``process``: a number, or ``nemesis`` or ``observer``. ``f``: what it does.
    ``value``: as JSON has it, by the workload's rules; nobody changes what is inside. ``node``: where it was done.
    ``error``: why it failed, or why its outcome is not known.
    """

    index: int
    time_ns: int
    process: int | str
    type: Type
    f: str
    value: object = None
    node: str = ""
    error: str = ""

    @property
    def of_client(self) -> bool:
        return isinstance(self.process, int)


@dataclass(frozen=True, slots=True)
class Call:
    """What one client did: its invocation, and how that ended, as far as anybody knows."""

    invocation: Operation
    completion: Operation | None

    @property
    def ok(self) -> bool:
        return self.completion is not None and self.completion.type == "ok"

    @property
    def failed(self) -> bool:
        return self.completion is not None and self.completion.type == "fail"

    @property
    def indeterminate(self) -> bool:
        return self.completion is None or self.completion.type == "info"

    @property
    def index(self) -> int:
        """The invocation's: it names the call."""
        return self.invocation.index

    @property
    def f(self) -> str:
        return self.invocation.f

    @property
    def value(self) -> object:
        """Of an acknowledged call what it answered, else what was asked for."""
        return self.completion.value if self.completion is not None and self.ok else self.invocation.value

    @property
    def node(self) -> str:
        """Where it was done: the completion knows better, after a redirect."""
        return (self.completion.node if self.completion is not None else "") or self.invocation.node

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (self.invocation,) if self.completion is None else (self.invocation, self.completion)

    def before(self, other: "Call") -> bool:
        """Whether this one was acknowledged before the other was begun."""
        return self.completion is not None and self.ok and self.completion.index < other.invocation.index

    @property
    def writes(self) -> bool:
        """Whether it would change something."""
        if self.f == TRANSACTION:
            return any(micro[0] == "append" for micro in micro_operations(self.invocation))
        return self.f in WRITING


def pair(operations: Iterable[Operation]) -> tuple[Call, ...]:
    """Every client's call, in the order of the invocations; raises Malformed where operations cannot be what happened.

    A call without a completion is one whose outcome is not known.
    """
    completions: dict[int, Operation] = {}
    invocations: list[Operation] = []
    opened: dict[int, Operation] = {}
    ended: set[int] = set()
    for each in checked(operations):
        if not isinstance(each.process, int):
            continue
        if each.type == "invoke":
            _begin(each, opened, ended)
            invocations.append(each)
            continue
        invocation = opened.pop(each.process, None)
        if invocation is None:
            raise Malformed(f"operation {each.index}: process {each.process} has begun nothing that could end so")
        if invocation.f != each.f:
            raise Malformed(f"operation {each.index}: process {each.process} began {invocation.f}, and {each.f} ended")
        if each.type == "info":
            ended.add(each.process)
        completions[invocation.index] = each
    return tuple(Call(each, completions.get(each.index)) for each in invocations)


def _begin(one: Operation, opened: dict[int, Operation], ended: set[int]) -> None:
    process = cast("int", one.process)
    if process in opened:
        raise Malformed(f"operation {one.index}: process {process} has not ended operation {opened[process].index}")
    if process in ended:
        raise Malformed(f"operation {one.index}: process {process} goes on after an outcome that nobody knows")
    opened[process] = one


def checked(operations: Iterable[Operation]) -> Iterator[Operation]:
    """The same operations; raises Malformed at one that is out of order, or of a process that cannot have done it."""
    index, time_ns = -1, 0
    for each in operations:
        if each.index <= index:
            raise Malformed(f"operation {each.index} stands after operation {index}")
        if each.time_ns < time_ns:
            raise Malformed(f"operation {each.index} is {time_ns - each.time_ns} ns earlier than the one before it")
        if isinstance(each.process, str):
            if each.process not in {NEMESIS, OBSERVER}:
                raise Malformed(f"operation {each.index}: there is no process {each.process!r}")
            if each.type != "info":
                raise Malformed(f"operation {each.index}: what the {each.process} does is info, never {each.type}")
        elif each.process < 0:
            raise Malformed(f"operation {each.index}: process {each.process} is below 0")
        index, time_ns = each.index, each.time_ns
        yield each


def indexed(operations: Iterable[Operation]) -> tuple[Operation, ...]:
    """The same operations, numbered from 0 in the order they have."""
    return tuple(
        Operation(number, each.time_ns, each.process, each.type, each.f, each.value, each.node, each.error)
        for number, each in enumerate(operations)
    )


# ------------------------------------------------------------------------------------------------------------ values
def micro_operations(one: Operation) -> Sequence[Sequence[object]]:
    """The parts of a transaction: ``["append", key, element]`` and ``["r", key, list or null]``."""
    parts = one.value
    if not isinstance(parts, list | tuple):
        raise Malformed(f"operation {one.index}: a transaction is a list of parts, not {parts!r}")
    for part in parts:
        if not isinstance(part, list | tuple) or len(part) != 3 or part[0] not in {"append", "r"}:
            raise Malformed(f"operation {one.index}: {part!r} is neither [append key element] nor [r key list]")
    return parts


def atom(value: object, one: Operation) -> Atom:
    """``value``, which must be a single one: a number, a text, a truth value or nothing."""
    if value is None or isinstance(value, int | float | str):
        return value
    raise Malformed(f"operation {one.index}: {value!r} is not a single value")


def number(value: object, one: Operation) -> int:
    """``value``, which must be a whole number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise Malformed(f"operation {one.index}: {value!r} is not a whole number")


def entry_of(one: Operation, name: str, default: object = ...) -> object:
    """One entry of a value that is a map; without a default it must be there."""
    if not isinstance(one.value, dict):
        raise Malformed(f"operation {one.index}: {one.value!r} is not a map")
    found = one.value.get(name, default)
    if found is ...:
        raise Malformed(f"operation {one.index}: {one.value!r} says nothing of {name}")
    return found
