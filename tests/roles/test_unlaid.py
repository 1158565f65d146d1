"""A replica becomes the primary while its applications commit without a pause, in a database in rollback mode."""

import signal
import time
from typing import Final

import pytest

from litereplica.ltx.decode import PageBlock, RecordDecoder
from litereplica.ltx.format import RecordHeader
from litereplica.store.store import folder_name
from tests.cluster.comparing import assert_same, content
from tests.roles.conftest import Direct
from tests.roles.directed import DirectedNode
from tests.roles.test_forwarding import hand_over, rows, three, writers
from tests.support.sql import Session, run_sql
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(150)

PROMOTION_S: Final = 5.0
WITHOUT_WAITING_S: Final = 0.45
"""Less than data_plane.HELD_LIMIT_S, after which what is held is given up."""


def test_what_was_unlaid_is_complete_after_its_node_has_led(forwarding: Direct) -> None:
    a, b, c = three(forwarding, "DELETE")
    with writers([b], 5.0) as written:
        for epoch in range(2, 6):
            time.sleep(1)
            began = time.monotonic()
            hand_over(*((a, b) if epoch % 2 == 0 else (b, a)), epoch, [c])
            assert time.monotonic() - began < PROMOTION_S
    for each in (a, b, c):
        wait_until(lambda each=each: rows(each) == written, f"{each.name} has it")  # type: ignore[misc]
    assert len(written["b"]) > 100
    assert_same([a, b, c])


def newest_pages(node: DirectedNode) -> list[int]:
    """The numbers of the pages in the newest record of its log."""
    pages: list[int] = []
    for path in sorted((node.data / "db" / folder_name("app.db")).glob("*.ltx")):
        decoder = RecordDecoder()
        events = decoder.feed(content(path))
        while decoder.more:
            events += decoder.feed(b"")
        for event in events:
            if isinstance(event, RecordHeader):
                pages = []
            elif isinstance(event, PageBlock):
                pages += [pgno for pgno, _ in event.pages]
    return pages


def promote(node: DirectedNode, epoch: int) -> None:
    began = time.monotonic()
    node.promote(epoch)
    assert time.monotonic() - began < WITHOUT_WAITING_S


@pytest.mark.parametrize("when", ["at once", "held", "begun", "rolled back"])
def test_what_is_unlaid_when_its_node_leads_comes_with_the_first_transaction(forwarding: Direct, when: str) -> None:
    a, b, c = three(forwarding, "DELETE")
    with Session(b.path()) as writer:
        # At once: before the applier is told to lay it over (node.resting). Else: the applier waits for the lock.
        writer.run("INSERT INTO t VALUES ('b', 1)")
        if when != "at once":
            writer.run("BEGIN IMMEDIATE")
            writer.run("INSERT INTO t VALUES ('b', 2)")
            time.sleep(0.5)
            a.kill()
        else:
            assert a.process is not None
            a.process.send_signal(signal.SIGSTOP)
            writer.send("INSERT INTO t VALUES ('b', 2)")
            time.sleep(0.5)
            a.kill()
        if when == "held":
            writer.send("COMMIT")
            time.sleep(0.5)
        promote(b, 2)
        c.follow(b)
        if when in {"held", "at once"}:
            writer.receive()
        elif when == "begun":
            writer.run("COMMIT")
        else:
            writer.run("ROLLBACK")
            writer.run("INSERT INTO t VALUES ('b', 2)")
        assert newest_pages(b) == [1, 2]
        writer.run("INSERT INTO t VALUES ('b', 3)")
        assert newest_pages(b) == [2]
    assert bool(b.log_lines("not_laid")) == (when in {"begun", "rolled back"})
    assert rows(b) == {"b": [1, 2, 3]}
    assert_same([b, c])


def test_a_journal_that_is_held_keeps_nobody_from_letting_go_of_other_databases(forwarding: Direct) -> None:
    """Its removal keeps the kernel's lock on the folder: nobody finds out that a file is not there."""
    a, b, c = three(forwarding, "DELETE")
    for name in ("made.db", "other.db"):
        run_sql(b.path(name), "PRAGMA journal_mode=DELETE; CREATE TABLE t (who, n)")
    with Session(b.path("made.db")) as writer:
        writer.run("BEGIN IMMEDIATE")
        writer.run("INSERT INTO t VALUES ('b', 1)")
        assert b.path("made.db-journal").exists()
        a.kill()
        writer.send("COMMIT")
        time.sleep(0.5)
        promote(b, 2)
        writer.receive()
    c.follow(b)
    assert run_sql(b.path("made.db"), "SELECT * FROM t") == [("b", 1)]
    assert_same([b, c])
