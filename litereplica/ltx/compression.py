"""Compression of a block, bounded both ways.

Knows lz4 and zstd blocks and how to decompress without trusting a length that is in the data.
Does not know what a block holds. Each library is imported when a record first asks for it: a node
without compression does not pay for their memory.
"""

from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from litereplica.errors import Corrupt

if TYPE_CHECKING:
    from zstandard import ZstdCompressor, ZstdDecompressor

ZSTD_LEVEL = 1
"""A commit waits for its compression: the fastest regular level; the next ones gain a few per cent of pages."""

ZSTD_WINDOW_LIMIT_BYTES = 1 << 22
"""Largest zstd window taken: four blocks; a larger one can only come from damage and would only cost memory."""


class Codec(Protocol):
    """One compression."""

    def compress(self, raw: bytes) -> bytes:
        """``raw`` in compressed form, at most ``format.stored_limit`` bytes."""

    def decompress(self, stored: memoryview, raw_bytes: int) -> bytes:
        """The ``raw_bytes`` bytes that were compressed; allocates no more than that; raises Corrupt."""


class _Lz4:
    """LZ4 block format, without the library's own length prefix."""

    def __init__(self) -> None:
        import lz4.block  # noqa: PLC0415 - see the module's docstring

        self._compress = lz4.block.compress
        self._decompress = lz4.block.decompress
        self._error = lz4.block.LZ4BlockError

    def compress(self, raw: bytes) -> bytes:
        compressed: bytes = self._compress(raw, store_size=False)
        return compressed

    def decompress(self, stored: memoryview, raw_bytes: int) -> bytes:
        try:
            raw: bytes = self._decompress(stored, uncompressed_size=raw_bytes)
        except (self._error, ValueError) as error:
            raise Corrupt(f"a block of an LTX record is not valid lz4: {error}") from None
        return _of_length(raw, raw_bytes)


class _Zstd:
    """One zstd frame that states its content size."""

    def __init__(self) -> None:
        import zstandard  # noqa: PLC0415 - see the module's docstring

        self._compressor: ZstdCompressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_content_size=True)
        self._decompressor: ZstdDecompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_LIMIT_BYTES)
        self._content_bytes = zstandard.frame_content_size
        self._error = zstandard.ZstdError

    def compress(self, raw: bytes) -> bytes:
        return self._compressor.compress(raw)

    def decompress(self, stored: memoryview, raw_bytes: int) -> bytes:
        try:
            # The library allocates what the frame claims and ignores max_output_size then: compare first.
            if self._content_bytes(stored) != raw_bytes:
                raise Corrupt("a zstd block of an LTX record claims another size than its pages have")
            raw = self._decompressor.decompress(stored, max_output_size=raw_bytes, allow_extra_data=False)
        except self._error as error:
            raise Corrupt(f"a block of an LTX record is not valid zstd: {error}") from None
        return _of_length(raw, raw_bytes)


def _of_length(raw: bytes, raw_bytes: int) -> bytes:
    if len(raw) != raw_bytes:
        raise Corrupt(f"a block of an LTX record decompresses to {len(raw)} bytes instead of {raw_bytes}")
    return raw


def codec(compression: str) -> Codec | None:
    """A new codec for one of ``format.COMPRESSIONS``; None when blocks are stored as they are.

    A codec belongs to one thread at a time: zstd contexts break when two use them at once.
    """
    if compression == "none":
        return None
    if compression == "lz4":
        return _Lz4()
    assert compression == "zstd", compression
    return _Zstd()


@lru_cache(maxsize=3)
def shared_codec(compression: str) -> Codec | None:
    """The codec of the one thread that encodes and decodes whole records; a new one would cost more than its work."""
    return codec(compression)
