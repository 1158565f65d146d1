"""What an application does after its transaction was refused on a replica in WAL mode: the very same once more."""

import contextlib

import pytest

from tests.mount.test_forwarding_wal import assert_sound, ids, node, session  # noqa: F401  fixtures
from tests.mount.twin_node import TwinNode
from tests.support.sql import Session, SqlError

pytestmark = pytest.mark.timeout(110)


def insert_alike(session: Session, rows: int) -> None:  # noqa: F811
    """A transaction that writes the same frames whenever it is tried."""
    session.run("BEGIN")
    for number in range(rows):
        session.run("INSERT INTO t VALUES (?, ?)", 100 + number, f"{number}" * 3000)
    session.run("COMMIT")


@pytest.mark.usefixtures("changes_role")
@pytest.mark.parametrize("rows", [1, 2, 40])
@pytest.mark.parametrize("is_promoted", [False, True])
def test_the_very_same_transaction_after_a_refusal_is_no_rest_of_it(
    node: TwinNode,  # noqa: F811
    session: Session,  # noqa: F811
    rows: int,
    is_promoted: bool,
) -> None:
    for _ in range(2):
        node.answer("refuse")
        with pytest.raises(SqlError):
            insert_alike(session, rows)
        with contextlib.suppress(SqlError):
            session.run("ROLLBACK")
    node.answer("commit")
    if is_promoted:
        node.lead()
    insert_alike(session, rows)
    assert ids(node) == [*range(100, 100 + rows)]
    if is_promoted:
        node.demote()
    session.run("INSERT INTO t VALUES (1, 'after')")
    assert ids(node) == [1, *range(100, 100 + rows)]
    assert_sound(node)
