"""A person wants a node to lead whatever is lost (failover --force), and it does not come to that."""

import os
import signal
from typing import Any

import pytest

from litereplica.store.cluster_state import load_state
from tests.roles.conftest import Direct
from tests.roles.test_roles import ids, insert, make, pair
from tests.support.sql import Session

pytestmark = pytest.mark.timeout(110)


@pytest.mark.parametrize(
    ("limits", "why"), [({"limit_s": 1.0}, "cancelled"), ({}, "the applier did not let go of app.db")]
)
def test_a_node_with_lost_history_whose_forced_promotion_fails_is_no_candidate_still(
    directed: Direct, limits: dict[str, Any], why: str
) -> None:
    a, b = pair(directed)
    make(a, "WAL")
    insert(a, 1)
    b.wait_for("app.db", a.position())
    a.demote()
    # It hears of nobody any more, who might say that nothing is lost.
    b.follow(b)
    assert b.tell("part") == {}
    with Session(b.path(), mode="ro") as reader:
        assert reader.run("SELECT id FROM t") == [(1,)]
        os.kill(b.applier(), signal.SIGSTOP)
        try:
            assert b.tell("promote", epoch=2, **limits) == {"error": why}
            assert b.standing()["parted"]
            assert load_state(b.data).parted, "also after a start"
        finally:
            os.kill(b.applier(), signal.SIGCONT)
        b.promote(3)
        assert not b.standing()["parted"]
        assert not load_state(b.data).parted
    insert(b, 2)
    assert ids(b) == [1, 2]
