"""What a replica at a given position is sent, and how many rounds it takes to find the last common one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litereplica.cluster.catch_up import CatchUp, Narrowing, decide
from litereplica.cluster.messages import SAMPLES_LIMIT
from litereplica.ltx.position import Point

HISTORY = {txid: Point(txid, txid * 1000, txid + 7) for txid in range(101)}
HERE = HISTORY[100]


@pytest.mark.parametrize(
    ("replica", "first_kept", "expected"),
    [
        (HERE, 1, CatchUp.NOTHING),
        (HERE, 101, CatchUp.NOTHING),
        (Point(100, 100_000, 0), 1, CatchUp.NOTHING),
        (Point(99, 99_000, 106), 1, CatchUp.RECORDS),
        (Point(99, 99_000, 106), 100, CatchUp.RECORDS),
        (Point(99, 99_000, 106), 101, CatchUp.SNAPSHOT),
        (Point(50, 50_000, 57), 60, CatchUp.SNAPSHOT),
        (Point(50, 50_001, 57), 1, CatchUp.SEARCH),
        (Point(50, 50_001, 57), 60, CatchUp.SNAPSHOT),
        (Point(100, 7, 107), 1, CatchUp.SEARCH),
        (Point(101, 101_000, 108), 1, CatchUp.SEARCH),
        (Point(101, 101_000, 108), 101, CatchUp.SEARCH),
        (Point.ZERO, 1, CatchUp.RECORDS),
        (Point.ZERO, 2, CatchUp.SNAPSHOT),
        # The same content, which another history has come to as well.
        (Point(100, 100_000, 1), 1, CatchUp.SEARCH),
        (Point(70, 70_000, 1), 1, CatchUp.SEARCH),
        # Of which history it is, this node's log does not say any more, or the primary's.
        (Point(70, 70_000, 0), 1, CatchUp.RECORDS),
        (Point(70, 70_000, 1), 71, CatchUp.RECORDS),
    ],
)
def test_records_where_the_log_knows_the_point_a_search_where_it_knows_another(
    replica: Point, first_kept: int, expected: CatchUp
) -> None:
    def point_at(txid: int) -> Point | None:
        if txid == first_kept - 1:
            return Point(txid, HISTORY[txid].checksum, 0)
        return HISTORY[txid] if first_kept <= txid <= 100 else None

    assert decide(replica, HERE, point_at) is expected


def test_a_database_without_transactions_needs_nothing() -> None:
    assert decide(Point.ZERO, Point.ZERO, lambda _: None) is CatchUp.NOTHING


def rounds_until(common: int, low: int, high: int) -> tuple[int, Narrowing]:
    narrowing, rounds = Narrowing(low, high), 0
    while not narrowing.done:
        samples = narrowing.samples()
        assert 1 <= len(samples) <= SAMPLES_LIMIT
        assert samples == sorted(set(samples))
        assert low < samples[0]
        assert samples[-1] < high
        found = max((txid for txid in samples if txid <= common), default=0)
        narrowing = narrowing.narrowed(found)
        rounds += 1
    return rounds, narrowing


@given(st.integers(0, 10**7), st.integers(1, 10**7), st.data())
def test_the_search_ends_at_the_last_common_position(low: int, width: int, data: st.DataObject) -> None:
    common = data.draw(st.integers(low, low + width - 1))
    _, narrowing = rounds_until(common, low, low + width)
    assert narrowing.low == common


@pytest.mark.parametrize(("records", "most"), [(0, 0), (1, 1), (64, 1), (65, 2), (4224, 2), (262_144, 3)])
def test_rounds_that_a_search_takes(records: int, most: int) -> None:
    for common in {0, 1, records // 3, records // 2, max(0, records - 1), records} if records else {0}:
        rounds, narrowing = rounds_until(min(common, records), 0, records + 1)
        assert narrowing.low == min(common, records)
        assert rounds <= most
