"""A name that is dropped and made again, over and over: what was on its way for one file never goes into the next."""

import pytest

from tests.cluster.comparing import assert_same
from tests.cluster.group import Group
from tests.cluster.test_equal import FILLING, forget
from tests.support.sql import Session


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
@pytest.mark.parametrize("sizes", [(4096, 4096), (4096, 1024)])
def test_a_database_that_is_dropped_and_made_again_is_the_same_everywhere(
    group: Group, mode: str, sizes: tuple[int, int]
) -> None:
    name = f"again-{mode}-{sizes[1]}.db"
    path = group.path(name)
    for number in range(12):
        forget(group, name, f"{name}-journal")
        with Session(path) as session:
            session.run(f"PRAGMA page_size={sizes[number % 2]}")
            session.run(f"PRAGMA journal_mode={mode}")
            session.run("CREATE TABLE t (k INTEGER PRIMARY KEY, generation, v)")
            for count in (400, 1, 30, 1, 1):
                session.run(f"{FILLING} INSERT INTO t (generation, v) SELECT {number}, randomblob(500) FROM n", count)
    assert_same(group.all, name)
    for node in group.all:
        with Session(node.path(name), mode="ro") as reader:
            assert reader.run("SELECT DISTINCT generation FROM t") == [(11,)]
