"""A WAL that nobody folds: far more than a wal-index block counts, over the same pages again and again.

Hundreds of megabytes: ``LITEREPLICA_LONG_WAL_MIB=330 LITEREPLICA_CLUSTER_SECONDS=99 pytest`` with this file.
"""

import os
from typing import Final

import pytest

from tests.cluster.comparing import assert_same, content, rolling_checksum
from tests.cluster.conftest import MakeGroup
from tests.cluster.group import Group, kill
from tests.support.sql import Session, make_database
from tests.support.waiting import wait_until

NAME: Final = "long.db"
MIB: Final = 2**20
LONG_MIB: Final = int(os.environ.get("LITEREPLICA_LONG_WAL_MIB", "110"))
ROWS: Final = 200
ROW_BYTES: Final = 85_000
# A transaction frees the pages of the row that it replaces, and so writes twice its length.
BYTES_A_TRANSACTION: Final = 165_000


def write(session: Session, size_bytes: int) -> None:
    """Transactions of one row each, until the WAL has so many bytes."""
    session.run("PRAGMA wal_autocheckpoint=0")
    session.run(
        "INSERT OR REPLACE INTO t SELECT 1 + abs(random() % ?), randomblob(?)",
        ROWS,
        ROW_BYTES,
        times=size_bytes // BYTES_A_TRANSACTION,
        limit_s=90,
    )


def wal_bytes(group: Group) -> int:
    return group.path(f"{NAME}-wal").stat().st_size


def assert_applied(group: Group) -> None:
    """The primary's file is far behind its WAL: the replica's must have the bytes that the checksum stands for."""
    primary, replica = group.all
    position = primary.position(NAME)
    replica.wait_for(NAME, position, limit_s=60)
    wal = replica.data / "files" / f"{NAME}-wal"
    wait_until(lambda: wal.stat().st_size == 0, "the replica folds its WAL", 60)
    assert f"{rolling_checksum(content(replica.path(NAME))):016x}" == position.partition("/")[2]


@pytest.mark.timeout(200)
def test_a_wal_of_more_than_a_hundred_megabytes_is_replicated_survives_a_kill_and_is_folded(
    make_group: MakeGroup,
) -> None:
    group = make_group(replicas=1).start()
    make_database(group.path(NAME), rows=ROWS)
    session = Session(group.path(NAME))
    write(session, LONG_MIB * MIB)
    assert wal_bytes(group) > LONG_MIB * MIB * 0.9
    assert_applied(group)
    kill(group.primary_node)
    session.kill()
    group.primary_node.start()
    assert_same(group.all, NAME)
    with Session(group.path(NAME)) as session:
        write(session, LONG_MIB * MIB // 2)
        assert wal_bytes(group) > LONG_MIB * MIB * 0.45
        assert_applied(group)
        assert session.run("PRAGMA wal_checkpoint(TRUNCATE)") == [(0, 0, 0)]
        assert wal_bytes(group) == 0
        assert_same(group.all, NAME)
        session.run("INSERT INTO t (v) VALUES ('goes on')")
    assert_same(group.all, NAME)
