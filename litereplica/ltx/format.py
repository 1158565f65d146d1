"""The byte layout of an LTX record, its limits and its values.

Knows every number that encoding and decoding agree on (docs/formats.md, "LTX record", has them as tables).
Does not encode or decode: header.py, encode.py and decode.py do.

The values are named tuples, not frozen dataclasses: one header is built for each transaction on either side,
and a frozen dataclass of eleven fields takes three microseconds to build, a named tuple half of one.
"""

from struct import Struct
from typing import NamedTuple

from litereplica.sqlite.pages import lock_page

MAGIC = b"LRX1"
FORMAT_VERSION = 1
"""Of a record that its node's own application wrote."""

ORIGIN_VERSION = 2
"""Of a record with an origin: the same, and where the transaction comes from."""

NEWEST_VERSION = ORIGIN_VERSION
"""Of the versions that this program reads, from FORMAT_VERSION on."""

PREAMBLE = Struct("<4sI")
"""Magic, header length in bytes."""

VERSION_PEEK_BYTES = PREAMBLE.size + 2
"""Enough of a record to know its version: the preamble, the header's array marker, the version."""

BLOCK_HEADER = Struct("<II")
"""Pages in the block, stored length of the block in bytes."""

PGNO_BYTES = 4

BLOCK_PAGES_BYTES = 1 << 20
"""Pages in one block, in bytes: what either end must hold in memory to encode or decode any record."""

HEADER_LIMIT_BYTES = 2048
"""Upper bound of a header: its names at their longest make 1,617 bytes; more can only be damage."""

DATABASE_NAME_LIMIT_BYTES = 1024
"""UTF-8 bytes of a database name: four directory levels of the longest names that Linux has (255)."""

NODE_NAME_LIMIT_BYTES = 255
"""UTF-8 bytes of a node name: a host name has at most 253 (RFC 1035)."""

PAGE_LIMIT = 2**32 - 2
"""Most pages of a database (SQLite, "Maximum Number Of Pages In A Database File": 4294967294)."""

U64_LIMIT = 2**64 - 1

COMPRESSIONS = ("none", "lz4", "zstd")


class Origin(NamedTuple):
    """Where a transaction comes from that another node's application wrote.

    ``node``: that node. ``id``: unsigned 64-bit, chosen there at random, so that sending the transaction again is not a
    second transaction.
    """

    node: str
    id: int


class RecordHeader(NamedTuple):
    """What a record says before its pages. Integers are unsigned.

    ``database``: path of the database below the mount (see ``database_name_problem``). ``page_size``: bytes.
    ``commit``: pages of the database after this record, 0 when it was dropped. ``page_count``: pages in this record.
    ``min_txid``..``max_txid``: the transactions in it. ``epoch``: the lease's fencing token. ``node``: who wrote it.
    ``timestamp_ms``: milliseconds since 1970, the writer's clock. ``pre_checksum``: rolling checksum before it.
    ``compression``: one of COMPRESSIONS. ``origin``: None for a transaction of an application on ``node`` itself.
    """

    database: str
    page_size: int
    commit: int
    page_count: int
    min_txid: int
    max_txid: int
    epoch: int
    node: str
    timestamp_ms: int
    pre_checksum: int
    compression: str
    origin: Origin | None = None

    @property
    def holds_every_page(self) -> bool:
        """Whether the record makes the whole database by itself, whatever was there before."""
        return self.commit > 0 and self.page_count == self.commit - (self.commit >= lock_page(self.page_size))


class RecordTrailer(NamedTuple):
    """What a record says after its pages.

    ``post_checksum``: rolling checksum after it. ``record_checksum``: xxh3_64 of every byte before the trailer's
    length field, followed by ``post_checksum`` as 8 bytes little-endian. ``length``: bytes of the whole record,
    magic to trailer; counted, not stored.
    """

    post_checksum: int
    record_checksum: int
    length: int


def block_capacity(page_size: int) -> int:
    """Most pages that one block holds: 1 MiB of them, which is at least 16."""
    return BLOCK_PAGES_BYTES // page_size


def block_bytes(page_count: int, page_size: int) -> int:
    """Bytes of a block's page numbers and pages before compression."""
    return page_count * (PGNO_BYTES + page_size)


def stored_limit(raw_bytes: int) -> int:
    """Most bytes that compression may make of ``raw_bytes``.

    LZ4_compressBound is n + n/255 + 16, ZSTD_compressBound at most n + n/256 + 64 (lz4.h, zstd.h): this covers both.
    """
    return raw_bytes + raw_bytes // 255 + 64


def database_name_problem(name: str) -> str | None:
    """Why ``name`` cannot be a database's, in a few words, or None.

    It is a relative path that stays below its directory, 1 to 1,024 bytes of UTF-8.
    """
    try:
        size_bytes = len(name.encode())
    except UnicodeEncodeError:
        return "it is not valid UTF-8"
    if not 1 <= size_bytes <= DATABASE_NAME_LIMIT_BYTES:
        return f"it has {size_bytes} bytes, allowed are 1 to {DATABASE_NAME_LIMIT_BYTES}"
    if "\0" in name:
        return "it contains a NUL"
    if any(part in ("", ".", "..") for part in name.split("/")):
        return "a part of its path is empty, '.' or '..'"
    return None


def node_name_problem(name: str) -> str | None:
    """Why ``name`` cannot be a node's, in a few words, or None: 1 to 255 bytes of UTF-8, no NUL."""
    try:
        size_bytes = len(name.encode())
    except UnicodeEncodeError:
        return "it is not valid UTF-8"
    if not 1 <= size_bytes <= NODE_NAME_LIMIT_BYTES:
        return f"it has {size_bytes} bytes, allowed are 1 to {NODE_NAME_LIMIT_BYTES}"
    if "\0" in name:
        return "it contains a NUL"
    return None
