"""EDN, the text form of Clojure's values, as far as histories use it: read and written.

Knows the grammar (github.com/edn-format/edn). Does not know operations. Values become Python's own: nil None, vectors
and lists lists, maps dicts, sets frozensets, keywords ``Keyword`` and symbols ``Symbol`` (both are texts), characters
texts of one character. A tagged element is its value: tags of records and instants add nothing that a checker needs.
"""

import math
import re
from collections.abc import Iterator
from typing import Final

from jepsen.history import Malformed

DEEPEST: Final = 100
"""Levels of nesting: histories have four; more is damage, and must not exhaust the stack."""
LONGEST_NUMBER: Final = 1000
"""Digits; Python refuses to read numbers of some thousands."""


class Keyword(str):
    """``:name``, without its colon."""

    __slots__ = ()


class Symbol(str):
    """A bare name that is not nil, true or false."""

    __slots__ = ()


_TOKEN: Final = re.compile(
    r"""(?P<blank>[\s,]+|;[^\n]*)
    |(?P<open>\#\{|[\[({])
    |(?P<close>[\])}])
    |(?P<discard>\#_)
    |(?P<text>"(?:[^"\\]|\\.)*")
    |(?P<character>\\(?:newline|return|space|tab|formfeed|backspace|u[0-9a-fA-F]{4}|.)(?=[\s,;"\[\](){}]|$))
    |(?P<tag>\#[A-Za-z][\w.+\-*/!?$%&=<>]*)
    |(?P<atom>[^\s,;"\[\](){}\\]+)""",
    re.VERBOSE | re.DOTALL,
)
_INTEGER: Final = re.compile(r"[+-]?(?:0|[1-9][0-9]*)N?")
_FLOAT: Final = re.compile(r"(?=.*[.eEM])[+-]?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?M?")
_CLOSING: Final = {"[": "]", "(": ")", "{": "}", "#{": "}"}
_CHARACTERS: Final = {
    "newline": "\n",
    "return": "\r",
    "space": " ",
    "tab": "\t",
    "formfeed": "\f",
    "backspace": "\b",
}
_ESCAPES: Final = {"t": "\t", "r": "\r", "n": "\n", "b": "\b", "f": "\f", '"': '"', "\\": "\\"}
_ESCAPE: Final = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_CONSTANTS: Final[dict[str, object]] = {"nil": None, "true": True, "false": False}


def read_all(text: str) -> Iterator[object]:
    """Every value of ``text``, one after the other; raises Malformed with the line that is wrong."""
    reader = _Reader(text)
    while reader.more():
        yield reader.value(0)


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._kind = ""
        self._token = ""
        self._advance()

    def more(self) -> bool:
        """Whether a value begins here; discarded ones do not count."""
        while self._kind == "discard":
            self._advance()
            self.value(0)
        return bool(self._kind)

    def value(self, depth: int) -> object:
        if depth > DEEPEST:
            raise self._wrong(f"more than {DEEPEST} levels of nesting")
        kind, token = self._kind, self._token
        if kind == "":
            raise self._wrong("the text ends in the middle of a value")
        if kind == "close":
            raise self._wrong(f"{token} closes nothing")
        self._advance()
        if kind == "discard":
            self.value(depth + 1)
            return self.value(depth + 1)
        if kind == "tag":
            return self.value(depth + 1)
        if kind == "open":
            return self._collection(token, depth)
        if kind == "text":
            return _ESCAPE.sub(self._unescaped, token[1:-1])
        if kind == "character":
            return _character(token[1:])
        return self._atom(token)

    def _collection(self, opening: str, depth: int) -> object:
        items: list[object] = []
        while self.more() and self._kind != "close":
            items.append(self.value(depth + 1))
        if self._token != _CLOSING[opening]:
            raise self._wrong(f"{opening} is closed by {self._token or 'nothing'}")
        self._advance()
        if opening == "#{":
            return frozenset(_hashable(item) for item in items)
        if opening != "{":
            return items
        if len(items) % 2:
            raise self._wrong("a map with a key that has no value")
        found = {_hashable(key): value for key, value in zip(items[::2], items[1::2], strict=True)}
        if len(found) != len(items) // 2:
            raise self._wrong("a map with a key twice")
        return found

    def _atom(self, token: str) -> object:
        if token in _CONSTANTS:
            return _CONSTANTS[token]
        if token.startswith(":") and len(token) > 1:
            return Keyword(token[1:])
        if len(token) > LONGEST_NUMBER and token[0] in "+-0123456789":
            raise self._wrong("a number without end")
        if _INTEGER.fullmatch(token):
            return int(token.removesuffix("N"))
        if _FLOAT.fullmatch(token):
            return float(token.removesuffix("M"))
        if token[0].isdigit() or token[0] in ":#":
            raise self._wrong(f"{token!r} is no value")
        return Symbol(token)

    def _unescaped(self, found: re.Match[str]) -> str:
        escape = found[1]
        if len(escape) > 1:
            return chr(int(escape[1:], 16))
        if escape not in _ESCAPES:
            raise self._wrong(f"\\{escape} in a text")
        return _ESCAPES[escape]

    def _advance(self) -> None:
        while self._at < len(self._text):
            found = _TOKEN.match(self._text, self._at)
            if found is None:
                raise self._wrong(f"{self._text[self._at : self._at + 20]!r} is no value")
            self._at = found.end()
            if found.lastgroup != "blank":
                self._kind, self._token = found.lastgroup or "", found[0]
                return
        self._kind = self._token = ""

    def _wrong(self, what: str) -> Malformed:
        return Malformed(f"line {self._text.count(chr(10), 0, self._at) + 1}: {what}")


def _character(name: str) -> str:
    if name in _CHARACTERS:
        return _CHARACTERS[name]
    return chr(int(name[1:], 16)) if len(name) > 1 else name


def _hashable(value: object) -> object:
    if isinstance(value, list):
        return tuple(_hashable(item) for item in value)
    if isinstance(value, dict):
        return frozenset((key, _hashable(item)) for key, item in value.items())
    return value


# ----------------------------------------------------------------------------------------------------------- writing
_UNPRINTABLE: Final = re.compile(r'["\\\x00-\x1f\x7f\ud800-\udfff]')
_NAMED: Final = {"\t": "\\t", "\r": "\\r", "\n": "\\n", "\b": "\\b", "\f": "\\f", '"': '\\"', "\\": "\\\\"}


def write(value: object) -> str:  # noqa: PLR0911 - one return a kind of value
    """``value`` as EDN, in one line; the other way round than read_all."""
    match value:
        case None:
            return "nil"
        case bool():
            return "true" if value else "false"
        case Keyword():
            return f":{value}"
        case Symbol():
            return str(value)
        case str():
            return f'"{_UNPRINTABLE.sub(_escaped, value)}"'
        case int() | float() if math.isfinite(value):
            return repr(value)
        case list() | tuple():
            return f"[{' '.join(write(item) for item in value)}]"
        case set() | frozenset():
            return f"#{{{' '.join(sorted(write(item) for item in value))}}}"
        case dict():
            return f"{{{', '.join(f'{write(key)} {write(item)}' for key, item in value.items())}}}"
        case _:
            raise Malformed(f"{value!r} has no form in EDN")


def _escaped(found: re.Match[str]) -> str:
    return _NAMED.get(found[0]) or f"\\u{ord(found[0]):04x}"
