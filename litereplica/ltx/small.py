"""The hot path of encoding: an uncompressed record of a few pages.

Knows the same bytes as encode.encode_record, with what is constant for one database and epoch packed once.
Does not know blocks beyond the first, compression nor origins: those records take the general way.
"""

from collections.abc import Sequence
from operator import lt
from struct import Struct, pack

from xxhash import xxh3_64_intdigest

from litereplica.ltx.encode import encode_record
from litereplica.ltx.format import Origin, RecordHeader, block_bytes, block_capacity
from litereplica.ltx.header import record_prefix
from litereplica.sqlite.pages import lock_page

_UINT_32 = 0xCE
_UINT_64 = 0xCF

_TAIL_AND_BLOCK = Struct(">BIBIBQBQBQBQ")
"""The header's tail, as header.py has it."""

_BLOCK_ONE = Struct("<III")
"""A block's header and the number of its only page."""

_BLOCK = Struct("<II")

_TRAILER = Struct("<I")
_TRAILER_BODY = Struct(">BBQBQ")
_TRAILER_HEAD = _TRAILER.pack(_TRAILER_BODY.size)
_ARRAY_2 = 0x92


class RecordWriter:
    """Makes the records that one node writes for one database in one epoch."""

    __slots__ = ("_capacity", "_database", "_epoch", "_lock_page", "_node", "_page_size", "_prefix", "compression")

    def __init__(self, database: str, page_size: int, epoch: int, node: str, compression: str) -> None:
        self._database, self._page_size, self._epoch, self._node = database, page_size, epoch, node
        self.compression = compression
        self._prefix = record_prefix(database, page_size, epoch, node, compression)
        self._capacity = block_capacity(page_size) if compression == "none" else 0
        self._lock_page = lock_page(page_size)

    def fits(self, page_size: int, epoch: int) -> bool:
        """Whether this writer is the one for such records."""
        return page_size == self._page_size and epoch == self._epoch

    def header(
        self,
        page_count: int,
        commit: int,
        txid: int,
        timestamp_ms: int,
        pre_checksum: int,
        origin: Origin | None = None,
    ) -> RecordHeader:
        """The header of one of its records, as a value."""
        return RecordHeader(
            self._database, self._page_size, commit, page_count, txid, txid, self._epoch, self._node, timestamp_ms,
            pre_checksum, self.compression, origin,
        )  # fmt: skip

    def encode(
        self,
        pages: Sequence[tuple[int, bytes]],
        commit: int,
        txid: int,
        timestamp_ms: int,
        pre_checksum: int,
        post_checksum: int,
        origin: Origin | None = None,
    ) -> bytes:
        """One transaction: ``pages`` in ascending order, none beyond ``commit``, not the lock page."""
        count = len(pages)
        if origin is not None or not 0 < count <= self._capacity:
            header = self.header(count, commit, txid, timestamp_ms, pre_checksum, origin)
            return encode_record(header, pages, post_checksum)
        assert txid >= 1
        tail = _TAIL_AND_BLOCK.pack(
            _UINT_32, commit, _UINT_32, count, _UINT_64, txid, _UINT_64, txid, _UINT_64, timestamp_ms,
            _UINT_64, pre_checksum,
        )  # fmt: skip
        size = self._page_size
        post = post_checksum.to_bytes(8, "little")
        if count == 1:
            pgno, image = pages[0]
            assert len(image) == size, len(image)
            assert 0 < pgno <= commit and pgno != self._lock_page, pgno  # noqa: PT018  one look in the hot path
            parts = [self._prefix, tail, _BLOCK_ONE.pack(1, 4 + size, pgno), image, post]
        else:
            pgnos, images = zip(*pages, strict=True)
            assert pgnos[0] > 0 and pgnos[-1] <= commit and self._lock_page not in pgnos, pgnos  # noqa: PT018
            assert all(map(lt, pgnos, pgnos[1:])), "pages out of order"
            assert set(map(len, images)) == {size}, "a page of another size"
            parts = [
                self._prefix, tail, _BLOCK.pack(count, block_bytes(count, size)), pack(f"<{count}I", *pgnos), *images,
                post,
            ]  # fmt: skip
        summed = b"".join(parts)
        parts[-1] = _TRAILER_HEAD
        parts.append(_TRAILER_BODY.pack(_ARRAY_2, _UINT_64, post_checksum, _UINT_64, xxh3_64_intdigest(summed)))
        return b"".join(parts)
