"""Records that are right: what goes in comes out, whatever the shape, the split or the way of reading."""

import struct
from itertools import pairwise

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from litereplica.ltx.decode import PageBlock, RecordDecoder, decode_record, scan_header, scan_record
from litereplica.ltx.encode import RecordEncoder, block_capacity, encode_record
from litereplica.ltx.format import COMPRESSIONS, Origin, RecordHeader, RecordTrailer
from tests.ltx.records import ORIGIN, PageList, feed_all, make_header, make_pages, pages_of, records, u64


@given(records(), u64)
def test_a_record_is_read_back_as_it_was_written(record: tuple[RecordHeader, PageList], post_checksum: int) -> None:
    header, pages = record
    encoded = encode_record(header, pages, post_checksum)
    decoded = decode_record(encoded)
    assert (decoded.header, decoded.pages) == (header, pages)
    assert decoded.trailer.post_checksum == post_checksum
    assert decoded.length == decoded.trailer.length == len(encoded)
    events = feed_all([encoded])
    assert (events[0], pages_of(events), events[-1]) == (header, pages, decoded.trailer)
    for verify in (False, True):
        summary = scan_record(lambda at, size: encoded[at : at + size], 0, verify=verify)
        assert summary == (header, decoded.trailer, len(encoded))
    assert scan_header(lambda at, size: encoded[at : at + size], 0) == header


@given(st.lists(records(), min_size=1, max_size=3), st.data())
def test_any_split_of_the_stream_gives_the_same_events(
    stream: list[tuple[RecordHeader, PageList]], data: st.DataObject
) -> None:
    encoded = b"".join(encode_record(header, pages, 5) for header, pages in stream)
    cuts = data.draw(st.lists(st.integers(0, len(encoded)), max_size=30).map(sorted))
    pieces = [encoded[start:stop] for start, stop in pairwise([0, *cuts, len(encoded)])]
    assert feed_all(pieces) == feed_all([encoded])


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("piece_bytes", [1, 2, 7, 4096, 1 << 18])
def test_pieces_of_one_size_give_the_same_events(compression: str, piece_bytes: int) -> None:
    header = make_header(compression=compression)
    encoded = encode_record(header, make_pages([1, 9]), 5) * 3
    pieces = [encoded[start : start + piece_bytes] for start in range(0, len(encoded), piece_bytes)]
    assert feed_all(pieces) == feed_all([encoded])
    assert len(feed_all(pieces)) == 9


def test_what_was_fed_may_be_changed_afterwards() -> None:
    buffer = bytearray(encode_record(make_header(), make_pages([1, 9]), 5))
    events = RecordDecoder().feed(buffer)
    buffer[:] = bytes(len(buffer))
    buffer.clear()
    assert pages_of(events) == make_pages([1, 9])


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_a_large_record_is_cut_into_blocks_of_one_mebibyte(page_size: int, compression: str) -> None:
    capacity = block_capacity(page_size)
    assert capacity * page_size == 1 << 20
    pages = make_pages(list(range(1, 2 * capacity + 2)), page_size)
    header = make_header(page_size=page_size, page_count=len(pages), commit=len(pages), compression=compression)
    encoded = encode_record(header, pages, 5)
    blocks = [len(event.pages) for event in feed_all([encoded]) if isinstance(event, PageBlock)]
    assert blocks == [capacity, capacity, 1]
    assert decode_record(encoded).pages == pages


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_the_streaming_encoder_writes_the_same_bytes(compression: str) -> None:
    pages = make_pages(list(range(1, 40)), 65536)
    header = make_header(page_size=65536, page_count=len(pages), compression=compression)
    encoder = RecordEncoder(header)
    parts = [encoder.begin(), *(encoder.block(pages[start : start + 16]) for start in (0, 16, 32)), encoder.end(5)]
    assert b"".join(parts) == encode_record(header, pages, 5)


def test_blocks_may_be_smaller_than_they_could_be() -> None:
    pages = make_pages([2, 3, 5])
    encoder = RecordEncoder(make_header(page_count=3))
    encoded = b"".join([encoder.begin(), encoder.block(pages[:1]), encoder.block(pages[1:]), encoder.end(5)])
    assert decode_record(encoded).pages == pages


def test_a_drop_is_a_record_without_pages() -> None:
    header = make_header(commit=0, page_count=0)
    encoded = encode_record(header, [], 0)
    assert [type(event) for event in feed_all([encoded])] == [RecordHeader, RecordTrailer]
    assert decode_record(encoded).header.commit == 0


def test_records_that_follow_one_another_are_found_by_their_lengths() -> None:
    first = encode_record(make_header(), make_pages([1, 2]), 5)
    second = encode_record(make_header(min_txid=8, max_txid=9, page_count=1), make_pages([4]), 6)
    both = b"before" + first + second
    length = decode_record(both, 6).length
    assert decode_record(both, 6 + length).header.max_txid == 9
    assert scan_record(lambda at, size: both[at : at + size], 6 + length).header.max_txid == 9


def test_a_scan_reads_twice_and_no_pages() -> None:
    encoded = encode_record(make_header(page_size=65536), make_pages([1, 2], 65536), 5)
    reads: list[int] = []

    def read_at(offset: int, size: int) -> bytes:
        reads.append(size)
        return encoded[offset : offset + size]

    scan_record(read_at, 0)
    assert len(reads) == 2
    assert sum(reads) < 1024


def test_only_the_header_is_one_read() -> None:
    encoded = b"before" + encode_record(make_header(origin=ORIGIN), make_pages([1, 2]), 5)
    reads: list[int] = []

    def read_at(offset: int, size: int) -> bytes:
        reads.append(size)
        return encoded[offset : offset + size]

    assert scan_header(read_at, 6).origin == ORIGIN
    assert reads == [512]


def test_the_longest_names_fit() -> None:
    header = make_header(database="ä" * 512, node="n" * 255, epoch=2**64 - 1, page_size=65536)
    encoded = encode_record(header, make_pages([1, 2], 65536), 5)
    assert decode_record(encoded).header == header
    assert scan_record(lambda at, size: encoded[at : at + size], 0).header == header
    assert struct.unpack_from("<I", encoded, 4)[0] == 1351
    header = header._replace(origin=Origin("ö" * 127 + "o", 2**64 - 1))
    encoded = encode_record(header, make_pages([1, 2], 65536), 5)
    assert decode_record(encoded).header == header
    assert scan_header(lambda at, size: encoded[at : at + size], 0) == header
    assert struct.unpack_from("<I", encoded, 4)[0] == 1617


def test_the_bytes_are_those_of_the_document() -> None:
    header = make_header()
    encoded = encode_record(header, make_pages([1, 9]), 0x0102_0304_0506_0708)
    header_bytes = struct.unpack_from("<4sI", encoded)[1]
    assert encoded[:4] == b"LRX1"
    assert msgpack.unpackb(encoded[8 : 8 + header_bytes]) == [
        1, "app.db", 512, 3, "node-1", "none", 1000, 2, 7, 7, 1_790_000_000_000, 0x8000_0000_0000_0001,
    ]  # fmt: skip
    at = 8 + header_bytes
    assert struct.unpack_from("<IIII", encoded, at) == (2, 2 * 516, 1, 9)
    at += 16
    assert encoded[at : at + 1024] == b"".join(page for _, page in make_pages([1, 9]))
    at += 1024
    checksum = xxh3_64_intdigest(encoded[:at] + (0x0102_0304_0506_0708).to_bytes(8, "little"))
    assert struct.unpack_from("<I", encoded, at) == (19,)
    assert msgpack.unpackb(encoded[at + 4 :]) == [0x0102_0304_0506_0708, checksum]


def test_an_origin_makes_the_header_version_2_and_changes_nothing_else() -> None:
    plain = encode_record(make_header(), make_pages([1, 9]), 5)
    encoded = encode_record(make_header(origin=ORIGIN), make_pages([1, 9]), 5)
    plain_bytes, header_bytes = (struct.unpack_from("<4sI", each)[1] for each in (plain, encoded))
    assert msgpack.unpackb(encoded[8 : 8 + header_bytes]) == [
        2, "app.db", 512, 3, "node-1", "none", "node-2", 1000, 2, 7, 7, 1_790_000_000_000, 0x8000_0000_0000_0001,
        0x7FED_CBA9_8765_4321,
    ]  # fmt: skip
    assert encoded[8] == 0x9E
    assert encoded[header_bytes - 1 : 8 + header_bytes] == b"\xcf" + ORIGIN.id.to_bytes(8, "big")
    assert header_bytes == plain_bytes + len(b"\xa6node-2") + 9
    assert encoded[8 + header_bytes : -8] == plain[8 + plain_bytes : -8]


def test_a_record_without_an_origin_has_the_bytes_that_it_always_had() -> None:
    """Logs of earlier versions stay readable, and theirs are what this one writes."""
    encoded = encode_record(make_header(page_count=1), make_pages([9]), 0x0102_0304_0506_0708)
    assert encoded[: 8 + 71].hex() == (
        "4c525831470000009c01a66170702e6462cd020003a66e6f64652d31a46e6f6e65ce000003e8ce00000001"
        "cf0000000000000007cf0000000000000007cf000001a0c4506c00cf8000000000000001"
    )
    assert encoded[-23:].hex() == "1300000092cf0102030405060708cf2ca2158a645be8b2"


@pytest.mark.parametrize(
    ("changes", "pgnos"),
    [
        ({}, [9, 1]),
        ({}, [1, 1]),
        ({}, [0, 1]),
        ({}, [1]),
        ({}, [1, 1001]),
        ({"commit": 2**32 - 2}, [1, 2**30 // 512 + 1]),
        ({"commit": 1}, [1, 2]),
        ({"commit": 2**32 - 1}, [1, 2]),
        ({"min_txid": 0}, [1, 2]),
        ({"min_txid": 8}, [1, 2]),
        ({"page_size": 1024}, [1, 2]),
        ({"page_size": 500}, [1, 2]),
        ({"compression": "gzip"}, [1, 2]),
        ({"database": "../app.db"}, [1, 2]),
        ({"node": ""}, [1, 2]),
        ({"origin": Origin("", 1)}, [1, 2]),
        ({"origin": Origin("n" * 256, 1)}, [1, 2]),
        ({"origin": Origin("n", 2**64)}, [1, 2]),
        ({"origin": Origin("n", -1)}, [1, 2]),
    ],
)
def test_a_wrong_record_of_ours_is_an_assertion(changes: dict[str, int | str | Origin], pgnos: list[int]) -> None:
    with pytest.raises(AssertionError):
        encode_record(make_header(**changes), make_pages(pgnos), 5)


def test_the_streaming_encoder_asserts_its_order() -> None:
    encoder = RecordEncoder(make_header())
    with pytest.raises(AssertionError):
        encoder.block(make_pages([1]))
    encoder.begin()
    encoder.block(make_pages([5]))
    with pytest.raises(AssertionError):
        encoder.block(make_pages([5]))
    with pytest.raises(AssertionError):
        encoder.end(5)
    with pytest.raises(AssertionError):
        encoder.block(make_pages([6, 7]))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5000))
def test_pieces_of_any_size_of_a_large_record_give_its_pages(piece_bytes: int) -> None:
    pages = make_pages(list(range(1, 300)), 4096)
    encoded = encode_record(make_header(page_size=4096, page_count=299), pages, 5)
    pieces = [encoded[start : start + piece_bytes] for start in range(0, len(encoded), piece_bytes)]
    assert pages_of(feed_all(pieces)) == pages
