"""Positions in a database's history, and how they are written.

Knows TXIDs and the text form that users, virtual files and messages show.
Does not know which positions exist or how one is reached.
"""

import re
from dataclasses import dataclass
from typing import ClassVar, NewType

from litereplica.errors import Corrupt

TXID = NewType("TXID", int)
"""A transaction's number: unsigned 64-bit, per database, from 1, without gaps; 0 is "before the first"."""

_TEXT = re.compile(r"[0-9a-f]{16}/[0-9a-f]{16}")


def format_txid(txid: int) -> str:
    """The 16 lower-case hexadecimal digits that name ``txid`` wherever a person or a file name shows it."""
    return f"{txid:016x}"


@dataclass(frozen=True, slots=True)
class Position:
    """A point in a database's history: its last applied TXID and the rolling checksum of the pages there.

    Both are unsigned 64-bit. An empty database has checksum 0, also after it was dropped at a TXID above 0.
    """

    txid: int
    checksum: int

    ZERO: ClassVar["Position"]

    def __str__(self) -> str:
        return f"{self.txid:016x}/{self.checksum:016x}"

    @classmethod
    def parse(cls, text: str) -> "Position":
        """The position that ``str()`` wrote as ``text``, 33 characters exactly; raises Corrupt."""
        if _TEXT.fullmatch(text) is None:
            raise Corrupt(f"{text[:64]!r} is not a position: write it as TXID/checksum, 16 lower-case hex digits each")
        return cls(int(text[:16], 16), int(text[17:], 16))


Position.ZERO = Position(0, 0)


@dataclass(frozen=True, slots=True)
class Point:
    """A position in one history: ``record`` is the checksum of the record that led to it, 0 where nobody has that.

    Two histories that have parted may come to the same position: to SQLite the same statement makes the same pages of
    the same pages. But a record says who made it, when and in which epoch, and every node has the same bytes of it.
    """

    txid: int
    checksum: int
    record: int

    ZERO: ClassVar["Point"]

    @property
    def position(self) -> Position:
        """Without its history."""
        return Position(self.txid, self.checksum)

    def is_common(self, other: "Point") -> bool:
        """Whether both are the same point of one history, as far as is known."""
        same_record = self.record == other.record or not (self.record and other.record)
        return (self.txid, self.checksum) == (other.txid, other.checksum) and same_record


Point.ZERO = Point(0, 0, 0)
