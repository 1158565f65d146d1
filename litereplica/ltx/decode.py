"""Records from bytes to values, checked as outside input.

Knows three ways to read: a stream piece by piece (RecordDecoder), a whole record in memory (decode_record),
and a record somewhere in a file without its pages (scan_record). Does not know where bytes come from.

Every one of them raises Corrupt for damage and Refused for a record of another format version, nothing else;
no length that is in the data is allocated before it was compared with a limit of format.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from operator import lt
from struct import unpack_from
from typing import NamedTuple

from xxhash import xxh3_64

from litereplica.errors import Corrupt, Refused
from litereplica.ltx.compression import Codec, codec, shared_codec
from litereplica.ltx.format import (
    BLOCK_HEADER,
    PGNO_BYTES,
    VERSION_PEEK_BYTES,
    RecordHeader,
    RecordTrailer,
    block_bytes,
    stored_limit,
)
from litereplica.ltx.header import (
    TRAILER_BYTES,
    Identity,
    Truncated,
    parse_header,
    parse_trailer,
    peek_header_bytes,
    truncated,
)

__all__ = [
    "Event",
    "PageBlock",
    "Record",
    "RecordDecoder",
    "RecordSummary",
    "Truncated",
    "decode_record",
    "scan_header",
    "scan_record",
]

WHOLE_RECORD_LIMIT_BYTES = 1 << 28
"""Most page bytes that decode_record makes at once: compressed zeros could otherwise fill any memory."""

FEED_PAGES_LIMIT_BYTES = 4 << 20
"""Page bytes after which one call of RecordDecoder.feed stops: 256 KiB of compressed zeros can hold gigabytes.
Above what that many bytes hold without compression, so that only highly compressed records ever get there."""

SCAN_HEAD_BYTES = 512
"""What scan_record asks for first: header and first block header at once, unless names are very long."""

VERIFY_READ_BYTES = 1 << 18
"""What scan_record holds at a time to verify a record's checksum."""

Pages = list[tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class PageBlock:
    """Some pages of a record: (pgno, page), at most 1 MiB of pages, ascending across all blocks of the record.

    The record's checksum is only known to be right when its RecordTrailer arrives.
    """

    pages: Pages


Event = RecordHeader | PageBlock | RecordTrailer


class Record(NamedTuple):
    """A whole record; ``length``: its bytes, magic to trailer."""

    header: RecordHeader
    pages: Pages
    trailer: RecordTrailer
    length: int


class RecordSummary(NamedTuple):
    """A record without its pages; ``length``: its bytes, magic to trailer."""

    header: RecordHeader
    trailer: RecordTrailer
    length: int


def decode_record(buffer: bytes | bytearray | memoryview, offset: int = 0) -> Record:
    """The record at ``offset`` of ``buffer``, where more may follow it; its checksum is compared before its pages are.

    For one thread only if records are compressed. Raises Truncated when the buffer ends inside the record, Corrupt,
    and Refused for another format version or for more than WHOLE_RECORD_LIMIT_BYTES of pages.
    """
    view = memoryview(buffer)
    end = len(view)
    header_bytes = peek_header_bytes(view, offset, end)
    if header_bytes is None or offset + header_bytes > end:
        raise truncated()
    position = offset + header_bytes
    header, identity = parse_header(view, offset, position)
    page_size = identity.page_size
    blocks: list[tuple[int, int, int]] = []
    remaining = header.page_count
    while remaining:
        if position + BLOCK_HEADER.size > end:
            raise truncated()
        count, stored_bytes = BLOCK_HEADER.unpack_from(view, position)
        _check_block_header(count, stored_bytes, remaining, identity)
        position += BLOCK_HEADER.size
        blocks.append((position, count, stored_bytes))
        position += stored_bytes
        if position > end:
            raise truncated()
        remaining -= count
    if position + TRAILER_BYTES > end:
        raise truncated()
    post_checksum, record_checksum = parse_trailer(view, position)
    _check_record_checksum(xxh3_64(view[offset:position]), post_checksum, record_checksum, header)
    if header.page_count * page_size > WHOLE_RECORD_LIMIT_BYTES:
        raise Refused(f"an LTX record of {header.page_count} pages is too large to decode at once: decode its blocks")
    how = shared_codec(identity.compression)
    pages: Pages = []
    last_pgno = 0
    for start, count, stored_bytes in blocks:
        block = _decode_block(view[start : start + stored_bytes], count, identity, header.commit, last_pgno, how=how)
        pages += block
        last_pgno = block[-1][0]
    length = position + TRAILER_BYTES - offset
    return Record(header, pages, RecordTrailer(post_checksum, record_checksum, length), length)


class RecordDecoder:
    """Records out of a byte stream, in pieces of any size; holds at most one block and what it was last fed.

    ``feed`` answers with the events that became complete: for each record its RecordHeader, PageBlocks, RecordTrailer.
    Damage never takes back events: those before it are answered first, then ``failure`` is set, and the next call
    of ``feed`` or ``finish`` raises it, as does every call after it.
    One call makes about FEED_PAGES_LIMIT_BYTES of pages and then stops with ``more`` set: ``feed(b"")`` goes on.
    """

    __slots__ = (
        "_checksum", "_codec", "_codec_name", "_header", "_identity", "_last_pgno",
        "_length", "_need_bytes", "_pending", "_remaining", "failure", "more",
    )  # fmt: skip

    def __init__(self) -> None:
        self.failure: Corrupt | Refused | None = None
        self.more = False
        self._pending = bytearray()
        self._need_bytes = 0
        """The least size of ``_pending`` that completes an event."""
        self._header: RecordHeader | None = None
        self._identity: Identity | None = None
        self._checksum = xxh3_64()
        self._remaining = 0
        self._last_pgno = 0
        self._length = 0
        self._codec: Codec | None = None
        self._codec_name = "none"

    def feed(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """The events that ``data``, the next bytes of the stream, completes; ``data`` may be reused afterwards.

        Raises Corrupt or Refused (see the class) when there is not one event before the damage.
        """
        if self.failure is not None:
            raise self.failure
        if self._pending:
            self._pending += data
            if len(self._pending) < self._need_bytes:
                return []
            data = self._pending
            self._pending = bytearray()
        self.more = False
        events: list[Event] = []
        with memoryview(data) as view:
            try:
                consumed = self._consume(view, events)
            except (Corrupt, Refused) as failure:
                # A copy: the one that is raised holds frames, and they hold the caller's buffer.
                self.failure = type(failure)(failure.message)
                if not events:
                    raise
                return events
            if consumed < len(view):
                self._pending += view[consumed:]
        return events

    def finish(self) -> None:
        """The stream ended: raises Truncated when that was inside a record."""
        assert not self.more, "events are waiting: feed(b'') until there are no more"
        if self.failure is not None:
            raise self.failure
        if self._header is not None:
            raise truncated()
        if self._pending:
            peek_header_bytes(self._pending, 0, len(self._pending))
            raise truncated()

    def _consume(self, view: memoryview, events: list[Event]) -> int:
        """Append the events of ``view`` to ``events``; the answer is how many bytes they took."""
        position = 0
        end = len(view)
        budget_bytes = FEED_PAGES_LIMIT_BYTES
        while position < end:
            if budget_bytes <= 0:
                self.more = True
                self._need_bytes = 0
                break
            header, identity = self._header, self._identity
            if header is None or identity is None:
                header_bytes = peek_header_bytes(view, position, end)
                self._need_bytes = header_bytes or VERSION_PEEK_BYTES
                stop = position + self._need_bytes
                if header_bytes is None or stop > end:
                    break
                events.append(self._begin(view, position, stop))
            elif self._remaining:
                self._need_bytes = BLOCK_HEADER.size
                if position + BLOCK_HEADER.size > end:
                    break
                count, stored_bytes = BLOCK_HEADER.unpack_from(view, position)
                _check_block_header(count, stored_bytes, self._remaining, identity)
                self._need_bytes += stored_bytes
                stop = position + self._need_bytes
                if stop > end:
                    break
                self._checksum.update(view[position:stop])
                stored = view[position + BLOCK_HEADER.size : stop]
                pages = _decode_block(stored, count, identity, header.commit, self._last_pgno, how=self._codec)
                self._last_pgno = pages[-1][0]
                self._remaining -= count
                self._length += stop - position
                budget_bytes -= count * identity.page_size
                events.append(PageBlock(pages))
            else:
                self._need_bytes = TRAILER_BYTES
                stop = position + TRAILER_BYTES
                if stop > end:
                    break
                post_checksum, record_checksum = parse_trailer(view, position)
                _check_record_checksum(self._checksum, post_checksum, record_checksum, header)
                self._header = None
                events.append(RecordTrailer(post_checksum, record_checksum, self._length + TRAILER_BYTES))
            position = stop
        return position

    def _begin(self, view: memoryview, start: int, stop: int) -> RecordHeader:
        header, identity = parse_header(view, start, stop)
        if identity.compression != self._codec_name:
            self._codec = codec(identity.compression)
            self._codec_name = identity.compression
        self._header, self._identity = header, identity
        self._checksum = xxh3_64(view[start:stop])
        self._remaining = header.page_count
        self._last_pgno = 0
        self._length = stop - start
        return header


def scan_record(read_at: Callable[[int, int], bytes], offset: int, *, verify: bool = False) -> RecordSummary:
    """The record at ``offset`` of a file, from its header, block headers and trailer; pages are stepped over.

    ``read_at(offset, size)`` answers with the ``size`` bytes there, fewer only at the end of the file. It is called
    twice for a record of one block, once more for each further block. ``verify`` reads all of the record, 256 KiB
    at a time, and compares its checksum; without it damage in the pages stays unseen.
    Raises as decode_record does.
    """
    head, header_bytes = _read_head(read_at, offset)
    header, identity = parse_header(head, 0, header_bytes)
    position = header_bytes
    remaining = header.page_count
    while remaining:
        if position + BLOCK_HEADER.size <= len(head):
            count, stored_bytes = BLOCK_HEADER.unpack_from(head, position)
        else:
            count, stored_bytes = BLOCK_HEADER.unpack(_read_exactly(read_at, offset + position, BLOCK_HEADER.size))
        _check_block_header(count, stored_bytes, remaining, identity)
        position += BLOCK_HEADER.size + stored_bytes
        remaining -= count
    post_checksum, record_checksum = parse_trailer(_read_exactly(read_at, offset + position, TRAILER_BYTES), 0)
    if verify:
        checksum = xxh3_64()
        for start in range(0, position, VERIFY_READ_BYTES):
            checksum.update(_read_exactly(read_at, offset + start, min(VERIFY_READ_BYTES, position - start)))
        _check_record_checksum(checksum, post_checksum, record_checksum, header)
    length = position + TRAILER_BYTES
    return RecordSummary(header, RecordTrailer(post_checksum, record_checksum, length), length)


def scan_header(read_at: Callable[[int, int], bytes], offset: int) -> RecordHeader:
    """Only the header of the record at ``offset``, nearly always in one read; raises as decode_record does."""
    head, header_bytes = _read_head(read_at, offset)
    return parse_header(head, 0, header_bytes)[0]


def _read_head(read_at: Callable[[int, int], bytes], offset: int) -> tuple[bytes, int]:
    """(the record's first bytes, how many of them are preamble and header: all of those are there)."""
    head = read_at(offset, SCAN_HEAD_BYTES)
    header_bytes = peek_header_bytes(head, 0, len(head))
    if header_bytes is None:
        raise truncated()
    if header_bytes > len(head):
        head = read_at(offset, header_bytes + BLOCK_HEADER.size)
        if header_bytes > len(head):
            raise truncated()
    return head, header_bytes


def _read_exactly(read_at: Callable[[int, int], bytes], offset: int, size: int) -> bytes:
    data = read_at(offset, size)
    if len(data) < size:
        raise truncated()
    return data


def _check_block_header(count: int, stored_bytes: int, remaining: int, identity: Identity) -> None:
    """``remaining``: pages of the record that are still to come."""
    if not 1 <= count <= remaining or count > identity.block_capacity:
        raise Corrupt(f"a block of an LTX record claims {count} pages where {remaining} are left")
    raw_bytes = block_bytes(count, identity.page_size)
    if stored_bytes != raw_bytes and (identity.compression == "none" or stored_bytes > stored_limit(raw_bytes)):
        raise Corrupt(f"a block of an LTX record claims {stored_bytes} bytes for {count} pages")


def _check_record_checksum(checksum: xxh3_64, post_checksum: int, stored: int, header: RecordHeader) -> None:
    """``checksum``: over the record up to its trailer; taken over."""
    checksum.update(post_checksum.to_bytes(8, "little"))
    if checksum.intdigest() != stored:
        raise Corrupt(
            f"the LTX record of {header.database!r} at transaction {header.min_txid} is damaged: "
            f"its checksum does not match; fetch it again, or restore the log"
        )


def _decode_block(
    stored: memoryview, count: int, identity: Identity, commit: int, last_pgno: int, *, how: Codec | None
) -> Pages:
    """The pages of one block whose header was checked; ``last_pgno``: the page before them, or 0."""
    page_size = identity.page_size
    raw = stored if how is None else memoryview(how.decompress(stored, block_bytes(count, page_size)))
    pgnos = unpack_from(f"<{count}I", raw)
    if pgnos[0] <= last_pgno or pgnos[-1] > commit or not all(map(lt, pgnos, pgnos[1:])):
        raise Corrupt(f"pages of an LTX record are out of order or beyond the database's {commit} pages")
    if identity.lock_page in pgnos:
        raise Corrupt(f"an LTX record holds page {identity.lock_page}, the lock page, which is never replicated")
    start = count * PGNO_BYTES
    # Bytes, not views: a page that is kept must not keep its whole block in memory, nor the caller's buffer.
    images = [raw[at : at + page_size].tobytes() for at in range(start, start + count * page_size, page_size)]
    return list(zip(pgnos, images, strict=True))
