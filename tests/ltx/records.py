"""Records to test with: one builder, and the Hypothesis strategy over every shape a record can have."""

from typing import Any

from hypothesis import strategies as st

from litereplica.ltx.decode import Event, PageBlock, RecordDecoder
from litereplica.ltx.format import COMPRESSIONS, PAGE_LIMIT, U64_LIMIT, Origin, RecordHeader, database_name_problem
from litereplica.sqlite.pages import lock_page

PageList = list[tuple[int, bytes]]
ORIGIN = Origin("node-2", 0x7FED_CBA9_8765_4321)
PAGE_SIZES = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]


def make_header(**changes: Any) -> RecordHeader:
    header = RecordHeader(
        database="app.db",
        page_size=512,
        commit=1000,
        page_count=2,
        min_txid=7,
        max_txid=7,
        epoch=3,
        node="node-1",
        timestamp_ms=1_790_000_000_000,
        pre_checksum=0x8000_0000_0000_0001,
        compression="none",
    )
    return header._replace(**changes)


def make_pages(pgnos: list[int], page_size: int = 512) -> PageList:
    return [(pgno, (pgno.to_bytes(4, "big") * (page_size // 4))) for pgno in pgnos]


def feed_all(pieces: list[bytes]) -> list[Event]:
    """The events of a whole stream; raises what the decoder raises, also when it ends in mid-record."""
    decoder = RecordDecoder()
    events: list[Event] = []
    for piece in pieces:
        events += decoder.feed(piece)
        while decoder.more:
            events += decoder.feed(b"")
    decoder.finish()
    return events


def pages_of(events: list[Event]) -> PageList:
    return [page for event in events if isinstance(event, PageBlock) for page in event.pages]


u64 = st.integers(0, U64_LIMIT)
txids = st.integers(1, U64_LIMIT)
names = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=60)
database_names = (
    st.lists(names, min_size=1, max_size=4).map("/".join).filter(lambda name: database_name_problem(name) is None)
)
origins = st.none() | st.builds(Origin, names, u64)


@st.composite
def records(draw: st.DrawFn, page_sizes: tuple[int, ...] = tuple(PAGE_SIZES)) -> tuple[RecordHeader, PageList]:
    page_size = draw(st.sampled_from(page_sizes))
    pgnos = sorted(draw(st.sets(st.integers(1, PAGE_LIMIT), max_size=12)) - {lock_page(page_size)})
    least = pgnos[-1] if pgnos else 0
    low, high = sorted((draw(txids), draw(txids)))
    header = RecordHeader(
        database=draw(database_names),
        page_size=page_size,
        commit=draw(st.integers(least, PAGE_LIMIT)),
        page_count=len(pgnos),
        min_txid=low,
        max_txid=high,
        epoch=draw(u64),
        node=draw(names),
        timestamp_ms=draw(u64),
        pre_checksum=draw(u64),
        compression=draw(st.sampled_from(COMPRESSIONS)),
        origin=draw(origins),
    )
    fill = st.binary(min_size=1, max_size=40).map(lambda seed: (seed * (page_size // len(seed) + 1))[:page_size])
    return header, [(pgno, draw(fill)) for pgno in pgnos]
