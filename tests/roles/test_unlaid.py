"""A replica becomes the primary while its applications commit without a pause, in a database in rollback mode."""

import time
from typing import Final

import pytest

from tests.cluster.comparing import assert_same
from tests.roles.conftest import Direct
from tests.roles.test_forwarding import hand_over, rows, three, writers
from tests.support.sql import Session
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(150)

PROMOTION_S: Final = 5.0


def test_what_is_unlaid_is_complete_before_its_node_leads(forwarding: Direct) -> None:
    a, b, c = three(forwarding, "DELETE")
    with writers([b], 5.0) as written:
        for epoch in range(2, 6):
            time.sleep(1)
            began = time.monotonic()
            hand_over(*((a, b) if epoch % 2 == 0 else (b, a)), epoch, [c])
            assert time.monotonic() - began < PROMOTION_S
    for each in (a, b, c):
        wait_until(lambda each=each: rows(each) == written, f"{each.name} has it", 10)  # type: ignore[misc]
    assert len(written["b"]) > 100
    assert_same([a, b, c])


def test_a_commit_that_keeps_the_applier_from_laying_is_refused_and_its_node_leads(forwarding: Direct) -> None:
    a, b, _ = three(forwarding, "DELETE")
    with Session(b.path()) as held:
        held.run("INSERT INTO t VALUES ('b', 1)")
        a.kill()
        held.send("INSERT INTO t VALUES ('b', 2)")
        time.sleep(0.5)
        began = time.monotonic()
        b.promote(2)
        assert time.monotonic() - began < PROMOTION_S
        with pytest.raises(Exception, match="SQLITE_IOERR"):
            held.receive()
        held.run("INSERT INTO t VALUES ('b', 3)")
    assert rows(b) == {"b": [1, 3]}
    assert_same([b])
