"""A database in rollback mode, which a replica reads through a WAL, stays in it when it is made anew there."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.cluster.comparing import assert_same
from tests.cluster.group import Group
from tests.support.sql import run_sql

pytestmark = pytest.mark.timeout(115)

ROWS: Final = 2000
FILL: Final = (
    "PRAGMA journal_mode=DELETE; CREATE TABLE t (id INTEGER PRIMARY KEY, v);"
    f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS}) "
    "INSERT INTO t (v) SELECT randomblob(200) FROM n;"
    "DELETE FROM t WHERE id % 2;"
)
BACKUP: Final = """
import sqlite3, sys
source = sqlite3.connect(":memory:")
source.executescript("CREATE TABLE t (id INTEGER PRIMARY KEY, v); INSERT INTO t (v) VALUES ('copied')")
source.backup(sqlite3.connect(sys.argv[1], timeout=20))
"""


def mode(path: Path) -> str:
    """What SQLite says on the primary."""
    ((found,),) = run_sql(path, "PRAGMA journal_mode", mode="ro")
    return str(found)


def vacuum(path: Path) -> None:
    run_sql(path, "VACUUM", mode="rw")


def restore(path: Path) -> None:
    """A whole content through SQLite's backup interface, as ``.restore`` of its shell."""
    subprocess.run([sys.executable, "-c", BACKUP, path], check=True, timeout=60)


@pytest.mark.parametrize("make_anew", [vacuum, restore])
def test_a_database_in_rollback_mode_that_is_made_anew_on_a_replica_stays_in_it(
    group: Group, make_anew: Callable[[Path], None]
) -> None:
    name = f"{make_anew.__name__}.db"
    primary, replica = group.path(name), group.replicas[0].path(name)
    run_sql(primary, FILL)
    group.replicas[0].wait_for(name, group.primary_node.position(name))
    before = primary.stat().st_size
    for number in range(3):
        make_anew(replica)
        assert mode(primary) == "delete"
        # The next one, at once: page 1 need not be laid over yet.
        run_sql(replica, "INSERT INTO t (v) VALUES (?)", f"replica {number}", mode="rw")
        run_sql(primary, "INSERT INTO t (v) VALUES (?)", f"primary {number}")
        group.replicas[0].wait_for(name, group.primary_node.position(name))
    assert primary.stat().st_size < before
    assert_same(group.all, name)


def test_another_page_size_comes_to_a_replica_that_has_just_committed(group: Group) -> None:
    """It takes an empty WAL there, and what tells whether that may be emptied was of the page size before."""
    primary, (replica,) = group.primary_node, group.replicas
    path, there = primary.path("sized.db"), replica.path("sized.db")
    run_sql(path, FILL)
    replica.wait_for("sized.db", primary.position("sized.db"))
    run_sql(there, "INSERT INTO t (v) VALUES (randomblob(9000));", mode="rw")
    run_sql(path, "PRAGMA page_size=8192; VACUUM;")
    replica.wait_for("sized.db", primary.position("sized.db"))
    run_sql(there, "INSERT INTO t (v) VALUES ('after');", mode="rw")
    replica.wait_for("sized.db", primary.position("sized.db"))
    assert_same(group.all, "sized.db")
