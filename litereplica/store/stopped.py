"""The same as store.verify for a data directory whose node does not run: nothing in it is changed.

Knows which states only a start can settle (they are refused, not guessed at). Does not know the command.
"""

import contextlib
import fcntl
import os
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np

from litereplica.errors import Corrupt, Refused, Unavailable
from litereplica.ltx.checksum import page_checksum
from litereplica.ltx.decode import PageBlock
from litereplica.ltx.format import RecordHeader, RecordTrailer
from litereplica.ltx.position import Position
from litereplica.sqlite.journal import parse_journal_header
from litereplica.sqlite.pages import lock_page
from litereplica.store.database import CHECKSUMS_NAME
from litereplica.store.direct import CHUNK_BYTES, DirectFile
from litereplica.store.disk import Disk
from litereplica.store.folded import decode_all
from litereplica.store.group import group_paths
from litereplica.store.install import has_history, install_path
from litereplica.store.judge import page_checksums
from litereplica.store.meta import META_NAME, Meta, load_meta, meta_missing
from litereplica.store.page_checksums import HEADER_BYTES
from litereplica.store.reopen import segment_files
from litereplica.store.roll_back import journal_of
from litereplica.store.scan import scan
from litereplica.store.store import FORMAT_LINE, FORMAT_VERSION, folder_name
from litereplica.store.verify import Verified

Progress = Callable[[int, int], None]
"""Told (pages done, pages in all)."""

_JOURNAL_HEADER_BYTES: Final = 28
_START: Final = "start the node once, which settles that, and ask again"


def verify_stopped(root: Path, name: str, progress: Progress) -> Verified:
    """Read a database of the data directory ``root`` and its log. Blocking.

    Raises Unavailable (a node runs there), Refused (no such database, another format, or a crash left what only a start
    can settle), Corrupt (log or meta damaged), OSError.
    """
    with _locked(root):
        directory = root / "db" / folder_name(name)
        if not (directory / META_NAME).exists():
            if has_history(directory):
                raise meta_missing(directory)
            raise Refused(f"no database {name!r} in {root}: check the name")
        meta = load_meta(directory)
        path = root / "files" / name
        _check_settled(root, path, directory, meta)
        newest = _Newest(meta)
        disk = Disk()
        for first, last, segment in _segments(directory):
            if last is None or last > meta.base.txid:
                newest.read(disk, first, segment)
        if not newest.page_count:
            raise Refused(f"{name} was dropped: its log ends with that")
        return _compare(disk, path, directory / CHECKSUMS_NAME, newest, progress)


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """No node begins meanwhile, and none is running."""
    try:
        text = (root / "format").read_text(encoding="utf-8", errors="replace").strip()
        descriptor = os.open(root / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Refused(
            f"{root} is no data directory of a node: set data.dir, or name a running node with --url"
        ) from None
    try:
        if text != f"{FORMAT_LINE}{FORMAT_VERSION}":
            raise Refused(
                f"{root} has another format than this version's {FORMAT_VERSION}: use the version that wrote it"
            )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unavailable(f"{root} is in use by a node that does not answer: name it with --url") from None
        yield
    finally:
        os.close(descriptor)


def _check_settled(root: Path, path: Path, directory: Path, meta: Meta) -> None:
    if meta.installing or install_path(directory, meta.base).exists():
        raise Refused(f"a snapshot of {meta.database} is on its way into place: {_START}")
    if group_paths(root):
        raise Refused(f"a crash came in a transaction over several databases: {_START}")
    journal = journal_of(path)
    if journal.exists():
        with journal.open("rb") as file:
            if parse_journal_header(file.read(_JOURNAL_HEADER_BYTES)) is not None:
                raise Refused(f"{meta.database} has a rollback journal that a crash has left: {_START}")


def _segments(directory: Path) -> Iterator[tuple[int, int | None, Path]]:
    """(first TXID, last TXID or None for the newest, path)."""
    files = segment_files(directory)
    for number, (first, path) in enumerate(files):
        yield first, files[number + 1][0] - 1 if number + 1 < len(files) else None, path


class _Newest:
    """What the records after base make: position, size, and the checksums of the pages in them."""

    def __init__(self, meta: Meta) -> None:
        self.name = meta.database
        self.position = meta.base
        self.page_size = meta.page_size
        self.page_count = meta.base_pages
        self.pages: dict[int, int] = {}
        # The file's content counts for nothing: it is from before a drop, or of another page size.
        self.whole = not meta.base_pages

    def read(self, disk: Disk, first_txid: int, segment: Path) -> None:
        descriptor = disk.open(segment, os.O_RDONLY)
        try:
            found = scan(disk, descriptor, first_txid, None)
            if found.damage is not None:
                raise Refused(
                    f"the log of {self.name} ends in {segment.name} with a record that is not whole: {_START}"
                )
            pieces = (
                disk.pread(descriptor, min(CHUNK_BYTES, found.length - offset), offset)
                for offset in range(0, found.length, CHUNK_BYTES)
            )
            counts = False
            header: RecordHeader | None = None
            for event in decode_all(pieces):
                if isinstance(event, RecordHeader):
                    header, counts = event, event.min_txid > self.position.txid
                    if counts:
                        self._begin(event, segment)
                elif counts and isinstance(event, PageBlock):
                    self.pages.update((pgno, page_checksum(pgno, page)) for pgno, page in event.pages)
                elif counts and isinstance(event, RecordTrailer):
                    assert header is not None
                    self.position = Position(header.max_txid, event.post_checksum)
        finally:
            disk.close(descriptor)

    def _begin(self, header: RecordHeader, segment: Path) -> None:
        if header.min_txid != self.position.txid + 1 or header.pre_checksum != self.position.checksum:
            raise Corrupt(
                f"the log of {self.name} is damaged: record {header.min_txid:016x} in {segment.name} does not follow "
                f"{self.position}; restore the files, or let this node take a snapshot"
            )
        if not header.commit or header.page_size != self.page_size:
            self.pages.clear()
            self.whole = True
        elif header.commit < self.page_count:
            for pgno in [each for each in self.pages if each > header.commit]:
                del self.pages[pgno]
        self.page_size, self.page_count = header.page_size, header.commit


def _compare(disk: Disk, path: Path, table_path: Path, newest: _Newest, progress: Progress) -> Verified:
    page_count, size = newest.page_count, newest.page_size
    entries = array("Q")
    if not newest.whole:
        entries = _read_file(disk, path, size, page_count, progress)
    found = np.zeros(page_count, dtype=np.uint64)
    found[: len(entries)] = np.array(entries, dtype=np.uint64)
    for pgno, entry in newest.pages.items():
        found[pgno - 1] = entry
    table = np.zeros(page_count, dtype=np.uint64)
    if table_path.exists():
        data = table_path.read_bytes()[HEADER_BYTES : HEADER_BYTES + 8 * page_count]
        table[: len(data) // 8] = np.frombuffer(data[: len(data) - len(data) % 8], dtype=np.uint64)
    checksum = newest.position.checksum
    table_checksum = int(np.bitwise_xor.reduce(table))
    damaged: tuple[int, ...] = ()
    if table_checksum == checksum:
        # Pages that no record ever held (0) may hold anything.
        found[table == 0] = 0
        damaged = tuple(int(index) + 1 for index in np.flatnonzero(table != found))
    else:
        # A killed node leaves a table that a start repairs from the log: it proves nothing here.
        table_checksum = checksum
    return Verified(
        position=newest.position,
        recomputed=int(np.bitwise_xor.reduce(found)),
        table=table_checksum,
        logged=checksum,
        page_size=size,
        page_count=page_count,
        log_pages=len(newest.pages),
        damaged=damaged,
    )


def _read_file(disk: Disk, path: Path, page_size: int, page_count: int, progress: Progress) -> "array[int]":
    entries = array("Q")
    try:
        file = DirectFile(disk, path)
    except FileNotFoundError:
        raise Corrupt(f"{path} is missing: restore it, or let this node take a snapshot") from None
    try:
        while len(entries) < page_count:
            with file.read(len(entries) * page_size) as data:
                if len(data) < page_size:
                    break
                entries.extend(page_checksums(data, len(entries) + 1, page_size, lock_page(page_size)))
            progress(min(len(entries), page_count), page_count)
    finally:
        file.close()
    return entries[:page_count]
