"""Records that are wrong: every damaged byte is seen, every cut is a cut, and nothing else is ever raised."""

import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from litereplica.errors import Corrupt, Refused
from litereplica.ltx import decode
from litereplica.ltx.decode import (
    FEED_PAGES_LIMIT_BYTES,
    Event,
    PageBlock,
    Record,
    RecordDecoder,
    RecordSummary,
    Truncated,
    decode_record,
    scan_header,
    scan_record,
)
from litereplica.ltx.encode import RecordEncoder, encode_record
from litereplica.ltx.format import COMPRESSIONS, Origin, RecordHeader, RecordTrailer, stored_limit
from litereplica.ltx.header import TRAILER_BYTES, pack_trailer
from tests.ltx.records import ORIGIN, PageList, feed_all, make_header, make_pages, records

VERSION_AT = 9
"""Offset of the version byte: magic, length, array marker, version."""

ALLOCATION_LIMIT_BYTES = FEED_PAGES_LIMIT_BYTES + (3 << 20)
"""What decoding may allocate: one call's pages, a block beyond them, that block as stored, and the values around."""


def scan(encoded: bytes) -> RecordSummary:
    return scan_record(lambda at, size: encoded[at : at + size], 0)


def scan_and_verify(encoded: bytes) -> RecordSummary:
    return scan_record(lambda at, size: encoded[at : at + size], 0, verify=True)


def scan_head(encoded: bytes) -> RecordHeader:
    return scan_header(lambda at, size: encoded[at : at + size], 0)


def feed(encoded: bytes) -> Any:
    return feed_all([encoded])


def feed_bytewise(encoded: bytes) -> Any:
    return feed_all([encoded[at : at + 1] for at in range(len(encoded))])


READERS: list[Callable[[bytes], Any]] = [decode_record, feed, scan_and_verify]


def small_record(compression: str, origin: Origin | None = None) -> bytes:
    return encode_record(make_header(compression=compression, origin=origin), make_pages([1, 9]), 0x1234)


def assert_seen(reader: Callable[[bytes], Any], damaged: bytes, at: int) -> None:
    with pytest.raises((Corrupt, Refused)) as raised:
        reader(damaged)
    assert type(raised.value) in ((Corrupt, Truncated, Refused) if at == VERSION_AT else (Corrupt, Truncated))


@pytest.mark.parametrize("origin", [None, ORIGIN])
@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("reader", READERS)
def test_every_flipped_bit_is_seen(reader: Callable[[bytes], Any], compression: str, origin: Origin | None) -> None:
    encoded = small_record(compression, origin)
    for at in range(len(encoded)):
        for bit in range(8):
            damaged = bytearray(encoded)
            damaged[at] ^= 1 << bit
            assert_seen(reader, bytes(damaged), at)


@pytest.mark.parametrize("reader", READERS)
def test_every_other_value_of_every_byte_of_a_header_with_an_origin_is_seen(reader: Callable[[bytes], Any]) -> None:
    encoded = small_record("none", ORIGIN)
    for at in range(8 + struct.unpack_from("<I", encoded, 4)[0]):
        for value in range(256):
            if value != encoded[at]:
                assert_seen(reader, encoded[:at] + bytes([value]) + encoded[at + 1 :], at)


@given(records((512, 1024)), st.data())
def test_every_damaged_byte_is_seen(record: tuple[RecordHeader, PageList], data: st.DataObject) -> None:
    encoded = encode_record(*record, 5)
    at = data.draw(st.integers(0, len(encoded) - 1))
    damaged = bytearray(encoded)
    damaged[at] ^= data.draw(st.integers(1, 255))
    for reader in (*READERS, feed_bytewise):
        assert_seen(reader, bytes(damaged), at)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("after", [b"", b"LRX1"])
@pytest.mark.parametrize("origin", [None, ORIGIN])
def test_every_cut_is_seen_as_a_cut(compression: str, after: bytes, origin: Origin | None) -> None:
    encoded = small_record(compression, origin)
    for size in range(len(encoded)):
        cut = encoded[:size]
        for reader in (decode_record, scan, scan_and_verify):
            with pytest.raises(Truncated):
                reader(cut)
        decoder = RecordDecoder()
        assert not any(isinstance(event, RecordTrailer) for event in decoder.feed(cut))
        if size:
            with pytest.raises(Truncated):
                decoder.finish()
    assert decode_record(encoded + after).length == len(encoded)


def test_a_stream_may_end_between_records() -> None:
    decoder = RecordDecoder()
    decoder.finish()
    decoder.feed(small_record("none"))
    decoder.finish()


@pytest.mark.parametrize("version", [0, 3, 127])
def test_another_version_is_refused_by_name_whatever_follows(version: int) -> None:
    other = b"LRX1" + struct.pack("<I", 1 << 31) + bytes([0x9F, version]) + b"anything"
    for reader in (decode_record, feed, scan):
        with pytest.raises(Refused, match=f"format version {version}, this program reads versions 1 to 2"):
            reader(other)


def test_damage_does_not_take_back_the_records_before_it() -> None:
    good = small_record("none")
    bad = good[:-1] + bytes([good[-1] ^ 1])
    decoder = RecordDecoder()
    assert decoder.feed(good + bad)[:3] == feed_all([good])
    assert isinstance(decoder.failure, Corrupt)
    for _ in range(2):
        with pytest.raises(Corrupt, match="damaged"):
            decoder.feed(b"")
        with pytest.raises(Corrupt, match="damaged"):
            decoder.finish()


def test_damage_names_the_database_and_the_transaction() -> None:
    encoded = bytearray(small_record("none"))
    encoded[-TRAILER_BYTES - 1] ^= 1
    with pytest.raises(Corrupt, match=r"'app\.db' at transaction 7 is damaged"):
        decode_record(encoded)


# What follows is damage that checksums do not catch, because whoever wrote it computed them: a hostile or broken node.


def seal(body: bytes) -> bytes:
    """A record of ``body`` with a trailer that is right."""
    return body + pack_trailer(5, xxh3_64_intdigest(body + (5).to_bytes(8, "little")))


def forge_header(identity: list[Any] | bytes, tail: tuple[int, ...] = (1000, 2, 7, 7, 0, 0)) -> bytes:
    start: bytes = identity if isinstance(identity, bytes) else b"\x9c" + msgpack.packb(identity)[1:]
    numbers = b"".join(
        (b"\xce" + value.to_bytes(4, "big")) if index < 2 else (b"\xcf" + value.to_bytes(8, "big"))
        for index, value in enumerate(tail)
    )
    return b"LRX1" + struct.pack("<I", len(start) + len(numbers)) + start + numbers


def forge_block(pgnos: list[int], page_size: int = 512, count: int | None = None) -> bytes:
    raw = struct.pack(f"<{len(pgnos)}I", *pgnos) + b"".join(page for _, page in make_pages(pgnos, page_size))
    return struct.pack("<II", len(pgnos) if count is None else count, len(raw)) + raw


IDENTITY: list[Any] = [1, "app.db", 512, 3, "node-1", "none"]


def changed(index: int, value: Any) -> list[Any]:
    return [*IDENTITY[:index], value, *IDENTITY[index + 1 :]]


def forge_origin(identity: list[Any] | bytes, origin_id: bytes = b"\xcf" + bytes(8)) -> bytes:
    """The same of version 2; ``identity`` has seven elements."""
    start: bytes = identity if isinstance(identity, bytes) else b"\x9e" + msgpack.packb(identity)[1:]
    record = forge_header(start)[8:] + origin_id
    return b"LRX1" + struct.pack("<I", len(record)) + record


def test_the_forger_of_these_tests_writes_good_records_too() -> None:
    assert decode_record(seal(forge_header(IDENTITY) + forge_block([1, 9]))).pages == make_pages([1, 9])
    with_origin = decode_record(seal(forge_origin([2, *IDENTITY[1:], "node-2"]) + forge_block([1, 9])))
    assert with_origin.header.origin == Origin("node-2", 0)


@pytest.mark.parametrize(
    "header",
    [
        *[
            forge_origin([2, *IDENTITY[1:], node])
            for node in ("", "n" * 256, "\0", b"n", 1, None, True, ["n"], {"n": 1})
        ],
        forge_origin([2, *IDENTITY[1:]]),
        forge_origin([2, *IDENTITY[1:], "n", "n"]),
        forge_origin([1, *IDENTITY[1:], "n"]),
        forge_origin(IDENTITY),
        forge_origin(b"\x9c\x02" + msgpack.packb([*IDENTITY[1:], "n"])[1:]),
        forge_origin(b"\x9e\x02" + msgpack.packb([*IDENTITY[1:]])[1:] + b"\xd9\x01n"),
        forge_origin(b"\x9e\x02" + msgpack.packb([*IDENTITY[1:]])[1:] + b"\xdb\xff\xff\xff\xff"),
        forge_origin([2, *IDENTITY[1:], "n"], b"\xce" + bytes(4)),
        forge_origin([2, *IDENTITY[1:], "n"], b"\xd3" + bytes(8)),
        forge_origin([2, *IDENTITY[1:], "n"], b""),
        forge_header([2, *IDENTITY[1:]]),
        forge_header([2, *IDENTITY[1:], "n"]),
        forge_header(b"\x9e\x01" + msgpack.packb([*IDENTITY[1:], "n"])[1:]),
        *[b"LRX1" + struct.pack("<I", size) + b"\x9e\x02" + bytes(size - 2) for size in range(47, 64)],
    ],
)
def test_a_header_with_an_origin_that_no_writer_makes_is_corrupt(header: bytes) -> None:
    encoded = seal(header + forge_block([1, 9]))
    for reader in (*READERS, scan, scan_head):
        with pytest.raises(Corrupt) as raised:
            reader(encoded)
        assert type(raised.value) is Corrupt


@pytest.mark.parametrize(
    "identity",
    [
        *[changed(1, name) for name in ("", "/a", "a/", "a//b", "..", "a/../b", "./a", "a\0b", "a" * 1025)],
        *[changed(1, name) for name in (b"a", 7, None)],
        *[changed(2, size) for size in (0, 1, 256, 513, 131072, -512, True, "512", 512.0, [512])],
        *[changed(3, epoch) for epoch in (-1, True, None, 1.0, "1", {"a": 1}, [[[1]]])],
        *[changed(4, node) for node in ("", "n" * 256, "\0", b"n", 1)],
        *[changed(5, how) for how in ("", "gzip", None, b"lz4", 0, ["none"])],
        IDENTITY[:5],
        [*IDENTITY, 1],
        b"",
        b"\x9c\x01",
        b"\x9c\x01\xd9\x06app.db\xcd\x02\x00\x03\xa6node-1\xa4none",
        b"\x9c\xcc\x01\xa6app.db\xcd\x02\x00\x03\xa6node-1\xa4none",
        b"\x9c\x01\xa6\xff\xfe.\xff\xfeb\xcd\x02\x00\x03\xa6node-1\xa4none",
        b"\x9c\x01\xdb\xff\xff\xff\xff",
        b"\x9c\x01\xdd\xff\xff\xff\xff",
        b"\x9c\x01\xdf\xff\xff\xff\xff",
        b"\x9c\x01\xc6\xff\xff\xff\xff",
        b"\x9c\x01\xc9\xff\xff\xff\xff\x01",
        b"\x9c\x01\xd6\xff\x00\x00\x00\x00\x00\x00\x00",
        b"\x9c\x01" + b"\x91" * 1900,
        b"\x9c\x01" + b"\x81" * 1900,
    ],
)  # fmt: skip
def test_a_header_that_no_writer_makes_is_corrupt(identity: list[Any] | bytes) -> None:
    encoded = seal(forge_header(identity) + forge_block([1, 9]))
    for reader in (*READERS, scan):
        with pytest.raises(Corrupt):
            reader(encoded)


@pytest.mark.parametrize(
    "tail",
    [
        (1000, 2, 0, 7, 0, 0),
        (1000, 2, 8, 7, 0, 0),
        (1, 2, 7, 7, 0, 0),
        (0, 1, 7, 7, 0, 0),
        (2**32 - 1, 2, 7, 7, 0, 0),
        (2**32 - 2, 2**32 - 2, 7, 7, 0, 0),
    ],
)
def test_numbers_that_contradict_each_other_are_corrupt(tail: tuple[int, ...]) -> None:
    for reader in (*READERS, scan):
        with pytest.raises(Corrupt):
            reader(seal(forge_header(IDENTITY, tail) + forge_block([1, 9])))


@pytest.mark.parametrize("header_bytes", [0, 46, 2049, 2**31, 2**32 - 1])
def test_a_header_length_beyond_its_limits_is_corrupt_at_once(header_bytes: int) -> None:
    start = b"LRX1" + struct.pack("<I", header_bytes) + b"\x9c\x01"
    for reader in (decode_record, feed, scan):
        with pytest.raises(Corrupt) as raised:
            reader(start)
        assert type(raised.value) is Corrupt


@pytest.mark.parametrize(
    "blocks",
    [
        [[9, 1]],
        [[1, 1]],
        [[0, 1]],
        [[1, 1001]],
        [[9], [1]],
        [[9], [9]],
    ],
)
def test_pages_out_of_order_or_range_are_corrupt(blocks: list[list[int]]) -> None:
    encoded = seal(forge_header(IDENTITY) + b"".join(forge_block(block) for block in blocks))
    for reader in (decode_record, feed):
        with pytest.raises(Corrupt, match="out of order"):
            reader(encoded)


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_the_lock_page_is_corrupt(page_size: int) -> None:
    lock = 2**30 // page_size + 1
    header = forge_header(changed(2, page_size), (2**32 - 2, 2, 7, 7, 0, 0))
    for reader in (decode_record, feed):
        with pytest.raises(Corrupt, match="lock page"):
            reader(seal(header + forge_block([1, lock], page_size)))
    assert decode_record(seal(header + forge_block([lock - 1, lock + 1], page_size))).header.page_count == 2


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("claim", [(0, 0), (0, 516), (3, 1548), (2, 2**32 - 1), (2, 0), (2049, 2049 * 516), (2, 1200)])
def test_a_block_that_claims_what_it_cannot_hold_is_corrupt_at_once(claim: tuple[int, int], compression: str) -> None:
    tail = (5000, 2 if claim[0] < 2049 else 5000, 7, 7, 0, 0)
    start = forge_header(changed(5, compression), tail) + struct.pack("<II", *claim)
    if compression == "none" or claim != (2, 0):
        with pytest.raises(Corrupt) as raised:
            scan(start)
        assert type(raised.value) is Corrupt
    whole = seal(start + b"\0" * (claim[1] if claim[1] < 1 << 21 else 0))
    for reader in (decode_record, feed):
        with pytest.raises(Corrupt):
            reader(whole)


def zstd_frames() -> list[bytes]:
    zstandard = pytest.importorskip("zstandard")
    raw = forge_block([1, 9])[8:]
    return [
        b"",
        raw[:100],
        zstandard.ZstdCompressor(write_content_size=False).compress(raw),
        zstandard.ZstdCompressor().compress(raw + b"\0"),
        zstandard.ZstdCompressor().compress(raw[:-1]),
        zstandard.ZstdCompressor().compress(raw) + b"\0",
        zstandard.ZstdCompressor().compress(raw)[:-1],
        zstandard.ZstdCompressor().compress(bytes(1 << 24)),
        b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 8,
    ]


@pytest.mark.parametrize(
    ("compression", "stored"),
    [
        *[("zstd", frame) for frame in zstd_frames()],
        ("lz4", b""),
        ("lz4", b"\0"),
        ("lz4", b"\xff" * 1000),
        ("lz4", b"\x1f\0\x01\0" + b"\xff" * 1000),
    ],
)
def test_a_compressed_block_of_another_size_is_corrupt(compression: str, stored: bytes) -> None:
    assert len(stored) < stored_limit(2 * 516)
    encoded = seal(forge_header(changed(5, compression)) + struct.pack("<II", 2, len(stored)) + stored)
    for reader in (decode_record, feed):
        with pytest.raises(Corrupt):
            reader(encoded)


def allocated_by(action: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def read_all_ways(encoded: bytes) -> None:
    for reader in (decode_record, feed, scan, scan_and_verify):
        try:
            result = reader(encoded)
        except (Corrupt, Refused):
            continue
        assert isinstance(result, (Record, RecordSummary, list))


@given(
    st.binary(max_size=300),
    st.sampled_from(
        [b"", b"LRX1", small_record("none")[:10], small_record("lz4")[:80], small_record("none", ORIGIN)[:95]]
    ),
)
def test_garbage_raises_only_what_is_documented_and_allocates_little(garbage: bytes, start: bytes) -> None:
    assert allocated_by(lambda: read_all_ways(start + garbage)) < ALLOCATION_LIMIT_BYTES


@given(
    st.sampled_from(COMPRESSIONS),
    st.lists(st.tuples(st.integers(0, 2000), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4),
    st.booleans(),
    st.sampled_from([None, ORIGIN]),
)
def test_a_record_damaged_in_several_places_and_sealed_again_raises_only_what_is_documented(
    compression: str, damages: list[tuple[int, bytes]], sealed: bool, origin: Origin | None
) -> None:
    encoded = bytearray(small_record(compression, origin))
    for at, damage in damages:
        start = at % len(encoded)
        encoded[start : start + len(damage)] = damage
    data = seal(bytes(encoded[:-TRAILER_BYTES])) if sealed else bytes(encoded)
    assert allocated_by(lambda: read_all_ways(data)) < ALLOCATION_LIMIT_BYTES


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_stream_of_full_blocks_is_decoded_in_bounded_memory(compression: str) -> None:
    blocks = 24
    header = make_header(page_size=4096, page_count=256 * blocks, commit=256 * blocks, compression=compression)
    encoder = RecordEncoder(header)
    page = bytes(4096)
    stored = [
        encoder.begin(),
        *(encoder.block([(pgno, page) for pgno in range(first, first + 256)]) for first in range(1, 256 * blocks, 256)),
        encoder.end(5),
    ]
    encoded = b"".join(stored)

    pages = 0

    def consume(events: list[Event]) -> int:
        return sum(len(event.pages) for event in events if isinstance(event, PageBlock))

    def read() -> None:
        nonlocal pages
        decoder = RecordDecoder()
        for start in range(0, len(encoded), 1 << 18):
            pages += consume(decoder.feed(encoded[start : start + (1 << 18)]))
            assert compression != "none" or not decoder.more
            while decoder.more:
                pages += consume(decoder.feed(b""))
        decoder.finish()

    assert allocated_by(read) < ALLOCATION_LIMIT_BYTES
    assert pages == header.page_count


def test_more_pages_than_fit_in_memory_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "WHOLE_RECORD_LIMIT_BYTES", 1023)
    with pytest.raises(Refused, match="too large to decode at once"):
        decode_record(small_record("zstd"))
    monkeypatch.setattr(decode, "WHOLE_RECORD_LIMIT_BYTES", 1024)
    assert decode_record(small_record("zstd")).header.page_count == 2
