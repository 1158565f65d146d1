"""Histories as EDN in Jepsen's own form, for checkers that others wrote, and histories that others recorded.

One map a line: ``{:index 0, :time 12, :type :invoke, :process 0, :f :append, :value …}``. What is a keyword there is a
text here. Inside values these are keywords: the names of a transaction's parts (``[:append 1 2]``, ``[:r 1 nil]``) and
the keys of maps, but for keys that are whole numbers (the accounts of a bank), which are numbers there.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final, TextIO

from jepsen import edn
from jepsen.edn import Keyword
from jepsen.history import Malformed, Operation, checked
from jepsen.lines import from_document

_NUMBER: Final = re.compile(r"0|-?[1-9][0-9]*")
_NAME: Final = re.compile(r"[A-Za-z*!_?$%&=<>][\w*!?$%&=<>.+-]*")
_MICRO: Final = frozenset({"append", "r", "w"})


def write_history(operations: Iterable[Operation], stream: TextIO, *, clients_only: bool = False) -> None:
    """``clients_only``: without nemesis and observer, for checkers that take every operation for a client's."""
    for each in operations:
        if each.of_client or not clients_only:
            stream.write(write_operation(each) + "\n")


def write_operation(one: Operation) -> str:
    """One line, without its end."""
    process = one.process if isinstance(one.process, int) else Keyword(one.process)
    document: dict[object, object] = {
        Keyword("index"): one.index,
        Keyword("time"): one.time_ns,
        Keyword("type"): Keyword(one.type),
        Keyword("process"): process,
        Keyword("f"): _key(one.f),
        Keyword("value"): _outward(one.value),
    }
    if one.node:
        document[Keyword("node")] = one.node
    if one.error:
        document[Keyword("error")] = one.error
    return edn.write(document)


def _outward(value: object) -> object:
    if isinstance(value, dict):
        return {_key(key): _outward(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        if len(value) == 3 and isinstance(value[0], str) and value[0] in _MICRO:
            return [Keyword(value[0]), *(_outward(item) for item in value[1:])]
        return [_outward(item) for item in value]
    return value


def _key(name: str) -> object:
    """A number where a text is one; a text that no keyword can be stays a text."""
    if _NUMBER.fullmatch(name):
        return int(name)
    return Keyword(name) if _NAME.fullmatch(name) else name


def read_history(text: str) -> tuple[Operation, ...]:
    """Operations one after the other, or one vector of them; raises Malformed.

    Keys that Jepsen adds to an operation and nothing here asks for are left out; operations without an index are
    numbered in the order they have.
    """
    found = list(edn.read_all(text))
    if len(found) == 1 and isinstance(found[0], list):
        found = found[0]
    return tuple(checked(_operations(found)))


def _operations(found: Iterable[object]) -> Iterator[Operation]:
    for number, value in enumerate(found):
        where = f"operation number {number}"
        if not isinstance(value, dict):
            raise Malformed(f"{where} is not a map")
        inward: dict[str, Any] = {str(key): _inward(item) for key, item in value.items()}
        document: dict[str, Any] = {
            key: inward[key] for key in ("time", "process", "type", "f", "value", "node") if key in inward
        }
        document["index"] = inward.get("index", number)
        document["f"] = str(document.get("f"))
        if document.get("node") is None:
            document.pop("node", None)
        if (error := inward.get("error")) is not None:
            document["error"] = error if isinstance(error, str) else edn.write(value[Keyword("error")])
        yield from_document(document, where)


def _inward(value: object) -> object:
    if isinstance(value, dict):
        return {_text(key): _inward(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_inward(item) for item in value]
    if isinstance(value, frozenset):
        return sorted((_inward(item) for item in value), key=lambda item: (str(type(item)), item))
    return str(value) if isinstance(value, str) else value


def _text(key: object) -> str:
    return key if type(key) is str else str(key) if isinstance(key, str | int) else edn.write(key)
