"""Header and trailer of a record, between bytes and values.

Knows their one byte form: a header is a constant part, the *identity* (same for all records that one node writes
for one database in one epoch and one page size, and from one origin), and a tail of fixed width. Other msgpack
spellings of the same values are refused, so that a record's values determine its bytes.
Does not know blocks.

The identity is packed and parsed once and remembered: what is left per record is one ``struct`` call.
"""

from functools import lru_cache
from struct import Struct
from typing import NamedTuple

import msgpack

from litereplica.errors import Corrupt, Refused
from litereplica.ltx.format import (
    COMPRESSIONS,
    DATABASE_NAME_LIMIT_BYTES,
    FORMAT_VERSION,
    HEADER_LIMIT_BYTES,
    MAGIC,
    NEWEST_VERSION,
    ORIGIN_VERSION,
    PAGE_LIMIT,
    PREAMBLE,
    U64_LIMIT,
    VERSION_PEEK_BYTES,
    Origin,
    RecordHeader,
    block_capacity,
    database_name_problem,
    node_name_problem,
)
from litereplica.sqlite.pages import is_page_size, lock_page

_HEADER_ARRAY = b"\x9c"
"""msgpack array of 12: version, database, page size, epoch, node, compression, and the six of the tail."""

_IDENTITY_ARRAY = b"\x96"
"""msgpack array of 6: what the header's array would be if it ended before the tail."""

_ORIGIN_HEADER_ARRAY = b"\x9e"
"""The same with an origin: its node is the identity's seventh element, its id the tail's seventh."""

_ORIGIN_IDENTITY_ARRAY = b"\x97"
_ORIGIN_VERSION_BYTE = bytes([ORIGIN_VERSION])

_TAIL = Struct(">BIBIBQBQBQBQ")
"""commit and page count as msgpack uint 32; min TXID, max TXID, timestamp, pre-checksum as msgpack uint 64."""

_ORIGIN_ID = Struct(">BQ")
"""The origin's id as msgpack uint 64, behind the tail."""

_TRAILER = Struct("<I")
_TRAILER_BODY = Struct(">BBQBQ")
"""msgpack array of 2 uint 64: post-checksum, record checksum."""

_ARRAY_2 = 0x92
_UINT_32 = 0xCE
_UINT_64 = 0xCF
# Every version begins its header with a short array whose first element is the version as one byte, so that each
# program can name the version of any other.
_FIXINT_LIMIT = 0x7F
_FIXARRAY = 0x90
_FIXARRAY_MASK = 0xF0

TRAILER_BYTES = _TRAILER.size + _TRAILER_BODY.size
"""Length field and trailer: 23, in every record of this version."""

IDENTITY_CACHE_ENTRIES = 1024
"""Identities remembered each way: one for each database of a node with many; about 0.5 KB each."""


class Truncated(Corrupt):
    """The bytes end inside a record, with nothing wrong seen until there: the end of a log after a crash."""


def truncated() -> Truncated:
    """The error for input that ends too early."""
    return Truncated("an LTX record is cut short: drop it if it is the last of the log, else restore the log")


class Identity(NamedTuple):
    """The constant part of a header, and what follows from it."""

    database: str
    page_size: int
    epoch: int
    node: str
    compression: str
    lock_page: int
    block_capacity: int
    origin_node: str | None


@lru_cache(maxsize=IDENTITY_CACHE_ENTRIES)
def record_prefix(
    database: str, page_size: int, epoch: int, node: str, compression: str, origin_node: str | None = None
) -> bytes:
    """A record's first bytes: preamble, and header up to its tail.

    The arguments are ours, not outside input: names were checked at the edge where they came in.
    """
    assert database_name_problem(database) is None, database
    assert node_name_problem(node) is None, node
    assert origin_node is None or node_name_problem(origin_node) is None, origin_node
    assert is_page_size(page_size), page_size
    assert compression in COMPRESSIONS, compression
    identity = _pack_identity(database, page_size, epoch, node, compression, origin_node)
    tail_bytes = _TAIL.size + (_ORIGIN_ID.size if origin_node is not None else 0)
    return PREAMBLE.pack(MAGIC, len(identity) + tail_bytes) + identity


def _pack_identity(
    database: str, page_size: int, epoch: int, node: str, compression: str, origin_node: str | None
) -> bytes:
    if origin_node is None:
        packed: bytes = msgpack.packb([FORMAT_VERSION, database, page_size, epoch, node, compression])
        return _HEADER_ARRAY + packed[1:]
    packed = msgpack.packb([ORIGIN_VERSION, database, page_size, epoch, node, compression, origin_node])
    return _ORIGIN_HEADER_ARRAY + packed[1:]


def pack_header(header: RecordHeader) -> bytes:
    """Preamble and header. Asserts what a caller of ours must keep: ranges, order and the rule for a drop."""
    (
        database, page_size, commit, page_count, min_txid, max_txid, epoch, node, timestamp_ms, pre_checksum, how,
        origin,
    ) = header  # fmt: skip
    assert 1 <= min_txid <= max_txid, (min_txid, max_txid)
    assert page_count <= commit <= PAGE_LIMIT, (page_count, commit)
    tail = _TAIL.pack(
        _UINT_32, commit, _UINT_32, page_count, _UINT_64, min_txid, _UINT_64, max_txid,
        _UINT_64, timestamp_ms, _UINT_64, pre_checksum,
    )  # fmt: skip
    if origin is None:
        return record_prefix(database, page_size, epoch, node, how) + tail
    assert 0 <= origin.id <= U64_LIMIT, origin.id
    prefix = record_prefix(database, page_size, epoch, node, how, origin.node)
    return prefix + tail + _ORIGIN_ID.pack(_UINT_64, origin.id)


def peek_header_bytes(data: bytes | bytearray | memoryview, offset: int, end: int) -> int | None:
    """The length of preamble and header of the record at ``offset``; None when fewer than 10 bytes are there.

    Raises Corrupt when this is no record, Refused when it is one of another version: that is looked at before
    anything a later version may have changed.
    """
    if end - offset < VERSION_PEEK_BYTES:
        start = bytes(data[offset : min(offset + len(MAGIC), end)])
        if not MAGIC.startswith(start):
            raise _no_record(start)
        return None
    magic, header_bytes = PREAMBLE.unpack_from(data, offset)
    if magic != MAGIC:
        raise _no_record(magic)
    version = data[offset + PREAMBLE.size + 1]
    is_known = FORMAT_VERSION <= version <= NEWEST_VERSION
    if not is_known and version <= _FIXINT_LIMIT and _is_fixarray(data[offset + PREAMBLE.size]):
        raise Refused(
            f"an LTX record has format version {version}, this program reads versions {FORMAT_VERSION} to "
            f"{NEWEST_VERSION}: use the program that wrote it"
        )
    if not _TAIL.size < header_bytes <= HEADER_LIMIT_BYTES:
        raise Corrupt(f"an LTX record claims a header of {header_bytes} bytes, allowed are up to {HEADER_LIMIT_BYTES}")
    return PREAMBLE.size + int(header_bytes)


def _is_fixarray(marker: int) -> bool:
    return marker & _FIXARRAY_MASK == _FIXARRAY


def _no_record(start: bytes) -> Corrupt:
    return Corrupt(f"no LTX record here: it would begin with {MAGIC!r}, found {start!r}")


def parse_header(data: bytes | memoryview, offset: int, end: int) -> tuple[RecordHeader, Identity]:
    """The header in ``data[offset:end]``, which is preamble and header exactly; raises Corrupt."""
    has_origin = data[offset + PREAMBLE.size + 1] == ORIGIN_VERSION
    tail = end - _TAIL.size - has_origin * _ORIGIN_ID.size
    # Corrupt too if a header with an origin is so short that nothing is left for it.
    identity = parse_identity(bytes(data[offset + PREAMBLE.size : tail]))
    mark_1, commit, mark_2, page_count, mark_3, min_txid, mark_4, max_txid, mark_5, timestamp_ms, mark_6, before = (
        _TAIL.unpack_from(data, tail)
    )
    if not (mark_1 == mark_2 == _UINT_32 and mark_3 == mark_4 == mark_5 == mark_6 == _UINT_64):
        raise Corrupt("the header of an LTX record does not end with its six numbers")
    if not 1 <= min_txid <= max_txid:
        raise Corrupt(f"an LTX record claims transactions {min_txid} to {max_txid}")
    if commit > PAGE_LIMIT or page_count > commit - (commit >= identity.lock_page):
        raise Corrupt(f"an LTX record claims {page_count} pages of a database of {commit}")
    database, page_size, epoch, node, compression, _, _, origin_node = identity
    origin = None
    if origin_node is not None:
        mark_7, origin_id = _ORIGIN_ID.unpack_from(data, end - _ORIGIN_ID.size)
        if mark_7 != _UINT_64:
            raise Corrupt("the header of an LTX record does not end with its origin")
        origin = Origin(origin_node, origin_id)
    return RecordHeader(
        database, page_size, commit, page_count, min_txid, max_txid, epoch, node, timestamp_ms, before, compression,
        origin,
    ), identity  # fmt: skip


@lru_cache(maxsize=IDENTITY_CACHE_ENTRIES)
def parse_identity(packed: bytes) -> Identity:
    """The identity that begins a header of the version that its second byte names; raises Corrupt."""
    has_origin = packed[1:2] == _ORIGIN_VERSION_BYTE
    origin_node = None
    try:
        # Limits first: a length in the data must never be allocated before it is compared.
        values = msgpack.unpackb(
            (_ORIGIN_IDENTITY_ARRAY if has_origin else _IDENTITY_ARRAY) + packed[1:],
            max_str_len=DATABASE_NAME_LIMIT_BYTES,
            max_array_len=7,
            max_bin_len=0,
            max_map_len=0,
            max_ext_len=0,
            strict_map_key=True,
        )
        if has_origin:
            _, database, page_size, epoch, node, compression, origin_node = values
        else:
            _, database, page_size, epoch, node, compression = values
        canonical = _pack_identity(database, page_size, epoch, node, compression, origin_node) == packed
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise Corrupt(f"the header of an LTX record is not the msgpack it should be: {error}") from None
    if not (canonical and type(database) is str and type(page_size) is int and type(epoch) is int and epoch >= 0):
        raise Corrupt("the header of an LTX record is not in its one byte form")
    if not (type(node) is str and type(compression) is str and compression in COMPRESSIONS):
        raise Corrupt("the header of an LTX record names no known compression")
    if not is_page_size(page_size):
        raise Corrupt(f"an LTX record claims pages of {page_size} bytes")
    if (problem := database_name_problem(database)) is not None:
        raise Corrupt(f"an LTX record has no usable database name: {problem}")
    if (problem := node_name_problem(node)) is not None:
        raise Corrupt(f"an LTX record has no usable node name: {problem}")
    if origin_node is not None:
        if type(origin_node) is not str:
            raise Corrupt("the header of an LTX record is not in its one byte form")
        if (problem := node_name_problem(origin_node)) is not None:
            raise Corrupt(f"an LTX record has no usable name for the node it comes from: {problem}")
    lock = lock_page(page_size)
    return Identity(database, page_size, epoch, node, compression, lock, block_capacity(page_size), origin_node)


def pack_trailer(post_checksum: int, record_checksum: int) -> bytes:
    """Length field and trailer, TRAILER_BYTES long."""
    return _TRAILER.pack(_TRAILER_BODY.size) + _TRAILER_BODY.pack(
        _ARRAY_2, _UINT_64, post_checksum, _UINT_64, record_checksum
    )


def parse_trailer(data: bytes | memoryview, offset: int) -> tuple[int, int]:
    """(post-checksum, record checksum) of the TRAILER_BYTES at ``offset``; raises Corrupt."""
    (length,) = _TRAILER.unpack_from(data, offset)
    array, mark_1, post_checksum, mark_2, record_checksum = _TRAILER_BODY.unpack_from(data, offset + _TRAILER.size)
    if length != _TRAILER_BODY.size or array != _ARRAY_2 or mark_1 != _UINT_64 or mark_2 != _UINT_64:
        raise Corrupt("an LTX record does not end with its trailer")
    return post_checksum, record_checksum
