"""A run as JSON lines: how it is written while it goes on, and read again.

One line an operation; one line ``{"test": …}`` says what was run, and one ``{"ending": …}`` what was found afterwards.
A run that was killed leaves a last line that is cut off: it is left out, and the record says so. Any other line that is
not what it should be is an error: a history with a hole in it proves nothing.
"""

import json
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, TextIO, TypeVar

import cattrs

from jepsen.description import Description
from jepsen.ending import Ending
from jepsen.history import TYPES, Malformed, Operation, checked

_Value = TypeVar("_Value")

TEST: Final = "test"
ENDING: Final = "ending"
_KEYS: Final = frozenset({"index", "time", "process", "type", "f", "value", "node", "error"})
_NEEDED: Final = ("index", "time", "process", "type", "f")


@dataclass(frozen=True, slots=True)
class Record:
    """A stored run. ``torn``: its last line was cut off."""

    operations: tuple[Operation, ...]
    description: Description | None = None
    ending: Ending | None = None
    torn: bool = False


class Writer:
    """Writes a run as it happens. Each line is handed to the kernel at once: a killed runner keeps its history."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def describe(self, description: Description) -> None:
        self._line({TEST: _converter().unstructure(description)})

    def write(self, operation: Operation) -> None:
        self._line(as_document(operation))

    def end(self, ending: Ending) -> None:
        self._line({ENDING: _converter().unstructure(ending)})

    def _line(self, document: dict[str, Any]) -> None:
        self._stream.write(json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n")
        self._stream.flush()


def write(record: Record, stream: TextIO) -> None:
    """A whole record."""
    writer = Writer(stream)
    if record.description is not None:
        writer.describe(record.description)
    for each in record.operations:
        writer.write(each)
    if record.ending is not None:
        writer.end(record.ending)


def as_document(operation: Operation) -> dict[str, Any]:
    """The keys of an operation's line; ``node`` and ``error`` only where there is one."""
    document: dict[str, Any] = {
        "index": operation.index,
        "time": operation.time_ns,
        "process": operation.process,
        "type": operation.type,
        "f": operation.f,
        "value": operation.value,
    }
    if operation.node:
        document["node"] = operation.node
    if operation.error:
        document["error"] = operation.error
    return document


def read(content: bytes) -> Record:
    """The record that ``content`` holds; raises Malformed with the number of the line that is wrong."""
    *whole, last = content.split(b"\n")
    documents = [_document(line, number) for number, line in enumerate(whole, 1)]
    torn = False
    if last:
        try:
            documents.append(_document(last, len(documents) + 1))
        except Malformed:
            torn = True
    operations: list[Operation] = []
    description: Description | None = None
    ending: Ending | None = None
    for number, document in enumerate(documents, 1):
        if TEST in document:
            if number > 1:
                raise Malformed(f"line {number}: what was run is said in the first line, or nowhere")
            description = _structured(document, TEST, Description, number)
        elif ENDING in document:
            if ending is not None:
                raise Malformed(f"line {number}: a run has one ending")
            ending = _structured(document, ENDING, Ending, number)
        elif ending is not None:
            raise Malformed(f"line {number}: an operation after the ending")
        else:
            operations.append(from_document(document, f"line {number}"))
    return Record(tuple(checked(operations)), description, ending, torn)


def _document(line: bytes, number: int) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"line {number} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise Malformed(f"line {number} is not an object")
    return found


def from_document(document: dict[str, Any], where: str) -> Operation:
    """The operation that ``document`` describes; ``where`` it stood is said in the error."""
    if unknown := document.keys() - _KEYS:
        raise Malformed(f"{where}: {', '.join(sorted(unknown))}: no such key")
    for key in _NEEDED:
        if key not in document:
            raise Malformed(f"{where}: {key} is missing")
    for key in ("index", "time"):
        if type(document[key]) is not int or document[key] < 0:
            raise Malformed(f"{where}: {key} is {document[key]!r}, which is not a number from 0 up")
    for key in ("f", "node", "error"):
        if not isinstance(document.get(key, ""), str):
            raise Malformed(f"{where}: {key} is {document[key]!r}, which is not a text")
    if type(document["process"]) not in {int, str}:
        raise Malformed(f"{where}: process is {document['process']!r}, which is neither a number nor a name")
    if not isinstance(document["type"], str) or document["type"] not in TYPES:
        raise Malformed(f"{where}: type is {document['type']!r}, which is not one of {', '.join(sorted(TYPES))}")
    return Operation(
        index=document["index"],
        time_ns=document["time"],
        process=document["process"],
        type=TYPES[document["type"]],
        f=document["f"],
        value=document.get("value"),
        node=document.get("node", ""),
        error=document.get("error", ""),
    )


# ------------------------------------------------------------------------------------------------- test and ending
def _structured(document: dict[str, Any], key: str, kind: type[_Value], number: int) -> _Value:
    if len(document) > 1:
        raise Malformed(f"line {number}: nothing else belongs beside {key}")
    try:
        return _converter().structure(document[key], kind)
    except (cattrs.BaseValidationError, ValueError, TypeError, KeyError) as error:
        said = "; ".join(cattrs.transform_error(error))
        raise Malformed(f"line {number}: {key}: {said}") from error


@cache
def _converter() -> cattrs.Converter:
    """Takes nothing for something else: no unknown keys, no text for a number."""
    converter = cattrs.Converter(forbid_extra_keys=True)
    for exact in (int, str, bool):
        converter.register_structure_hook(exact, _exactly)
    return converter


def _exactly(value: object, kind: type[_Value]) -> _Value:
    if type(value) is not kind:
        raise ValueError(f"{value!r} is not {kind.__name__}")
    return value
