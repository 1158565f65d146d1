"""Log records, laid over the pages of a database file.

Knows page images, sizes and bounded memory. Does not know the position or the page checksums, nor which file it is.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from litereplica.ltx.decode import Event, PageBlock
from litereplica.ltx.format import RecordHeader
from litereplica.store.disk import Disk
from litereplica.store.folded import decode_all
from litereplica.store.log import Span

CHUNK_BYTES: Final = 1024 * 1024


def span_bytes(disk: Disk, span: Span) -> Iterator[bytes]:
    """The bytes of a span, in pieces. Raises FileNotFoundError when the log's hard cap has removed it."""
    source = disk.open(span.path, os.O_RDONLY)
    try:
        for offset in range(0, span.length, CHUNK_BYTES):
            yield disk.pread(source, min(CHUNK_BYTES, span.length - offset), span.offset + offset)
    finally:
        disk.close(source)


def write_span(disk: Disk, target: Path, span: Span) -> None:
    """Write a span's pages into ``target`` (made when missing) and cut it to the last record's size. Blocking."""
    descriptor = disk.open(target, os.O_RDWR | os.O_CREAT)
    try:
        disk.truncate(descriptor, lay_over(disk, descriptor, decode_all(span_bytes(disk, span))))
    finally:
        disk.close(descriptor)


def lay_over(disk: Disk, target: int, events: Iterable[Event]) -> int:
    """Write the pages of whole records into the file ``target``; bytes of the database after the last of them."""
    page_size = size_bytes = 0
    for event in events:
        if isinstance(event, RecordHeader):
            size_bytes = event.commit * event.page_size
            if event.page_size != page_size and event.holds_every_page:
                # Pages of another size before it would show where it has none, in the lock page.
                disk.truncate(target, 0)
            elif size_bytes < os.fstat(target).st_size:
                # Should it grow again, pages that nobody writes are zeroes, as where SQLite cut the file.
                disk.truncate(target, size_bytes)
            page_size = event.page_size
        elif isinstance(event, PageBlock):
            for pgno, page in event.pages:
                disk.pwrite(target, page, (pgno - 1) * page_size)
    return size_bytes
