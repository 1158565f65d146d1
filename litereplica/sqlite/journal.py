"""The rollback journal: what protects a change of the database file, and the way back.

Knows the journal's format (SQLite file-format document, section 3), how one is made, and how SQLite plays a hot one
back (pager.c, pager_playback). Does not know whether a journal is to be played back: that a transaction was committed
is said by the log, never by a journal.
"""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from litereplica.sqlite.pages import is_page_size, lock_page

Read = Callable[[int, int], bytes]
"""``(offset, size)`` -> the file's bytes, fewer at its end."""

JOURNAL_MAGIC: Final = bytes.fromhex("d9d505f920a163d7")
# records, nonce of the checksums, pages of the database before the transaction, sector size, page size
_HEADER: Final = struct.Struct(">8s5I")
_NUMBER: Final = struct.Struct(">I")
# "As many as there are": the writer did not sync the journal (pager.c, writeJournalHdr).
_TO_THE_END: Final = 0xFFFFFFFF
_SMALLEST_SECTOR: Final = 32
_LARGEST_SECTOR: Final = 65536
# The name of a super-journal stands at the end: name, its length, its checksum, the magic.
_SUPER_TAIL: Final = struct.Struct(">II8s")
_SUPER_NAME_LIMIT: Final = 4096
_CHECKSUM_STEP: Final = 200


_SUPER_NAME: Final = re.compile(r".+-mj[0-9A-F]{6}9[0-9A-F]{2}", re.DOTALL)


def is_super_journal(name: str) -> bool:
    """Whether a file of this name is a super-journal (vdbeaux.c, vdbeCommit: a database's name, -mj, 9 digits)."""
    return _SUPER_NAME.fullmatch(name) is not None


def names_journals(content: bytes) -> bool:
    """Whether this can be what a super-journal holds: whole paths of journals, a NUL behind each, or nothing yet.

    A loss of power leaves zeroes of it.
    """
    *names, rest = content.split(b"\0")
    return not rest and all(not name or (name[:1] == b"/" and name.endswith(b"-journal")) for name in names)


def is_live_journal(first_bytes: bytes) -> bool:
    """Whether a journal that begins so protects anything; it is ended by unlinking, cutting or overwriting this."""
    return first_bytes[:8] == JOURNAL_MAGIC


@dataclass(frozen=True, slots=True)
class JournalHeader:
    """The first header. ``page_count``: pages of the database file before the transaction."""

    page_count: int
    page_size: int
    sector_bytes: int


def parse_journal_header(first_bytes: bytes) -> JournalHeader | None:
    """Read the first 28 bytes; None when the journal protects nothing.

    So it is with sizes that cannot be: the header did not reach the disk whole, and nothing was changed before it did.
    """
    if len(first_bytes) < _HEADER.size or not is_live_journal(first_bytes):
        return None
    _, _, _, page_count, sector_bytes, page_size = _HEADER.unpack_from(first_bytes)
    if not is_page_size(page_size) or not _is_sector(sector_bytes):
        return None
    return JournalHeader(page_count, page_size, sector_bytes)


def _is_sector(size: int) -> bool:
    return _SMALLEST_SECTOR <= size <= _LARGEST_SECTOR and size & (size - 1) == 0


JOURNAL_HEADER_BYTES: Final = 512
"""Of a journal that is written here: one sector, the smallest that SQLite writes itself."""

ORIGINAL_EXTRA_BYTES: Final = 8
"""Of the record of a page beside the page: its number and its checksum."""


def encode_journal_header(page_count: int, page_size: int, nonce: int) -> bytes:
    """Return the header of a journal that goes on to its end, so that its records can follow as they come.

    ``page_count``: pages of the database file before the transaction. ``nonce``: random, 32 bits.
    """
    numbers = (_TO_THE_END, nonce, page_count, JOURNAL_HEADER_BYTES, page_size)
    return _HEADER.pack(JOURNAL_MAGIC, *numbers).ljust(JOURNAL_HEADER_BYTES, b"\0")


def encode_original(pgno: int, page: bytes, nonce: int) -> bytes:
    """Return the record of one page as it was before the transaction."""
    return b"".join((_NUMBER.pack(pgno), page, _NUMBER.pack(_checksum(page, nonce))))


def original_pages(header: JournalHeader, read: Read, size: int) -> Iterator[tuple[int, bytes]]:
    """The (pgno, page) before the transaction, in the journal's order, as far as the journal is whole.

    ``size``: of the journal, bytes. What follows the first record that is torn was never relied upon: SQLite changes
    the database file only after the journal was synced.
    """
    record_bytes = header.page_size + ORIGINAL_EXTRA_BYTES
    locked = lock_page(header.page_size)
    offset = 0
    while offset + header.sector_bytes <= size:
        magic, records, nonce, *_ = _HEADER.unpack(read(offset, _HEADER.size))
        if magic != JOURNAL_MAGIC:
            return
        offset += header.sector_bytes
        if records == _TO_THE_END:
            records = (size - offset) // record_bytes
        for _ in range(records):
            record = read(offset, record_bytes)
            if len(record) < record_bytes:
                return
            (pgno,) = _NUMBER.unpack_from(record)
            page = record[4:-4]
            if pgno in (0, locked) or _NUMBER.unpack_from(record, record_bytes - 4)[0] != _checksum(page, nonce):
                return
            offset += record_bytes
            if pgno <= header.page_count:
                yield pgno, page
        offset += -offset % header.sector_bytes


def _checksum(page: bytes, nonce: int) -> int:
    """The nonce and every 200th byte, counted from the page's end (section 3, "checksum")."""
    return (nonce + sum(page[len(page) - _CHECKSUM_STEP : 0 : -_CHECKSUM_STEP])) & 0xFFFFFFFF


def super_journal_name(read: Read, size: int) -> str | None:
    """The path of the super-journal that this journal's transaction depends on, as its writer had it; None for none."""
    tail = read(size - _SUPER_TAIL.size, _SUPER_TAIL.size) if size >= _SUPER_TAIL.size else b""
    if len(tail) < _SUPER_TAIL.size:
        return None
    length, checksum, magic = _SUPER_TAIL.unpack(tail)
    start = size - _SUPER_TAIL.size - length
    if magic != JOURNAL_MAGIC or not 0 < length <= _SUPER_NAME_LIMIT or start < 0:
        return None
    name = read(start, length)
    # C's char, which SQLite adds up, is signed on some machines.
    unsigned = sum(name)
    signed = unsigned - 256 * sum(byte > 127 for byte in name)
    if len(name) != length or checksum not in (unsigned & 0xFFFFFFFF, signed & 0xFFFFFFFF):
        return None
    return name.decode("utf-8", "surrogateescape")
