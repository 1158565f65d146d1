"""What of a file's unsynced changes a power loss keeps. Pure.

Content goes to the disk in blocks of 4 KiB (or of 512 bytes, where a disk tears them), at any moment and in any order;
a block has the bytes of some moment. ``writes`` loses single writes, which no page cache does. Lengths are
metadata: they go in order, and what a lost truncate would have cut off is still there, so nothing that was written
over it afterwards can be. Stores through a mapping are kept or lost one by one, except the first 64 bytes of a file
(the header of the page checksums lies in one sector).
"""

import random
from dataclasses import dataclass
from typing import Final, Literal

Data = Literal["nothing", "all", "beginning", "blocks", "sectors", "writes"]
BLOCK: Final = 4096
SECTOR: Final = 512
_HEADER: Final = 64


@dataclass(frozen=True, slots=True)
class Change:
    """``kind``: write, store (at ``offset``), truncate (to ``offset``), grow (to at least ``offset``)."""

    kind: Literal["write", "store", "truncate", "grow"]
    offset: int
    size: int
    data: bytes
    mtime_ns: int


def apply(content: bytearray, change: Change) -> None:
    """Do all of a change."""
    if change.kind in ("write", "store"):
        _write(content, change.offset, change.data)
    elif change.kind == "truncate" or len(content) < change.offset:
        _resize(content, change.offset)


def _write(content: bytearray, offset: int, data: bytes) -> None:
    end = offset + len(data)
    if len(content) < end:
        _resize(content, end)
    content[offset:end] = data


def _resize(content: bytearray, size: int) -> None:
    if len(content) > size:
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


def survive(
    durable: bytes | bytearray, current: bytes | bytearray, pending: list[Change], data: Data, chance: random.Random
) -> bytes:
    """The content that is left of ``durable`` and the changes after it, which led to ``current``."""
    if data == "nothing" or not pending:
        return bytes(durable)
    if data == "all":
        return bytes(current)
    if data == "beginning":
        return _beginning(durable, pending, chance)
    return _Pieces(durable, pending, chance, {"blocks": BLOCK, "sectors": SECTOR}.get(data)).left()


def _beginning(durable: bytes | bytearray, pending: list[Change], chance: random.Random) -> bytes:
    content = bytearray(durable)
    count = chance.randint(0, len(pending))
    for change in pending[:count]:
        apply(content, change)
    if count < len(pending) and pending[count].kind == "write" and chance.random() < 0.7:
        # The next one is torn, at a sector or, as no disk does, at any byte.
        torn = pending[count]
        size = chance.randint(0, torn.size)
        if chance.random() < 0.5:
            size = max(0, size - (torn.offset + size) % SECTOR)
        _write(content, torn.offset, torn.data[:size])
    return bytes(content)


class _Pieces:
    def __init__(
        self, durable: bytes | bytearray, pending: list[Change], chance: random.Random, block_bytes: int | None
    ) -> None:
        self._content = bytearray(durable)
        self._size = len(durable)
        self._pending = pending
        self._chance = chance
        # None: writes are kept or lost as a whole.
        self._block_bytes = block_bytes
        self._sizes_kept = chance.choice([0, len(pending), chance.randint(0, len(pending))])
        self._share = chance.choice([0.1, 0.5, 0.9])
        # Block -> number of changes that it has seen.
        self._seen: dict[int, int] = {}
        # From this byte on a lost truncate has left what was there.
        self._barrier: int | None = None

    def left(self) -> bytes:
        for number, change in enumerate(self._pending):
            if change.kind in ("write", "store"):
                self._write(number, change)
                if number < self._sizes_kept:
                    self._size = max(self._size, change.offset + change.size)
            elif number < self._sizes_kept:
                self._resize(change)
            elif change.kind == "truncate":
                self._barrier = change.offset if self._barrier is None else min(self._barrier, change.offset)
        _resize(self._content, self._size)
        return bytes(self._content)

    def _resize(self, change: Change) -> None:
        if change.kind == "truncate":
            self._size = change.offset
            del self._content[self._size :]
        else:
            self._size = max(self._size, change.offset)

    def _write(self, number: int, change: Change) -> None:
        size = self._block_bytes
        if size is None or change.kind == "store":
            if self._is_kept(number, change):
                self._put(change.offset, change.data)
            return
        position = change.offset
        end = change.offset + change.size
        while position < end:
            block = position // size
            stop = min(end, (block + 1) * size)
            if number < self._seen_by(block) and not self._is_behind(block * size):
                self._put(position, change.data[position - change.offset : stop - change.offset])
            position = stop

    def _is_kept(self, number: int, change: Change) -> bool:
        if change.kind == "store" and change.offset < _HEADER:
            return number < self._seen_by(-1)
        return not self._is_behind(change.offset) and self._chance.random() < self._share

    def _is_behind(self, offset: int) -> bool:
        return self._barrier is not None and offset + BLOCK > self._barrier

    def _seen_by(self, block: int) -> int:
        if block not in self._seen:
            count = len(self._pending)
            self._seen[block] = self._chance.choice([0, count, self._chance.randint(0, count)])
        return self._seen[block]

    def _put(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        if len(self._content) < end:
            self._content.extend(bytes(end - len(self._content)))
        self._content[offset:end] = data
