"""The wal-index: what SQLite keeps in a database's -shm (SQLite document "WAL-mode File Format", section 2).

Knows its header, checkpoint info, lock bytes and hash blocks, and reads and writes them in buffers that others mapped.
Does not know how a buffer is mapped, who holds which lock, nor whether a frame is really in the WAL.

Every number is in the byte order of the machine, except the salts, which SQLite copies as they stand in the WAL. Who
changes something here holds SQLite's WRITE lock. The order of the stores is what makes a reader safe without a lock:
frames first, then header copy 2, then copy 1; CPython emits them in program order, and x86-64 keeps them so. (On
machines with weaker ordering the caller needs a system call between ``append_frames`` and ``write_header``.)
"""

import struct
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from litereplica.errors import Corrupt
from litereplica.sqlite.checksum import checksum_words
from litereplica.sqlite.pages import LARGEST_PAGE
from litereplica.sqlite.wal import WalHeader

BLOCK_BYTES = 32768
FRAMES_PER_BLOCK = 4096
# Block 0 begins with 136 bytes of header, which take the place of 34 page numbers.
INDEX_HEADER_BYTES = 136
FRAMES_IN_FIRST_BLOCK = FRAMES_PER_BLOCK - INDEX_HEADER_BYTES // 4
HEADER_COPY_BYTES = 48
CHECKPOINT_INFO_OFFSET = 2 * HEADER_COPY_BYTES

# Bytes of the -shm file whose fcntl locks are SQLite's WAL locks; DEADMAN is held shared by every user of the file.
WRITE_LOCK = 120
CHECKPOINT_LOCK = 121
RECOVER_LOCK = 122
READ_LOCKS = (123, 124, 125, 126, 127)
DEADMAN_LOCK = 128

READ_MARK_UNUSED = 0xFFFFFFFF

_BIG_ENDIAN_HOST = sys.byteorder == "big"
_INDEX_VERSION = 3007000
UNKNOWN_VERSION = _INDEX_VERSION + 1
"""SQLite answers SQLITE_CANTOPEN to who begins a transaction on such a wal-index."""
_HASH_OFFSET = FRAMES_PER_BLOCK * 4
_HASH_SLOTS = 8192
_HASH_FACTOR = 383
# Steps in Python before numpy takes over, which costs as much as about twenty of them.
_SHORT_CHAIN = 16
_HEADER = struct.Struct("=IIIBBHIIII8s")
_CHECKED_BYTES = 40
_PAIR = struct.Struct("=II")
_SALTS = struct.Struct(">II")
_CHECKPOINT_INFO = struct.Struct("=I5I")
_ATTEMPTED_OFFSET = 128


@dataclass(frozen=True, slots=True)
class WalIndexHeader:
    """The 48 bytes that say which frames are visible. ``page_count`` and ``page_size`` in pages and bytes.

    ``max_frame`` is the last committed frame, counted from 1; ``s0, s1`` the WAL's checksum after it; ``change``
    rises with every transaction; ``initialized`` is 0 until recovery has filled the index in.
    """

    change: int
    big_endian: bool
    page_size: int
    max_frame: int
    page_count: int
    s0: int
    s1: int
    salt1: int
    salt2: int
    initialized: int = 1
    version: int = _INDEX_VERSION
    unused: int = 0

    @classmethod
    def of(cls, wal: WalHeader, *, change: int, max_frame: int, page_count: int, s0: int, s1: int) -> "WalIndexHeader":
        """Return the header that shows ``max_frame`` frames of a WAL whose header is ``wal``."""
        return cls(change, wal.big_endian, wal.page_size, max_frame, page_count, s0, s1, wal.salt1, wal.salt2)

    def encode(self) -> bytes:
        """Return the 48 bytes, with their checksum."""
        size = self.page_size
        body = _HEADER.pack(
            self.version,
            self.unused,
            self.change & 0xFFFFFFFF,
            self.initialized,
            self.big_endian,
            # 65536 does not fit: its bit 16 is kept as bit 0, which no power of two from 512 on has.
            1 if size == LARGEST_PAGE else size,
            self.max_frame,
            self.page_count,
            self.s0,
            self.s1,
            _SALTS.pack(self.salt1, self.salt2),
        )
        return body + _PAIR.pack(*checksum_words(body, 0, 0, _BIG_ENDIAN_HOST))


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """How far the WAL is copied into the database file, and what readers still need of it; frames counted from 1.

    ``backfilled`` frames are in the database file and ``backfill_attempted`` may partly be. A reader that holds
    READ lock *i* uses frames up to ``read_marks[i]`` (mark 0: none of the WAL; ``READ_MARK_UNUSED``: free).
    """

    backfilled: int
    read_marks: tuple[int, int, int, int, int]
    backfill_attempted: int


def split_blocks(index: memoryview) -> list[memoryview]:
    """Return the blocks of one contiguous wal-index, writable if ``index`` is."""
    index = index.cast("B")
    return [index[start : start + BLOCK_BYTES] for start in range(0, len(index) - BLOCK_BYTES + 1, BLOCK_BYTES)]


def block_of(frame: int) -> int:
    """Return the number of the block that holds ``frame`` (counted from 1)."""
    return (frame + FRAMES_PER_BLOCK - FRAMES_IN_FIRST_BLOCK - 1) // FRAMES_PER_BLOCK


def parse_header_copy(copy: bytes) -> WalIndexHeader | None:
    """Read one 48-byte copy; None when its checksum is wrong."""
    if len(copy) < HEADER_COPY_BYTES:
        return None
    if checksum_words(copy[:_CHECKED_BYTES], 0, 0, _BIG_ENDIAN_HOST) != _PAIR.unpack_from(copy, _CHECKED_BYTES):
        return None
    version, unused, change, initialized, big_endian, size, max_frame, page_count, s0, s1, salts = _HEADER.unpack_from(
        copy
    )
    salt1, salt2 = _SALTS.unpack(salts)
    page_size = (size & 0xFE00) + ((size & 1) << 16)
    return WalIndexHeader(
        change,
        bool(big_endian),
        page_size,
        max_frame,
        page_count,
        s0,
        s1,
        salt1,
        salt2,
        initialized,
        version,
        unused,
    )


def read_header(block: memoryview) -> WalIndexHeader | None:
    """Read the header from block 0; None while it is being written, is not initialized or is damaged.

    In a reader's order: copy 1, then copy 2, and only equal copies count.
    """
    first = bytes(block[:HEADER_COPY_BYTES])
    second = bytes(block[HEADER_COPY_BYTES : 2 * HEADER_COPY_BYTES])
    if first != second:
        return None
    header = parse_header_copy(first)
    return header if header is not None and header.initialized else None


def write_header(block: memoryview, header: WalIndexHeader) -> None:
    """Publish ``header`` in block 0: copy 2 first, then copy 1, so that a reader never trusts half of it."""
    copy = header.encode()
    block[HEADER_COPY_BYTES : 2 * HEADER_COPY_BYTES] = copy
    block[:HEADER_COPY_BYTES] = copy


def invalidate_header(block: memoryview) -> None:
    """Make the next user of the wal-index rebuild it from the WAL (recovery)."""
    block[HEADER_COPY_BYTES : 2 * HEADER_COPY_BYTES] = bytes(HEADER_COPY_BYTES)
    block[:HEADER_COPY_BYTES] = bytes(HEADER_COPY_BYTES)


def read_checkpoint_info(block: memoryview) -> CheckpointInfo:
    """Read the checkpoint info from block 0."""
    backfilled, *marks = _CHECKPOINT_INFO.unpack_from(block, CHECKPOINT_INFO_OFFSET)
    (attempted,) = struct.unpack_from("=I", block, _ATTEMPTED_OFFSET)
    return CheckpointInfo(backfilled, (marks[0], marks[1], marks[2], marks[3], marks[4]), attempted)


def write_checkpoint_info(block: memoryview, info: CheckpointInfo) -> None:
    """Write the checkpoint info into block 0 (a caller with the locks that recovery or a restart takes)."""
    _CHECKPOINT_INFO.pack_into(block, CHECKPOINT_INFO_OFFSET, info.backfilled, *info.read_marks)
    struct.pack_into("=I", block, _ATTEMPTED_OFFSET, info.backfill_attempted)


def restart(block: memoryview, salt2: int) -> None:
    """Let the WAL begin again from its first frame, as walRestartHdr of wal.c does; its file is left as it is.

    Everything must have been copied into the database file, and the caller hold the locks CHECKPOINT, WRITE and READ 1
    to 4. ``salt2``: random, 32 bits. The order of the stores is SQLite's.
    """
    header = read_header(block)
    assert header is not None, "a restart needs a whole header"
    salt1 = header.salt1 + 1 & 0xFFFFFFFF
    write_header(block, replace(header, max_frame=0, salt1=salt1, salt2=salt2))
    # Whole words: a reader takes them without a lock.
    info = block[CHECKPOINT_INFO_OFFSET:_ATTEMPTED_OFFSET].cast("I")
    info[0] = 0
    block[_ATTEMPTED_OFFSET : _ATTEMPTED_OFFSET + 4].cast("I")[0] = 0
    info[2] = 0
    for mark in range(3, 6):
        info[mark] = READ_MARK_UNUSED


def append_frames(blocks: Sequence[memoryview], first_frame: int, pgnos: Sequence[int]) -> None:
    """Enter frames ``first_frame`` … (counted from 1) that hold pages ``pgnos``; visible only with ``write_header``.

    A block is cleared when its first frame is entered, and what is left of rolled-back frames from ``first_frame`` on
    is removed first. ``Corrupt`` when the hash of a block is full, which only damage can bring about.
    """
    frame, done = first_frame, 0
    while done < len(pgnos):
        number = block_of(frame)
        page_numbers, slots, zero = _open_block(blocks[number], number)
        place = frame - zero - 1
        part = pgnos[done : done + len(page_numbers) - place]
        _make_room(blocks[number], page_numbers, place, len(part))
        page_numbers[place : place + len(part)] = array("I", part)
        _enter(slots, place, part)
        frame += len(part)
        done += len(part)


def lookup(blocks: Sequence[memoryview], pgno: int, max_frame: int) -> int | None:
    """Return the newest frame up to ``max_frame`` (both counted from 1) that holds page ``pgno``, None without one."""
    for number in range(block_of(max_frame) if max_frame else -1, -1, -1):
        page_numbers, slots, zero = _open_block(blocks[number], number)
        found = 0
        key = pgno * _HASH_FACTOR & _HASH_SLOTS - 1
        # A later frame of a page lies further along the chain, so the last hit is the newest.
        for _ in range(_HASH_SLOTS):
            entry = slots[key]
            if not entry:
                break
            if entry <= len(page_numbers) and entry + zero <= max_frame and page_numbers[entry - 1] == pgno:
                found = entry + zero
            key = key + 1 & _HASH_SLOTS - 1
        if found:
            return found
    return None


def _open_block(block: memoryview, number: int) -> tuple[memoryview, memoryview, int]:
    """Return the block's page numbers, its hash slots and the number of frames before it."""
    slots = block[_HASH_OFFSET:BLOCK_BYTES].cast("H")
    if number == 0:
        return block[INDEX_HEADER_BYTES:_HASH_OFFSET].cast("I"), slots, 0
    return block[:_HASH_OFFSET].cast("I"), slots, FRAMES_IN_FIRST_BLOCK + (number - 1) * FRAMES_PER_BLOCK


def _make_room(block: memoryview, page_numbers: memoryview, place: int, count: int) -> None:
    """Remove entries from ``place`` on: a stale block, or frames of a transaction that was rolled back."""
    if place == 0:
        start = BLOCK_BYTES - _HASH_SLOTS * 2 - len(page_numbers) * 4
        block[start:BLOCK_BYTES] = bytes(BLOCK_BYTES - start)
    elif page_numbers[place] or (count > 1 and any(page_numbers[place : place + count])):
        hashes = np.frombuffer(block[_HASH_OFFSET:BLOCK_BYTES], np.uint16)
        hashes[hashes > place] = 0
        page_numbers[place:] = array("I", bytes(4 * (len(page_numbers) - place)))


def _enter(slots: memoryview, place: int, pgnos: Sequence[int]) -> None:
    """Put entries ``place + 1`` … into the hash."""
    for entry, pgno in enumerate(pgnos, place + 1):
        key = pgno * _HASH_FACTOR & _HASH_SLOTS - 1
        for _ in range(_SHORT_CHAIN):
            if not slots[key]:
                break
            key = key + 1 & _HASH_SLOTS - 1
        else:
            key = _free_slot(slots, key)
        slots[key] = entry


def _free_slot(slots: memoryview, key: int) -> int:
    """Return the first free slot from ``key`` on: a page that every transaction writes has a chain of thousands."""
    free = np.frombuffer(slots, np.uint16) == 0
    steps = int(free[key:].argmax())
    if free[key + steps]:
        return key + steps
    steps = int(free[:key].argmax()) if key else 0
    if not free[steps]:
        raise Corrupt("the wal-index has no free slot; it has to be rebuilt from the WAL")
    return steps
