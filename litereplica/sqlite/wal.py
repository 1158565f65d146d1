"""The write-ahead log's bytes: the file header and the frames (SQLite file-format document, section 4).

Knows how a WAL header and frames are laid out, and builds them with their cumulative checksums.
Does not know which frames of a file are valid or committed: that is detector.py's.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from litereplica.errors import Corrupt
from litereplica.sqlite.checksum import Bytes, WalChecksum, checksum_words
from litereplica.sqlite.pages import DATABASE_HEADER_BYTES, is_page_size, parse_database_header

WAL_HEADER_BYTES = 32
FRAME_HEADER_BYTES = 24

# The lowest bit says that the checksums read their input as big-endian words; every field itself is big-endian.
_MAGIC = 0x377F0682
_VERSION = 3007000
_HEADER = struct.Struct(">8I")
_FRAME_HEADER = struct.Struct(">6I")
_PAIR = struct.Struct(">II")


@dataclass(frozen=True, slots=True)
class WalHeader:
    """A valid WAL header. ``page_size`` in bytes; ``s0, s1`` its own checksum, from which the frames' chain starts."""

    big_endian: bool
    page_size: int
    checkpoint_sequence: int
    salt1: int
    salt2: int
    s0: int
    s1: int

    @classmethod
    def build(
        cls, *, page_size: int, checkpoint_sequence: int, salt1: int, salt2: int, big_endian: bool = False
    ) -> "WalHeader":
        """Return a header with the checksum filled in."""
        assert is_page_size(page_size), page_size
        head = struct.pack(">6I", _MAGIC | big_endian, _VERSION, page_size, checkpoint_sequence, salt1, salt2)
        s0, s1 = checksum_words(head, 0, 0, big_endian)
        return cls(big_endian, page_size, checkpoint_sequence, salt1, salt2, s0, s1)

    def encode(self) -> bytes:
        """Return the 32 bytes at the start of the file."""
        return _HEADER.pack(
            _MAGIC | self.big_endian,
            _VERSION,
            self.page_size,
            self.checkpoint_sequence,
            self.salt1,
            self.salt2,
            self.s0,
            self.s1,
        )


def parse_wal_header(data: bytes) -> WalHeader:
    """Read the first 32 bytes of a WAL; ``Corrupt`` when SQLite would not accept them either."""
    if len(data) < WAL_HEADER_BYTES:
        raise Corrupt(f"WAL header needs {WAL_HEADER_BYTES} bytes, only {len(data)} are there")
    magic, version, page_size, checkpoint_sequence, salt1, salt2, s0, s1 = _HEADER.unpack_from(data)
    if magic & ~1 != _MAGIC:
        raise Corrupt(f"WAL header starts with {magic:#010x}, not with SQLite's magic number")
    if version != _VERSION:
        raise Corrupt(f"WAL header has format version {version}, known is {_VERSION}")
    if not is_page_size(page_size):
        raise Corrupt(f"WAL header names the page size {page_size}, which SQLite cannot have")
    big_endian = bool(magic & 1)
    if checksum_words(data[:24], 0, 0, big_endian) != (s0, s1):
        raise Corrupt("WAL header does not match its checksum")
    return WalHeader(big_endian, page_size, checkpoint_sequence, salt1, salt2, s0, s1)


def first_wal(read: Callable[[int, int], bytes], file_bytes: int, salts: bytes) -> bytes:
    """Return a WAL of one committed frame for a database file: page 1 as it is, so it changes nothing.

    ``read(offset, size)`` reads the file, which has ``file_bytes``. ``salts``: 8 random bytes, so that nothing that was
    in a WAL before fits them. Raises Corrupt when the file does not begin as a database.
    """
    database = parse_database_header(read(0, DATABASE_HEADER_BYTES))
    page_size = database.page_size
    salt1, salt2 = _PAIR.unpack(salts)
    header = WalHeader.build(page_size=page_size, checkpoint_sequence=0, salt1=salt1, salt2=salt2)
    page = read(0, page_size)
    if len(page) != page_size:
        raise Corrupt(f"the database file ends within page 1, of {page_size} bytes")
    frames, _, _ = encode_frames(header, header.s0, header.s1, [(1, page)], file_bytes // page_size)
    return header.encode() + frames


def encode_frame_header(pgno: int, commit: int, salt1: int, salt2: int, s0: int, s1: int) -> bytes:
    """Return the 24 bytes before a page; ``commit`` is the page count after the transaction, 0 within it."""
    return _FRAME_HEADER.pack(pgno, commit, salt1, salt2, s0, s1)


def encode_frames(
    header: WalHeader, s0: int, s1: int, pages: Sequence[tuple[int, Bytes]], commit: int
) -> tuple[bytes, int, int]:
    """Return a whole transaction as one run of frames, and the checksum after it.

    ``s0, s1`` is the checksum before the run (the last valid frame's, or the header's). ``pages`` are
    ``(pgno, page)`` in the order of the frames; the last frame carries ``commit``, the page count after it.
    """
    assert pages and commit > 0, "a transaction has pages and leaves some"  # noqa: PT018
    checksum = WalChecksum(header.page_size, header.big_endian)
    last = len(pages) - 1
    parts: list[Bytes] = []
    for index, (pgno, page) in enumerate(pages):
        header8 = _PAIR.pack(pgno, commit if index == last else 0)
        s0, s1 = checksum.frame(header8, page, s0, s1)
        parts += (header8, struct.pack(">4I", header.salt1, header.salt2, s0, s1), page)
    return b"".join(parts), s0, s1
