"""The content of a database at an earlier position, out of this node's own log and file.

Knows where an older image of each page is to be found, and how the result is proven: its checksum must be that of the
position. Does not know why somebody goes back, or how the content takes the place of the newer one (Store.install).

A page that records after the position have changed is in the file as one of them left it, or not yet: its image comes
from the newest record up to the position that has it. Every other page is in the file as it was, unless a record after
``base`` has it. Only what is certain is used; what cannot be had shows in the checksum.
"""

import os
from array import array
from collections.abc import Iterator
from typing import Final

import numpy as np
import structlog

from litereplica.errors import Corrupt, Refused
from litereplica.ltx.checksum import page_checksum
from litereplica.ltx.decode import PageBlock
from litereplica.ltx.format import RecordHeader
from litereplica.ltx.position import Position
from litereplica.sqlite.pages import DATABASE_HEADER_BYTES, lock_page, schema_cookie
from litereplica.store.database import ROLLBACK_MODE, Database, journal_mode_of
from litereplica.store.held import Held, in_steps
from litereplica.store.judge import page_checksums
from litereplica.store.log import Span
from litereplica.store.page_checksums import xor_of
from litereplica.store.snapshot import FinishedSnapshot
from litereplica.store.store import folder_name

log = structlog.get_logger()

CHUNK_BYTES: Final = 1024 * 1024


class Unreachable(Refused):
    """This node does not have every page as it was at the position: a snapshot is needed."""


async def content_at(database: Database, position: Position) -> FinishedSnapshot:
    """The database as it was at ``position``, which is in its log (or the one before that): durable, and proven.

    Nobody may write to the database meanwhile; readers, and the applier's checkpoints, go on. The caller installs the
    answer or removes it (``remove_content``). Raises Unreachable, Corrupt (the log is damaged), OSError.
    """
    page_size, page_count, epoch, timestamp_ms = _known_of(database, position)
    disk = database.store.disk
    target = database.store.incoming / folder_name(database.name) / "pages"
    with Held(database, position.txid) as held:
        disk.make_directories(target.parent)
        rewind = _Rewind(held, position, page_size, page_count)
        descriptor = disk.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            await in_steps(rewind.steps(descriptor))
        except FileNotFoundError as error:
            remove_content(database)
            raise Unreachable(f"the log of {database.name} was trimmed meanwhile ({error.filename})") from None
        except (Unreachable, Corrupt):
            remove_content(database)
            raise
        finally:
            disk.close(descriptor)
    log.info(
        "content_rebuilt", database=database.name, position=str(position), pages=page_count, changed=rewind.taken,
    )  # fmt: skip
    return FinishedSnapshot(
        database.name, target, page_size, page_count, position, rewind.entries, epoch, timestamp_ms,
        apart=rewind.cannot_be_told(),
    )  # fmt: skip


def dropped_content(database: Database) -> FinishedSnapshot:
    """What makes a database one that was dropped, with its next TXID. Raises OSError."""
    disk = database.store.disk
    target = database.store.incoming / folder_name(database.name) / "pages"
    disk.make_directories(target.parent)
    disk.close(disk.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC))
    position = Position(database.position.txid + 1, 0)
    return FinishedSnapshot(
        database.name, target, database.page_size, 0, position, array("Q"), database.epoch, database.timestamp_ms
    )


def remove_content(database: Database) -> None:
    """Remove what ``content_at`` has left, if that is still there."""
    disk = database.store.disk
    folder = database.store.incoming / folder_name(database.name)
    if (folder / "pages").exists():
        disk.unlink(folder / "pages")
    if folder.exists() and not any(folder.iterdir()):
        disk.rmdir(folder)


def _known_of(database: Database, position: Position) -> tuple[int, int, int, int]:
    """Page size, page count, epoch and timestamp at ``position``."""
    if position.txid >= database.log.first_txid:
        header = database.log.summary(position.txid).header
        return header.page_size, header.commit, header.epoch, header.timestamp_ms
    if position == database.base and position.txid:
        # Of its record nothing is left; the next one, of whatever epoch, may follow.
        return database.page_size, database.base_pages, 0, 0
    raise Unreachable(f"the log of {database.name} does not say what was there at {position}")


class _Rewind:
    """One way back. ``entries``: page checksums at the position. ``taken``: pages that came from the log."""

    def __init__(self, held: Held, position: Position, page_size: int, page_count: int) -> None:
        self._held = held
        self._position = position
        self._page_size = page_size
        self._page_count = page_count
        self._lock_page = lock_page(page_size) if page_size else 0
        # By pgno: records after the position have changed the page or cut it off; the page is written already.
        self._needed = bytearray(page_count + 1)
        self._written = bytearray(page_count + 1)
        self._missing = 0
        # Pages beyond were cut off by a record (up to the position) that was looked at already: older images are void.
        self._limit = page_count
        self._resized = False
        self.taken = 0
        # What page 1 said at the position and after it.
        self._schemas: set[int] = set()
        self._journal_modes: set[str] = set()
        self.entries = array("Q", held.table[:page_count])
        self.entries.frombytes(bytes(8 * (page_count - len(self.entries))))

    def steps(self, target: int) -> Iterator[None]:
        """Write the content into ``target``; each step is short. Raises Unreachable, Corrupt, OSError."""
        held = self._held
        if self._page_count:
            for span in held.after(held.cut):
                self._note_changed(span)
                yield
            for pgno in np.flatnonzero(np.frombuffer(self._needed, dtype=np.uint8)).tolist():
                self.entries[pgno - 1] = 0
                self._missing += pgno != self._lock_page
            yield from self._take_images(target)
            self._take_entries_of_file()
            self._prove()
            yield from self._fill(target)
        elif self._position.checksum:
            raise Corrupt(f"{held.name} had no pages at {self._position}, which cannot be")
        held.disk.truncate(target, self._page_count * self._page_size)
        held.disk.fdatasync(target)
        if self._page_count:
            self._note_first_page(held.disk.pread(target, DATABASE_HEADER_BYTES, 0))

    def cannot_be_told(self) -> bool:
        """Whether connections that know a later state may take what follows the position instead for that.

        They go by numbers that are counted up: of the schema, and under a rollback journal of all changes.
        """
        return len(self._schemas) > 1 or ROLLBACK_MODE in self._journal_modes

    def _note_first_page(self, page: bytes) -> None:
        self._schemas.add(schema_cookie(page))
        self._journal_modes.add(journal_mode_of(page))

    def _note_changed(self, span: Span) -> None:
        """Which pages the records after the position have changed."""
        needed, count = self._needed, self._page_count
        for event in self._held.events(span):
            if isinstance(event, RecordHeader):
                if event.page_size != self._page_size:
                    raise Unreachable(f"the page size of {self._held.name} has changed since {self._position}")
                if event.commit < count:
                    needed[event.commit + 1 :] = b"\1" * (count - event.commit)
            elif isinstance(event, PageBlock):
                for pgno, page in event.pages:
                    if pgno <= count:
                        needed[pgno] = 1
                    if pgno == 1:
                        self._note_first_page(page)

    def _take_images(self, target: int) -> Iterator[None]:
        """Newest first: what is needed, and whatever the file need not have yet."""
        base = self._held.base.txid
        for span in self._held.up_to_cut():
            newer_than_file = span.last_txid > base
            if self._resized or (not newer_than_file and not self._missing):
                return
            newest: dict[int, bytes] = {}
            limit, same_size = self._limit, True
            for event in self._held.events(span):
                if isinstance(event, RecordHeader):
                    limit = self._begin_record(event, newest, limit)
                    same_size = event.page_size == self._page_size
                elif isinstance(event, PageBlock) and same_size:
                    newest.update(event.pages)
                    if span.first_txid == span.last_txid:
                        # One record, of any size, has each page once: no more of it is held than a block.
                        self._write(target, newest, newer_than_file=newer_than_file)
                        newest.clear()
            self._write(target, newest, newer_than_file=newer_than_file)
            self._limit = min(self._limit, limit)
            yield

    def _begin_record(self, header: RecordHeader, newest: dict[int, bytes], limit: int) -> int:
        if header.page_size != self._page_size:
            # The next record has every page of this size: nothing older is wanted.
            self._resized = True
            newest.clear()
            return limit
        for pgno in [each for each in newest if each > header.commit]:
            del newest[pgno]
        return min(limit, header.commit)

    def _write(self, target: int, pages: dict[int, bytes], *, newer_than_file: bool) -> None:
        written, needed = self._written, self._needed
        for pgno, page in pages.items():
            if pgno > self._limit or written[pgno] or not (newer_than_file or needed[pgno]):
                continue
            self._held.disk.pwrite(target, page, (pgno - 1) * self._page_size)
            self.entries[pgno - 1] = page_checksum(pgno, page)
            written[pgno] = 1
            self.taken += 1
            self._missing -= needed[pgno]

    def _take_entries_of_file(self) -> None:
        """What no record has may be in the file as it was, if that is not newer than the position."""
        if not self._missing or self._held.base.txid > self._position.txid:
            return
        for pgno in np.flatnonzero(np.frombuffer(self._needed, dtype=np.uint8)).tolist():
            if not self._written[pgno] and pgno != self._lock_page:
                page = self._held.read_file(pgno, 1)
                if len(page) == self._page_size:
                    self.entries[pgno - 1] = page_checksum(pgno, page)

    def _prove(self) -> None:
        checksum = xor_of(self.entries)
        if checksum != self._position.checksum:
            raise Unreachable(
                f"{self._missing} pages of {self._held.name} as they were at {self._position} are neither in the log "
                f"nor in the file"
            )

    def _fill(self, target: int) -> Iterator[None]:
        """The pages that were not written come from the file, each compared with its checksum."""
        held, size, written = self._held, self._page_size, self._written
        step = CHUNK_BYTES // size
        for first in range(1, self._page_count + 1, step):
            last = min(first + step - 1, self._page_count)
            if all(written[first : last + 1]):
                continue
            data = held.read_file(first, last - first + 1)
            if (
                not any(written[first : last + 1])
                and page_checksums(data, first, size, self._lock_page) == (self.entries[first - 1 : last])
            ):
                held.disk.pwrite(target, data, (first - 1) * size)
            else:
                self._fill_pages(target, first, last, memoryview(data))
            yield

    def _fill_pages(self, target: int, first: int, last: int, data: memoryview) -> None:
        size = self._page_size
        for pgno in range(first, last + 1):
            page = data[(pgno - first) * size : (pgno - first + 1) * size]
            if not self._written[pgno] and self._is_right(pgno, page):
                self._held.disk.pwrite(target, page, (pgno - 1) * size)

    def _is_right(self, pgno: int, page: memoryview) -> bool:
        """Whether there is anything to write. Raises Unreachable when the file has another page than it should."""
        entry = self.entries[pgno - 1]
        if pgno == self._lock_page or not entry:
            # No data, or never written by anybody: whatever is there, if that is not newer than the position.
            return len(page) == self._page_size and not self._needed[pgno]
        if len(page) != self._page_size or page_checksum(pgno, page) != entry:
            raise Unreachable(f"page {pgno} in the file of {self._held.name} is not what it should be")
        return True
