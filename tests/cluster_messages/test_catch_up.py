"""What a replica at a given position is sent."""

import pytest

from litereplica.cluster.catch_up import CatchUp, decide
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
        (Position(50, 50_001), 1, CatchUp.SNAPSHOT),
        (Position(100, 7), 1, CatchUp.SNAPSHOT),
        (Position(101, 101_000), 1, CatchUp.SNAPSHOT),
        (Position.ZERO, 1, CatchUp.RECORDS),
        (Position.ZERO, 2, CatchUp.SNAPSHOT),
    ],
)
def test_records_where_the_log_knows_the_position_else_a_snapshot(
    replica: Position, first_kept: int, expected: CatchUp
) -> None:
    def checksum_at(txid: int) -> int | None:
        return HISTORY[txid] if first_kept - 1 <= txid <= 100 else None

    assert decide(replica, HERE, checksum_at) is expected


def test_a_database_without_transactions_needs_nothing() -> None:
    assert decide(Position.ZERO, Position.ZERO, lambda _: None) is CatchUp.NOTHING
