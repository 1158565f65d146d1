"""A span of log records, written into a database file that nobody reads yet.

Knows page images and bounded memory. Does not know the position or the page checksums: counting a record has set them.
"""

import os
from pathlib import Path
from typing import Final

from litereplica.ltx.decode import PageBlock, RecordDecoder
from litereplica.ltx.format import RecordHeader
from litereplica.store.disk import Disk
from litereplica.store.log import Span

CHUNK_BYTES: Final = 1024 * 1024


def write_span(disk: Disk, target: Path, span: Span) -> None:
    """Write a span's pages into ``target`` (made when missing) and cut it to the last record's size. Blocking."""
    descriptor = disk.open(target, os.O_RDWR | os.O_CREAT)
    try:
        source = disk.open(span.path, os.O_RDONLY)
        try:
            size_bytes = _write(disk, descriptor, source, span)
        finally:
            disk.close(source)
        disk.truncate(descriptor, size_bytes)
    finally:
        disk.close(descriptor)


def _write(disk: Disk, descriptor: int, source: int, span: Span) -> int:
    decoder = RecordDecoder()
    page_size = size_bytes = 0
    for offset in range(0, span.length, CHUNK_BYTES):
        events = decoder.feed(disk.pread(source, min(CHUNK_BYTES, span.length - offset), span.offset + offset))
        while events or decoder.more:
            for event in events:
                if isinstance(event, RecordHeader):
                    if event.page_size != page_size and event.holds_every_page:
                        # Pages of another size before it would show where it has none, in the lock page.
                        disk.truncate(descriptor, 0)
                    page_size = event.page_size
                    size_bytes = event.commit * page_size
                elif isinstance(event, PageBlock):
                    for pgno, page in event.pages:
                        disk.pwrite(descriptor, page, (pgno - 1) * page_size)
            events = decoder.feed(b"") if decoder.more else []
        if decoder.failure is not None:
            raise decoder.failure
    decoder.finish()
    return size_bytes
