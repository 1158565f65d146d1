"""A replica that has logged what it cannot apply does not become the primary, and nobody waits for it."""

import time

import pytest

from tests.roles.conftest import Direct
from tests.roles.test_roles import ids, insert, make, pair
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(110)


def test_a_node_that_cannot_apply_is_no_candidate_and_gives_a_promotion_up_at_once(directed: Direct) -> None:
    a, b = pair(directed)
    make(a, "WAL")
    make(a, "WAL", "other.db")
    for name in ("app.db", "other.db"):
        b.wait_for(name, a.position(name))
    assert b.standing()["whole"]
    b.full.touch()
    insert(a, 1)
    wait_until(lambda: not b.standing()["whole"], "it is no candidate", 20)
    assert b.log_lines("apply_failed")
    assert b.position() == a.position(), "it has been logged"
    began = time.monotonic()
    refused = b.tell("promote", epoch=2)["error"]
    assert time.monotonic() - began < 5
    assert "cannot be applied here: app.db: " in refused
    assert "No space left on device" in refused or "disk I/O error" in refused
    b.full.unlink()
    wait_until(lambda: b.standing()["whole"], "it is one again", 20)
    assert ids(b) == [1]
    a.demote()
    b.promote(3)
    insert(b, 2)
    assert ids(b) == [1, 2]


def test_a_promotion_that_finds_out_that_it_cannot_apply_is_given_up(directed: Direct) -> None:
    a, b = pair(directed)
    make(a, "WAL")
    b.wait_for("app.db", a.position())
    b.full.touch()
    insert(a, 1)
    wait_until(lambda: b.position() == a.position(), "it is logged")
    began = time.monotonic()
    assert "cannot be applied here: app.db: " in b.tell("promote", epoch=2)["error"]
    assert time.monotonic() - began < 10
    b.full.unlink()
    wait_until(lambda: b.tell("promote", epoch=3) == {}, "it can, once there is room", 20)
    assert ids(b) == [1]
