"""What a replica at a given position is sent, and how many rounds it takes to find the last common one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litereplica.cluster.catch_up import CatchUp, Narrowing, decide
from litereplica.cluster.messages import SAMPLES_LIMIT
from litereplica.ltx.position import Position

HISTORY = {txid: txid * 1000 for txid in range(101)}
HERE = Position(100, HISTORY[100])


@pytest.mark.parametrize(
    ("replica", "first_kept", "expected"),
    [
        (HERE, 1, CatchUp.NOTHING),
        (HERE, 101, CatchUp.NOTHING),
        (Position(99, 99_000), 1, CatchUp.RECORDS),
        (Position(99, 99_000), 100, CatchUp.RECORDS),
        (Position(99, 99_000), 101, CatchUp.SNAPSHOT),
        (Position(50, 50_000), 60, CatchUp.SNAPSHOT),
        (Position(50, 50_001), 1, CatchUp.SEARCH),
        (Position(50, 50_001), 60, CatchUp.SNAPSHOT),
        (Position(100, 7), 1, CatchUp.SEARCH),
        (Position(101, 101_000), 1, CatchUp.SEARCH),
        (Position(101, 101_000), 101, CatchUp.SEARCH),
        (Position.ZERO, 1, CatchUp.RECORDS),
        (Position.ZERO, 2, CatchUp.SNAPSHOT),
    ],
)
def test_records_where_the_log_knows_the_position_a_search_where_it_knows_another(
    replica: Position, first_kept: int, expected: CatchUp
) -> None:
    def checksum_at(txid: int) -> int | None:
        return HISTORY[txid] if first_kept - 1 <= txid <= 100 else None

    assert decide(replica, HERE, checksum_at) is expected


def test_a_database_without_transactions_needs_nothing() -> None:
    assert decide(Position.ZERO, Position.ZERO, lambda _: None) is CatchUp.NOTHING


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
