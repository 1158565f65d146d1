"""The hot path's records are the general encoder's, byte for byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litereplica.ltx.encode import encode_record
from litereplica.ltx.format import Origin
from litereplica.ltx.small import RecordWriter

U64 = st.integers(0, 2**64 - 1)


@given(
    page_size=st.sampled_from([512, 4096, 65536]),
    pgnos=st.sets(st.integers(1, 5000), min_size=1, max_size=6),
    txid=st.integers(1, 2**64 - 1),
    timestamp_ms=U64,
    pre=U64,
    post=U64,
    compression=st.sampled_from(["none", "lz4", "zstd"]),
    origin=st.none() | st.builds(Origin, st.sampled_from(["a", "b"]), U64),
)
def test_it_makes_the_bytes_that_the_general_encoder_makes(
    page_size: int,
    pgnos: set[int],
    txid: int,
    timestamp_ms: int,
    pre: int,
    post: int,
    compression: str,
    origin: Origin | None,
) -> None:
    writer = RecordWriter("dir/app.db", page_size, 7, "a", compression)
    pages = [(pgno, pgno.to_bytes(4, "big") * (page_size // 4)) for pgno in sorted(pgnos)]
    header = writer.header(len(pages), 6000, txid, timestamp_ms, pre, origin)
    assert header.origin == origin
    assert writer.encode(pages, 6000, txid, timestamp_ms, pre, post, origin) == encode_record(header, pages, post)


def test_more_pages_than_a_block_holds_take_the_general_way() -> None:
    writer = RecordWriter("app.db", 65536, 1, "a", "none")
    pages = [(pgno, bytes(65536)) for pgno in range(1, 40)]
    assert writer.encode(pages, 39, 1, 2, 3, 4) == encode_record(writer.header(39, 39, 1, 2, 3), pages, 4)


@pytest.mark.parametrize(
    ("pages", "commit"),
    [
        ([(2, bytes(512))], 1),
        ([(1, bytes(511))], 1),
        ([(0, bytes(512))], 1),
        ([(2, bytes(512)), (1, bytes(512))], 2),
        ([(1, bytes(512)), (2, bytes(513))], 2),
        ([(2**30 // 512 + 1, bytes(512))], 2**30),
    ],
)
def test_pages_that_break_the_format_are_our_bug_and_asserted(pages: list[tuple[int, bytes]], commit: int) -> None:
    with pytest.raises(AssertionError):
        RecordWriter("app.db", 512, 1, "a", "none").encode(pages, commit, 1, 2, 3, 4)
