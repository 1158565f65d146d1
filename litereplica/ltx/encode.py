"""Records from values to bytes.

Knows blocks, their order and the record's checksum. Does not know where pages come from or where bytes go.
What is wrong with a caller's header or pages is a bug of ours: it is asserted, not reported.
"""

from collections.abc import Sequence
from operator import lt
from struct import pack

from xxhash import xxh3_64

from litereplica.ltx.compression import Codec, codec, shared_codec
from litereplica.ltx.format import BLOCK_HEADER, RecordHeader, block_bytes, block_capacity
from litereplica.ltx.header import pack_header, pack_trailer
from litereplica.sqlite.pages import lock_page

__all__ = ["RecordEncoder", "block_capacity", "encode_record"]


def encode_record(
    header: RecordHeader, pages: Sequence[tuple[int, bytes | bytearray | memoryview]], post_checksum: int
) -> bytes:
    """The whole record: ``pages`` are (pgno, page) in ascending order, as many as ``header.page_count``.

    The record is made in memory as one; RecordEncoder makes large ones piece by piece.
    With compression it is for one thread only, the one that commits; others use a RecordEncoder.
    """
    assert len(pages) == header.page_count, (len(pages), header.page_count)
    page_size = header.page_size
    capacity = block_capacity(page_size)
    how = shared_codec(header.compression)
    parts = [pack_header(header)]
    last_pgno = 0
    for start in range(0, len(pages), capacity):
        last_pgno = _append_block(parts, pages[start : start + capacity], header, last_pgno, how)
    # Part by part, then one join: a second buffer of the record's size would cost more (page faults) than the rest.
    checksum = xxh3_64()
    for part in parts:
        checksum.update(part)
    checksum.update(post_checksum.to_bytes(8, "little"))
    parts.append(pack_trailer(post_checksum, checksum.intdigest()))
    return b"".join(parts)


class RecordEncoder:
    """One record in pieces of at most a block, so that any number of pages needs little memory.

    Call ``begin()`` once, ``block()`` until ``header.page_count`` pages are given, then ``end()``;
    the answers, one after the other, are the record.
    """

    __slots__ = ("_checksum", "_codec", "_header", "_last_pgno", "_remaining")

    def __init__(self, header: RecordHeader) -> None:
        self._header = header
        self._codec = codec(header.compression)
        self._checksum: xxh3_64 | None = None
        self._remaining = header.page_count
        self._last_pgno = 0

    def begin(self) -> bytes:
        """Preamble and header."""
        assert self._checksum is None, "begin() is called once"
        start = pack_header(self._header)
        self._checksum = xxh3_64(start)
        return start

    def block(self, pages: Sequence[tuple[int, bytes | bytearray | memoryview]]) -> bytes:
        """The next block: 1 to ``block_capacity(page_size)`` pages, in ascending order across all blocks."""
        assert self._checksum is not None, "begin() comes first"
        assert 1 <= len(pages) <= self._remaining, (len(pages), self._remaining)
        assert len(pages) <= block_capacity(self._header.page_size), len(pages)
        parts: list[bytes] = []
        self._last_pgno = _append_block(parts, pages, self._header, self._last_pgno, self._codec)
        self._remaining -= len(pages)
        stored = b"".join(parts)
        self._checksum.update(stored)
        return stored

    def end(self, post_checksum: int) -> bytes:
        """The trailer; nothing comes after it."""
        assert self._checksum is not None, "begin() comes first"
        assert self._remaining == 0, f"{self._remaining} pages of the record were not given"
        self._checksum.update(post_checksum.to_bytes(8, "little"))
        self._remaining = -1
        return pack_trailer(post_checksum, self._checksum.intdigest())


def _append_block(
    parts: list[bytes],
    pages: Sequence[tuple[int, bytes | bytearray | memoryview]],
    header: RecordHeader,
    last_pgno: int,
    how: Codec | None,
) -> int:
    """Append the bytes of one block to ``parts``; the answer is its last page number."""
    count = len(pages)
    page_size = header.page_size
    pgnos, images = zip(*pages, strict=True)
    assert last_pgno < pgnos[0], "pages out of order"
    assert all(map(lt, pgnos, pgnos[1:])), "pages out of order"
    assert pgnos[-1] <= header.commit, "a page beyond the database's end"
    assert lock_page(page_size) not in pgnos, "the lock page is never replicated"
    assert set(map(len, images)) == {page_size}, "a page of another size"
    if how is None:
        # Block header and page numbers are one run of u32: one call packs both.
        parts.append(pack(f"<{2 + count}I", count, block_bytes(count, page_size), *pgnos))
        parts.extend(images)
    else:
        stored = how.compress(b"".join((pack(f"<{count}I", *pgnos), *images)))
        parts.append(BLOCK_HEADER.pack(count, len(stored)))
        parts.append(stored)
    last: int = pgnos[-1]
    return last
