"""An entry of ``diverged/`` comes about: records and a copy of the database, before anything of them is given up.

Knows the order of the steps. Does not know why the cluster does not have the transactions, or what happens to the
database next.
"""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog
import trio

from litereplica.errors import Unavailable
from litereplica.ltx.position import Position
from litereplica.sqlite.pages import lock_page
from litereplica.store.apply import lay_over
from litereplica.store.cursor import Trimmed
from litereplica.store.database import Database
from litereplica.store.diverged import (
    CHECKSUMS_NAME,
    DATABASE_NAME,
    ENTRY_NAME,
    RECORDS_NAME,
    TIME_LIMIT_MS,
    Entry,
    encode_entry,
    entries,
    make_name_durable,
    new_entry_folder,
    remove_half_kept,
)
from litereplica.store.held import Held, in_steps
from litereplica.store.judge import page_checksums
from litereplica.store.verify import LOOKS

log = structlog.get_logger()

COPY_BYTES: Final = 1024 * 1024
"""Read and written at a time."""
STEP_PAGES: Final = 256
"""Read again in one step."""
RANGE_BYTES: Final = 64 * 1024 * 1024
"""Handed to the kernel at a time, which copies by itself (or shares the blocks, where the file system can)."""
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NotKept(Unavailable):
    """The database file has pages that are not those of the position, so what this node had would not be all there.

    Nothing is kept, nor may the file or the log be given up. ``lasting``: waiting does not help, the file is damaged.
    """

    def __init__(self, message: str, *, lasting: bool) -> None:
        super().__init__(message)
        self.lasting = lasting


class _Differs(Exception):
    """Pages of the copy are not those of the position."""

    def __init__(self, pgnos: list[int]) -> None:
        super().__init__()
        self.pgnos = pgnos


def _not_kept(database: Database, held: Held, pgnos: list[int], rollbacks: int) -> NotKept:
    what = f"{len(pgnos)} pages (the first one is page {pgnos[0]}) of {database.file_path} are not what its log says"
    pages = database.open_pages
    if pages.is_open or pages.rollbacks != rollbacks or held.has_live_journal():
        return NotKept(f"{what}: an application is in a transaction, and it is tried again", lasting=False)
    return NotKept(
        f"{what}: keep a copy of the data directory, then move it and {database.directory} aside and let this node "
        f"take a snapshot",
        lasting=True,
    )


async def keep(
    database: Database, base: Position, *, common: bool, primary: str, primary_epoch: int, reason: str
) -> Entry:
    """Keep the records after ``base``, and the database as it is: durable when this returns.

    ``base`` is of its log, or the position before that; ``common``: the primary has it. What an earlier attempt has
    kept of the same is taken for this one. Nobody may commit to the database meanwhile; readers, and the applier's
    checkpoints, go on, and a transaction that is open may write its pages, or be rolled back. Raises Corrupt, Trimmed
    (the log), NotKept, OSError: nothing is kept, nor may anything be given up. A full disk is that too: records are no
    database, and where the last one is replaced it cannot be had any more.
    """
    store = database.store
    remove_half_kept(store, database.name)
    entry = replace(
        _describe(database, base), node=store.node, primary=primary, primary_epoch=primary_epoch,
        kept_ms=time.time_ns() // 1_000_000, reason=reason, common=common,
    )  # fmt: skip
    for known in entries(store.diverged):
        if isinstance(known, Entry) and not known.log_only and known.has_all_of(entry):
            make_name_durable(store, known)
            return known
    folder = new_entry_folder(database)
    rollbacks = database.open_pages.rollbacks
    with Held(database, base.txid) as held:
        whole = bool(held.page_count)
        try:
            if whole:
                # First, and all of it at once: a disk that has no room for it says so soon, and is not filled before.
                await trio.to_thread.run_sync(_reserve, held, folder / DATABASE_NAME)
            await in_steps(_copy_records(held, base.txid, folder / RECORDS_NAME))
            if whole:
                await in_steps(_copy_database(held, folder / DATABASE_NAME, folder / CHECKSUMS_NAME))
        except FileNotFoundError as error:
            raise Trimmed(f"the log of {database.name} was trimmed meanwhile ({error.filename})") from None
        except OSError:
            # A disk that is full needs what it has taken so far.
            with suppress(OSError):
                remove_half_kept(store, database.name)
            raise
        except _Differs as error:
            remove_half_kept(store, database.name)
            raise _not_kept(database, held, error.pgnos, rollbacks) from None
    entry = replace(entry, id=folder.name, whole=whole)
    store.disk.fsync_directory(folder)
    store.disk.write_file(folder / ENTRY_NAME, encode_entry(entry))
    log.warning(
        "transactions_kept", database=database.name, id=entry.id, base=str(base), end=str(entry.end),
        records=entry.records, whole=whole, reason=reason,
    )  # fmt: skip
    return entry


def _describe(database: Database, base: Position) -> Entry:
    records, end = database.log, database.position
    first_epoch = last_epoch = database.epoch
    first_ms = last_ms = database.timestamp_ms
    if end.txid > base.txid:
        header = records.summary(base.txid + 1).header
        first_epoch, first_ms = header.epoch, header.timestamp_ms
        header = records.summary(end.txid).header
        last_epoch, last_ms = header.epoch, header.timestamp_ms
    return Entry(
        "", database.name, base, end, end.txid - base.txid, _size(database, base.txid), database.page_size,
        database.page_count, first_epoch, last_epoch, min(first_ms, TIME_LIMIT_MS), min(last_ms, TIME_LIMIT_MS),
    )  # fmt: skip


def _size(database: Database, after_txid: int) -> int:
    """Bytes of the records after a TXID."""
    records, total = database.log, 0
    for segment in records.segments():
        if segment.length and segment.last_txid > after_txid:
            start = records.bounds(segment, after_txid + 1)[0] if after_txid >= segment.first_txid else 0
            total += segment.length - start
    return total


def _reserve(held: Held, target: Path) -> None:
    """Take the room for the database."""
    disk = held.disk
    descriptor = disk.open(target, os.O_RDWR | os.O_CREAT)
    try:
        disk.allocate(descriptor, 0, held.page_count * held.page_size)
    finally:
        disk.close(descriptor)


def _copy_records(held: Held, after_txid: int, target: Path) -> Iterator[None]:
    disk = held.disk
    descriptor = disk.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        offset = 0
        for span in held.after(after_txid):
            for piece in held.pieces(span):
                offset += disk.pwrite(descriptor, piece, offset)
            yield
        disk.fdatasync(descriptor)
    finally:
        disk.close(descriptor)


def _copy_database(held: Held, target: Path, checksums: Path) -> Iterator[None]:
    """The database at its end, in ``target``: its file, over it what a live journal protects, then the records.

    Raises _Differs: some pages are not those of the end, however often they are read.
    """
    disk = held.disk
    descriptor = disk.open(target, os.O_RDWR)
    try:
        yield from _copy_file(held, descriptor)
        for look in range(1, LOOKS + 1):
            yield from held.put_back(descriptor)
            for span in held.after(held.base.txid):
                lay_over(disk, descriptor, held.events(span))
                yield
            disk.truncate(descriptor, held.page_count * held.page_size)
            wrong: list[int] = []
            yield from _find_wrong(held, descriptor, wrong)
            if not wrong:
                break
            if look == LOOKS:
                raise _Differs(wrong)
            # Read while they were put back, by who rolled back meanwhile.
            for number, pgno in enumerate(wrong, 1):
                disk.pwrite(descriptor, held.read_file(pgno, 1), (pgno - 1) * held.page_size)
                if number % STEP_PAGES == 0:
                    yield
        disk.fdatasync(descriptor)
    finally:
        disk.close(descriptor)
    disk.write_file(checksums, held.table.tobytes())


def _find_wrong(held: Held, copy: int, wrong: list[int]) -> Iterator[None]:
    """Add those pages of the copy to ``wrong`` whose checksum is not the known one."""
    size, count = held.page_size, COPY_BYTES // held.page_size
    locked = lock_page(size)
    for first in range(1, held.page_count + 1, count):
        found = page_checksums(held.disk.pread(copy, count * size, (first - 1) * size), first, size, locked)
        known = held.table[first - 1 : first - 1 + count]
        if found != known:
            # One that was never written by anybody (0) may hold anything.
            pairs = enumerate(zip(known, found, strict=True), first)
            wrong += [pgno for pgno, (entry, each) in pairs if entry and entry != each]
        yield


def _copy_file(held: Held, target: int) -> Iterator[None]:
    if held.descriptor < 0:
        return
    disk, source = held.disk, held.descriptor
    # Pages beyond the end are of a transaction that is open, or were cut off.
    size = min(os.fstat(source).st_size, held.page_count * held.page_size)
    offset = 0
    if size >= COPY_BYTES:
        try:
            while offset < size and (done := os.copy_file_range(source, target, RANGE_BYTES, offset, offset)):
                offset += done
                yield
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise
            offset = 0  # this file system cannot
    while data := disk.pread(source, min(COPY_BYTES, size - offset), offset):
        disk.pwrite(target, data, offset)
        offset += len(data)
        yield
