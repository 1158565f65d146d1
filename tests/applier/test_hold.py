"""SQLite's write lock, kept for another node between its transactions."""

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from litereplica.applier.protocol import (
    Close,
    Closed,
    Commit,
    CommitRefused,
    Committed,
    Held,
    Hold,
    HoldLost,
    HoldRefused,
    Lock,
    Locked,
    Message,
    Release,
    Released,
    Report,
    Reported,
    Republish,
    Unhold,
    Unlock,
)
from litereplica.applier.serving import HOLD_LOST
from tests.applier.applications import application, busy_writer
from tests.applier.forwarding import answer, answer_to, commit, forwarded
from tests.applier.support import Child, rows, shown_end, until
from tests.applier.test_commit import MODES, is_sound, made

pytestmark = pytest.mark.timeout(60)


def hold(child: Child, name: str = "app.db", limit_ms: int = 2000, number: int = 1) -> Held | HoldRefused:
    child.send(Hold(name, number, limit_ms))
    while not isinstance(message := child.receive(), Held | HoldRefused):
        assert type(message).__name__ in ("Checkpointed", "Invalidated"), message
    return message


@pytest.mark.parametrize("mode", MODES)
def test_commits_go_through_under_it_and_nothing_else_does(child: Child, mode: str) -> None:
    path = made(child, mode)
    with application(path) as app, application(path, 5) as patient:
        assert app.run("SELECT count(*) FROM t") == [(50,)]
        assert hold(child) == Held("app.db", 1)
        for number in range(5):
            assert app.run("INSERT INTO t (v) VALUES (1)") == "SQLITE_BUSY"
            commit(child, path, "INSERT INTO t (v) VALUES (2)")
            assert app.run("SELECT count(*) FROM t") == [(51 + number,)]
        assert hold(child, number=2) == Held("app.db", 2)
        patient.begin("INSERT INTO t (v) VALUES (3)")
        time.sleep(0.2)
        child.send(Unhold("app.db"))
        assert patient.end() == []
        assert app.run("INSERT INTO t (v) VALUES (4)") == []
    assert rows(path, "SELECT count(*) FROM t") == [(57,)]
    assert is_sound(path)


@pytest.mark.parametrize("mode", MODES)
def test_a_commit_that_is_refused_under_it_does_not_end_it(child: Child, mode: str) -> None:
    path = made(child, mode)
    wanted = forwarded(path, "INSERT INTO t (v) VALUES (1)")
    damaged = bytearray(Path(wanted.path).read_bytes())
    with application(path) as app:
        assert hold(child) == Held("app.db", 1)
        Path(wanted.path).write_bytes(bytes(damaged[:-1]) + bytes([damaged[-1] ^ 1]))
        assert type(answer_to(child, wanted)).__name__ == "CommitRefused"
        assert app.run("INSERT INTO t (v) VALUES (1)") == "SQLITE_BUSY"
        Path(wanted.path).write_bytes(damaged)
        assert answer_to(child, wanted) == Committed("app.db", wanted.number)
        assert app.run("INSERT INTO t (v) VALUES (1)") == "SQLITE_BUSY"
        child.send(Unhold("app.db"))
        until(lambda: app.run("INSERT INTO t (v) VALUES (1)") == [])


@pytest.mark.parametrize("mode", MODES)
def test_who_does_not_yield_is_named_and_there_may_be_no_answer_to_what_is_taken_back(child: Child, mode: str) -> None:
    path = made(child, mode)
    with application(path, 5) as idle:
        assert idle.run("BEGIN IMMEDIATE") == []
        assert hold(child, limit_ms=200) == HoldRefused("app.db", 1, idle.described)
        child.send(Hold("app.db", 2, 60_000))
        time.sleep(0.1)
        child.send(Unhold("app.db"))
        time.sleep(0.1)
        assert idle.run("ROLLBACK") == []
        assert idle.run("INSERT INTO t (v) VALUES (1)") == []


def test_a_database_that_is_not_there_is_not_held(child: Child) -> None:
    refusal = hold(child, "none.db")
    assert isinstance(refusal, HoldRefused)
    assert "no such" in refusal.holder
    assert not (child.mount / "none.db").exists()


def test_one_that_is_refused_keeps_nothing_of_the_one_before(child: Child) -> None:
    path = made(child, "WAL")
    away = Path(path).with_name("away")
    with application(path) as app:
        assert hold(child) == Held("app.db", 1)
        assert app.run("INSERT INTO t (v) VALUES (1)") == "SQLITE_BUSY"
        Path(path).rename(away)
        assert isinstance(hold(child, number=2), HoldRefused)
        away.rename(path)
        assert app.run("INSERT INTO t (v) VALUES (1)") == []


@pytest.mark.parametrize("mode", MODES)
def test_it_is_got_from_applications_that_write_without_a_pause(child: Child, mode: str) -> None:
    path = made(child, mode)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("ALTER TABLE t ADD COLUMN n")
    with busy_writer(path), busy_writer(path):
        for number in range(5):
            assert hold(child, number=number) == Held("app.db", number)
            count = rows(path, "SELECT count(*) FROM t")
            time.sleep(0.05)
            assert rows(path, "SELECT count(*) FROM t") == count
            child.send(Unhold("app.db"))
            until(lambda count=count: rows(path, "SELECT count(*) FROM t") > count)  # type: ignore[misc]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("end", [Release("app.db"), Close("app.db"), Lock("app.db", 2000)])
def test_a_change_of_role_ends_it(child: Child, mode: str, end: Release | Close | Lock) -> None:
    path = made(child, mode)
    with application(path, 5) as app:
        assert hold(child) == Held("app.db", 1)
        child.send(end)
        assert isinstance(child.receive(), Released | Closed | Locked)
        if isinstance(end, Lock):
            assert isinstance(hold(child), HoldRefused)
            child.send(Unlock("app.db"))
        assert app.run("INSERT INTO t (v) VALUES (1)") == []
        assert hold(child, number=4) == Held("app.db", 4)


@pytest.mark.parametrize("end", [Release("app.db"), Close("app.db"), Lock("app.db", 50)])
def test_one_that_waits_is_refused_by_a_change_of_role(child: Child, end: Release | Close | Lock) -> None:
    path = made(child, "WAL")
    with application(path) as idle:
        assert idle.run("BEGIN IMMEDIATE") == []
        child.send(Hold("app.db", 1, 60_000), Hold("app.db", 2, 60_000), end)
        for number in (1, 2):
            refusal = child.receive()
            assert isinstance(refusal, HoldRefused)
            assert refusal.number == number


def test_it_survives_that_the_wal_index_has_to_be_rebuilt(child: Child) -> None:
    path = made(child, "WAL")
    with application(path) as app:
        assert app.run("INSERT INTO t (v) VALUES (1)") == []
        assert hold(child) == Held("app.db", 1)
        # A claim of frames of another generation: the wal-index is rebuilt once.
        child.send(Republish("app.db", 1, 2, 3))
        commit(child, path, "INSERT INTO t (v) VALUES (2)")
        assert app.run("INSERT INTO t (v) VALUES (3)") == "SQLITE_BUSY"
        commit(child, path, "INSERT INTO t (v) VALUES (2)")
        child.send(Unhold("app.db"))
        until(lambda: app.run("INSERT INTO t (v) VALUES (3)") == [])
    assert rows(path, "SELECT count(*) FROM t") == [(54,)]


def test_applications_may_checkpoint_under_it(child: Child) -> None:
    path = made(child, "WAL")
    with application(path, 5) as app:
        assert app.run("INSERT INTO t (v) VALUES (1)") == []
        assert hold(child) == Held("app.db", 1)
        for _ in range(3):
            commit(child, path, "INSERT INTO t (v) VALUES (2)")
            assert app.run("PRAGMA wal_checkpoint(PASSIVE)")[0][0] == 0
            time.sleep(0.1)
        time.sleep(1.5)  # the applier's own comes after a second without commits, and finds the lock taken
        commit(child, path, "INSERT INTO t (v) VALUES (2)")
        child.send(Unhold("app.db"))
        until(lambda: app.run("INSERT INTO t (v) VALUES (3)") == [])
    assert rows(path, "SELECT count(*) FROM t") == [(56,)]


def test_it_is_not_given_up_for_descriptors_that_others_need(tmp_path: Path) -> None:
    with Child(tmp_path / "mount", descriptors=88) as child:  # room for 4
        path = made(child, "WAL")
        others = [made(child, "WAL", name=f"o{number}.db") for number in range(6)]
        with application(path) as app:
            assert app.run("SELECT count(*) FROM t") == [(50,)]
            assert hold(child) == Held("app.db", 1)
            for each in others:
                commit(child, each, "INSERT INTO t (v) VALUES (2)")
                assert app.run("INSERT INTO t (v) VALUES (1)") == "SQLITE_BUSY"
            commit(child, path, "INSERT INTO t (v) VALUES (2)")
            child.send(Unhold("app.db"))
            until(lambda: app.run("INSERT INTO t (v) VALUES (1)") == [])


def test_no_more_are_held_than_there_are_descriptors_for(tmp_path: Path) -> None:
    with Child(tmp_path / "mount", descriptors=88) as child:
        names = [f"o{number}.db" for number in range(20)]
        paths = [made(child, "WAL", name=name) for name in names]
        answers = [hold(child, name) for name in names]
        held = [path for path, answer in zip(paths, answers, strict=True) if isinstance(answer, Held)]
        refused = [answer for answer in answers if isinstance(answer, HoldRefused)]
        assert len(held) == (88 - 32) // 6
        assert all("too many databases" in each.holder for each in refused), refused
        for path in held:
            with application(path) as app:
                assert app.run("INSERT INTO t (v) VALUES (1)") == "SQLITE_BUSY"
            commit(child, path, "INSERT INTO t (v) VALUES (2)")
        for path in held[:3]:
            child.send(Unhold(path.name))
        # As soon as these are folded.
        until(lambda: hold(child, names[-1]) == Held(names[-1], 1))


def lost(child: Child, wanted: Commit) -> HoldLost:
    """Have it committed although the lock cannot be kept: the daemon is told, and nothing is committed."""
    child.send(wanted)
    while not isinstance(told := child.receive(), HoldLost):
        assert type(told).__name__ in ("Checkpointed", "Invalidated"), told
    refusal = answer(child)
    assert isinstance(refusal, CommitRefused)
    assert refusal.number == wanted.number
    return told


def assert_free_until_unhold(child: Child, path: Path) -> None:
    """Applications may write; nothing that the daemon sent before it heard of it is committed."""
    with application(path, 5) as app:
        assert app.run("INSERT INTO t (v) VALUES (1)") == []
        late = forwarded(path, "INSERT INTO t (v) VALUES (2)")
        assert isinstance(answer_to(child, late), CommitRefused)
        child.send(Unhold("app.db"))
        commit(child, path, "INSERT INTO t (v) VALUES (2)")
        assert hold(child, number=8) == Held("app.db", 8)
        commit(child, path, "INSERT INTO t (v) VALUES (2)")
        assert app.run("PRAGMA busy_timeout=0") == [(0,)]
        assert app.run("INSERT INTO t (v) VALUES (1)") == "SQLITE_BUSY"


def test_whoever_has_it_is_told_when_the_files_are_others_by_now(child: Child) -> None:
    path = made(child, "WAL")
    assert hold(child, number=7) == Held("app.db", 7)
    wanted = forwarded(path, "INSERT INTO t (v) VALUES (2)")
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink()
    made(child, "WAL")
    assert lost(child, wanted) == HoldLost("app.db", 7, HOLD_LOST)
    assert_free_until_unhold(child, path)


def test_what_was_sent_before_the_daemon_has_heard_of_it_is_refused_also_if_its_turn_comes_later(child: Child) -> None:
    path = made(child, "WAL")
    assert hold(child, number=7) == Held("app.db", 7)
    first, second = (forwarded(path, f"INSERT INTO t (v) VALUES ({number})") for number in range(2))
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink()
    made(child, "WAL")
    assert lost(child, first).number == 7
    child.send(second, Unhold("app.db"))
    assert isinstance(answer(child), CommitRefused)
    commit(child, path, "INSERT INTO t (v) VALUES (2)")


def test_whoever_has_it_is_told_when_a_transaction_makes_another_journal_mode(child: Child) -> None:
    path = made(child, "DELETE")
    assert hold(child, number=7) == Held("app.db", 7)
    wanted = forwarded(path, "PRAGMA journal_mode=WAL")
    child.send(wanted)
    assert child.receive() == HoldLost("app.db", 7, HOLD_LOST)
    assert answer(child) == Committed("app.db", wanted.number)
    assert_free_until_unhold(child, path)


def test_whoever_has_it_is_told_when_the_wal_lacks_what_is_logged(child: Child) -> None:
    path = made(child, "WAL")
    with application(path) as app:
        assert app.run("INSERT INTO t (v) VALUES (1)") == []
        assert hold(child, number=7) == Held("app.db", 7)
        salt1, salt2, frames = shown_end(path)
        wanted = forwarded(path, "INSERT INTO t (v) VALUES (2)")
        child.send(Republish("app.db", salt1, salt2, frames + 1))
        assert lost(child, wanted) == HoldLost("app.db", 7, HOLD_LOST)


def test_whoever_has_it_is_told_when_another_writes_while_the_wal_index_is_rebuilt(child: Child) -> None:
    path = made(child, "WAL")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("ALTER TABLE t ADD COLUMN n")
    with busy_writer(path), busy_writer(path):
        for number in range(1, 40):
            assert hold(child, number=number) == Held("app.db", number)
            before = rows(path, "SELECT count(*) FROM t")
            # A claim of frames of another generation: the wal-index is rebuilt once, and the lock is had by nobody.
            child.send(Republish("app.db", 1, 2, 3))
            time.sleep(0.02)
            has_changed = rows(path, "SELECT count(*) FROM t") != before
            child.send(Report("app.db", number))
            told: list[Message] = []
            while not told or not isinstance(told[-1], Reported):
                told.append(child.receive())
            assert not has_changed or HoldLost("app.db", number, HOLD_LOST) in told, told
            child.send(Unhold("app.db"))
