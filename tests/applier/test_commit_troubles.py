"""An applier that dies at any step of a commit, or is refused: the transaction is there whole, or nothing of it is."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from litereplica.applier.protocol import CommitRefused, Committed
from litereplica.sqlite.journal import JOURNAL_MAGIC
from tests.applier.applications import application
from tests.applier.forwarding import TroubledChild, answer_to, forwarded
from tests.applier.support import Child, rows
from tests.applier.test_commit import MANY, is_sound, made

pytestmark = pytest.mark.timeout(60)

# Longer than what is held in memory at once, and shorter than before.
CHANGES = {"small": MANY.format(5), "long": MANY.format(2500), "short": "VACUUM"}


def content(path: Path) -> tuple[list[tuple[int]], list[tuple[int]]]:
    return rows(path, "SELECT k FROM t"), rows(path, "PRAGMA page_count")


def before_the_change(child: Child, mode: str, change: str) -> Path:
    path = made(child, mode)
    if change == "short":
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute(MANY.format(2500))
            connection.execute("DELETE FROM t WHERE k > 20")
    return path


STEPS = [
    ("pwrite", "-journal", "torn"),
    ("pwrite", "-journal", "before"),
    ("pwrite", "app.db", "before"),
    ("pwrite", "app.db", "torn"),
    ("unlink", "-journal", "before"),
    ("unlink", "-journal", "after"),
    ("ftruncate", "app.db", "before"),
    ("pwrite", "-wal", "before"),
    ("pwrite", "-wal", "torn"),
    ("pwrite", "-wal", "after"),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("call", "path_end", "how"), STEPS)
def test_killed_at_any_step_it_leaves_what_any_sqlite_puts_right(
    child: Child, tmp_path: Path, call: str, path_end: str, how: str, change: str
) -> None:
    path = before_the_change(child, "WAL" if path_end == "-wal" else "DELETE", change)
    before = content(path)
    wanted = forwarded(path, CHANGES[change])
    deaths = 0
    for at in (1, 2, 5, 13):
        with TroubledChild(tmp_path / "mount", call, path_end, at, how) as dying:
            has_committed = dying.commit_or_die(wanted)
        deaths += not has_committed
        assert is_sound(path)
        if has_committed or how == "after" or call == "ftruncate":
            break
        assert content(path) == before
        with application(path) as app:
            assert app.run("BEGIN IMMEDIATE") == []
    # A file that does not become shorter is not cut.
    assert deaths or (call == "ftruncate" and change != "short")
    # What was committed once is the same when it is committed again: pages, not statements.
    assert answer_to(child, wanted) == Committed("app.db", wanted.number)
    assert is_sound(path)
    assert content(path) != before


def test_the_name_of_a_super_journal_that_an_old_journal_has_kept_does_not_commit_it(
    child: Child, tmp_path: Path
) -> None:
    path = made(child, "PERSIST")
    before = content(path)
    wanted = forwarded(path, "INSERT INTO t (v) VALUES (1)")
    name = b"/nowhere/app.db-mj0123AB9CD"
    tail = name + len(name).to_bytes(4) + sum(name).to_bytes(4) + JOURNAL_MAGIC
    Path(f"{path}-journal").write_bytes(bytes(200_000) + tail)
    with TroubledChild(tmp_path / "mount", "unlink", "-journal", 1, "before") as dying:
        assert not dying.commit_or_die(wanted)
    assert content(path) == before


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    ("call", "path_end", "at"),
    [
        ("unlink", "-journal", 1),
        ("pwrite", "app.db", 1),
        ("pwrite", "app.db", 2),
        ("pwrite", "-journal", 1),
        ("pwrite", "-wal", 1),
        ("pwrite", "-wal", 3),
    ],
)
def test_refused_by_the_mount_it_leaves_nothing_and_no_lock(
    child: Child, tmp_path: Path, call: str, path_end: str, at: int, change: str
) -> None:
    path = before_the_change(child, "WAL" if path_end == "-wal" else "DELETE", change)
    before = content(path)
    wanted = forwarded(path, CHANGES[change])
    with TroubledChild(tmp_path / "mount", call, path_end, at, "fail") as refused, application(path) as app:
        assert app.run("SELECT count(*) FROM t")[0][0]
        answered = answer_to(refused, wanted)
        if isinstance(answered, CommitRefused):
            assert not answered.busy
            assert "Input/output error" in answered.reason or "no" in answered.reason
            assert not Path(f"{path}-journal").exists()
            assert content(path) == before
            assert app.run("BEGIN IMMEDIATE") == []
            assert app.run("ROLLBACK") == []
            assert answer_to(refused, wanted) == Committed("app.db", wanted.number)
        assert content(path) != before
        assert app.run("PRAGMA integrity_check") == [("ok",)]
        assert app.run("SELECT k FROM t") == content(path)[0]
