"""A database file that is not as a clean stop has left it: judged before anything of it is changed.

Knows what a start would make of it: the file, with the pages that its live journal gives back and with the committed
frames of its WAL. That is what was stopped (a copied folder, a restored backup, a transaction that a killed process
left open), or somebody else has written to it. Does not know how either is put right (store.recover).
"""

import os
import struct
from pathlib import Path
from typing import Final

from litereplica.errors import Corrupt
from litereplica.ltx.checksum import page_checksum
from litereplica.sqlite.checksum import WalChecksum
from litereplica.sqlite.journal import original_pages
from litereplica.sqlite.wal import FRAME_HEADER_BYTES, WAL_HEADER_BYTES, WalHeader, parse_wal_header
from litereplica.store.database import Database
from litereplica.store.disk import Disk
from litereplica.store.redo import CHUNK_BYTES, sum_up
from litereplica.store.roll_back import journal_of, live_header
from litereplica.store.sides import sides_of

_FRAME_HEADER: Final = struct.Struct(">6I")


class _Content:
    """Page checksums that differ from the file's, and how many pages there are; None: as many as the file has."""

    def __init__(self) -> None:
        self.changed: dict[int, int] = {}
        self.page_count: int | None = None
        # Of a page size that the database does not have.
        self.is_other = False


def judge_stopped(database: Database) -> bool:
    """Whether the page checksums were made anew from the file; nothing else is changed.

    Raises Corrupt when the file, with what lies beside it, is not what was stopped; OSError.
    """
    disk, path = database.store.disk, database.file_path
    if not path.exists():
        return False
    content = _Content()
    _add_journal(disk, journal_of(path), path, database.page_size, content)
    _add_wal(disk, sides_of(path)[0], database.page_size, content)
    if content.page_count is None:
        sum_up(database)
        found = database.checksums.xor_range(1, database.page_count)
        if found != database.position.checksum or not _ends(database, content):
            raise _changed(database)
        return True
    if content.is_other or not _is_stopped(database, content):
        raise _sides_changed(database) if _is_stopped(database, _Content()) else _changed(database)
    return False


def _is_stopped(database: Database, content: _Content) -> bool:
    """Whether this is the content of the database's position."""
    disk, size, locked = database.store.disk, database.page_size, database.lock_page
    checksum = 0
    descriptor = disk.open(database.file_path, os.O_RDONLY)
    try:
        step = max(1, CHUNK_BYTES // size)
        for first in range(1, database.page_count + 1, step):
            last = min(first + step - 1, database.page_count)
            data = disk.pread(descriptor, (last - first + 1) * size, (first - 1) * size)
            for pgno in range(first, last + 1):
                page = data[(pgno - first) * size : (pgno - first + 1) * size]
                if pgno == locked:
                    continue
                if pgno in content.changed:
                    checksum ^= content.changed[pgno]
                elif len(page) == size:
                    checksum ^= page_checksum(pgno, page)
    finally:
        disk.close(descriptor)
    return checksum == database.position.checksum and _ends(database, content)


def _ends(database: Database, content: _Content) -> bool:
    """Whether nothing follows the last page but room that was reserved: zeroes."""
    if content.page_count is not None:
        return content.page_count == database.page_count
    disk, offset = database.store.disk, database.page_count * database.page_size
    descriptor = disk.open(database.file_path, os.O_RDONLY)
    try:
        while data := disk.pread(descriptor, CHUNK_BYTES, offset):
            if data.strip(b"\0"):
                return False
            offset += len(data)
    finally:
        disk.close(descriptor)
    return True


def _add_journal(disk: Disk, journal: Path, path: Path, page_size: int, content: _Content) -> None:
    """What playing back the journal would make of the file."""
    if not journal.exists():
        return
    source = disk.open(journal, os.O_RDONLY)
    try:
        header = live_header(disk, source)
        if header is None:
            return
        size = os.fstat(source).st_size
        for pgno, page in original_pages(header, lambda offset, length: disk.pread(source, length, offset), size):
            content.changed[pgno] = page_checksum(pgno, page)
    finally:
        disk.close(source)
    if content.changed or path.stat().st_size > header.page_count * header.page_size:
        content.page_count = header.page_count
        content.is_other = header.page_size != page_size


def _add_wal(disk: Disk, wal: Path, page_size: int, content: _Content) -> None:
    """What the committed frames of the WAL would make of that."""
    if not wal.exists():
        return
    source = disk.open(wal, os.O_RDONLY)
    try:
        try:
            header = parse_wal_header(disk.pread(source, WAL_HEADER_BYTES, 0))
        except Corrupt:
            return
        _add_frames(disk, source, header, content)
    finally:
        disk.close(source)
    content.is_other |= content.page_count is not None and header.page_size != page_size


def _add_frames(disk: Disk, source: int, header: WalHeader, content: _Content) -> None:
    chain, frame_bytes = WalChecksum(header.page_size, header.big_endian), FRAME_HEADER_BYTES + header.page_size
    s0, s1, offset = header.s0, header.s1, WAL_HEADER_BYTES
    pending: dict[int, int] = {}
    while len(frame := disk.pread(source, frame_bytes, offset)) == frame_bytes:
        pgno, commit, salt1, salt2, *sums = _FRAME_HEADER.unpack_from(frame)
        s0, s1 = chain.whole_frame(frame, s0, s1)
        if (salt1, salt2) != (header.salt1, header.salt2) or [s0, s1] != sums or not pgno:
            return
        pending[pgno] = page_checksum(pgno, frame[FRAME_HEADER_BYTES:])
        if commit:
            content.changed |= pending
            content.page_count = commit
            pending = {}
        offset += frame_bytes


def _changed(database: Database) -> Corrupt:
    return Corrupt(
        f"{database.file_path} does not hold what its log says ({database.position}): it was changed after this node "
        f"had stopped, by something else. This start has left it as it is: keep a copy of it, with its -wal and "
        f"-journal; then put the file back as it was, or move it and {database.directory} aside and let this node take "
        f"a snapshot, or restore a backup"
    )


def _sides_changed(database: Database) -> Corrupt:
    sides = " and ".join(str(side) for side in sides_of(database.file_path) if side.exists())
    return Corrupt(
        f"{database.file_path} is as this node has stopped it, but not with what lies beside it, which was written "
        f"since by something else: move {sides} elsewhere to start without that"
    )
