"""``litereplica diverged``: what is listed, exported and dropped, and what is left alone."""

import json
import sqlite3
from pathlib import Path

import pytest
import trio

from litereplica.ltx.position import Position
from litereplica.store.database import Database
from litereplica.store.disk import Disk
from litereplica.store.install import set_log_aside
from litereplica.store.keep import keep
from litereplica.store.store import Store
from tests.cli.running import CommandLine

PAGE = 4096


def pages_of(path: Path) -> list[tuple[int, bytes]]:
    data = path.read_bytes()
    return [(at // PAGE + 1, data[at : at + PAGE]) for at in range(0, len(data), PAGE)]


def made(folder: Path, rows: int) -> Path:
    """A real SQLite file with so many rows."""
    path = folder / f"{rows}.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (v)")
        connection.executemany("INSERT INTO t VALUES (?)", [(str(number) * 50,) for number in range(rows)])
    connection.close()
    return path


def commit(database: Database, path: Path) -> None:
    database.set_page_size(PAGE)
    pages = pages_of(path)
    database.commit(pages, len(pages), lambda: None)


@pytest.fixture
def data(tmp_path: Path, litereplica: CommandLine) -> Path:
    """A data directory with two transactions that are kept of ``dir/app.db``, the second of which was lost."""
    root = tmp_path / "data"
    store = Store.open(root, Disk(), "a")
    database = store.create("dir/app.db")
    commit(database, made(tmp_path, 10))
    common = database.position
    commit(database, made(tmp_path, 300))

    async def run() -> None:
        await keep(database, common, common=True, primary="b", primary_epoch=9, reason="b has another history")

    trio.run(run)
    store.close()
    litereplica.configure(f"data: {{dir: {root}}}\n")
    return root


ID = "dir%2Fapp.db@0000000000000002.1"


def test_a_node_without_any_says_so(litereplica: CommandLine, tmp_path: Path) -> None:
    litereplica.configure(f"data: {{dir: {tmp_path / 'data'}}}\n")
    missing = litereplica("diverged", "list")
    assert missing.code == 1
    assert "data.dir" in missing.error
    Store.open(tmp_path / "data", Disk(), "a").close()
    shown = litereplica("diverged", "list")
    assert (shown.code, shown.err) == (0, "")
    assert "nothing diverged" in shown.out
    assert json.loads(litereplica("--json", "diverged", "list").out) == []


def test_entries_are_listed(litereplica: CommandLine, data: Path) -> None:
    shown = litereplica("diverged", "list")
    assert (shown.code, shown.err) == (0, "")
    header, line = shown.out.splitlines()
    assert header.split()[:2] == ["ID", "DATABASE"]
    words = line.split()
    assert words[:6] == [ID, "dir/app.db", f"{1:016x}", f"{2:016x}", "1", "1"]
    assert words[-1] == "database"
    [document] = json.loads(litereplica("--json", "diverged", "list").out)
    assert (document["id"], document["database"], document["node"]) == (ID, "dir/app.db", "a")
    assert (document["records"], document["primary"], document["primary_epoch"]) == (1, "b", 9)
    assert Position.parse(document["end"]).txid == 2


def test_the_running_node_is_no_hindrance(litereplica: CommandLine, data: Path) -> None:
    store = Store.open(data, Disk(), "a")
    assert litereplica("diverged", "list").code == 0
    store.close()


def test_an_export_is_the_database_as_it_was(litereplica: CommandLine, data: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.db"
    done = litereplica("diverged", "export", ID, target)
    assert (done.code, done.err) == (0, "")
    assert target.read_bytes() == (tmp_path / "300.db").read_bytes()
    connection = sqlite3.connect(target)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("SELECT count(*) FROM t").fetchall() == [(300,)]
    connection.close()
    again = litereplica("diverged", "export", ID, target)
    assert again.code == 1
    assert "exists" in again.error
    assert litereplica("diverged", "export", "nothing", tmp_path / "x").code == 1
    assert litereplica("diverged", "export", "../db", tmp_path / "x").code == 1
    assert litereplica("diverged", "export", ID, tmp_path / "no" / "x").code == 3
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".", "x"))) == []


def test_an_export_of_damaged_bytes_is_refused(litereplica: CommandLine, data: Path, tmp_path: Path) -> None:
    with (data / "diverged" / ID / "database").open("r+b") as file:
        file.seek(PAGE + 7)
        file.write(b"\xff\x00\xff")
    found = litereplica("diverged", "export", ID, tmp_path / "out.db")
    assert found.code == 4
    assert "damaged" in found.error
    assert not list(tmp_path.glob("*out.db*"))


def test_a_damaged_description_hides_no_other_entry(litereplica: CommandLine, data: Path) -> None:
    other = data / "diverged" / "x@0000000000000001.1"
    other.mkdir()
    for damage in (b"{", b"[]", b'{"format": 1}', b"\xff", b'{"format": 1, "base": 5}', b"null"):
        (other / "entry.json").write_bytes(damage)
        found = litereplica("diverged", "list")
        assert found.code == 4, damage
        assert ID in found.out
        assert "entry.json" in found.error
    (other / "entry.json").write_bytes(b'{"format": 2}')
    assert litereplica("diverged", "list").code == 1
    assert litereplica("diverged", "drop", "--yes", other.name).code == 1
    assert other.exists()


def test_a_drop_removes_one_entry_and_nothing_else(litereplica: CommandLine, data: Path) -> None:
    (data / "diverged" / "notes").mkdir()
    unsure = litereplica("diverged", "drop", ID)
    assert unsure.code == 1
    assert "--yes" in unsure.error
    stranger = data / "diverged" / ID / "mine.txt"
    stranger.write_text("keep")
    assert litereplica("diverged", "drop", "--yes", ID).code == 1
    stranger.unlink()
    assert litereplica("diverged", "drop", "--yes", ID).code == 0
    assert [path.name for path in (data / "diverged").iterdir()] == ["notes"]
    assert litereplica("diverged", "drop", "--yes", ID).code == 1
    assert litereplica("diverged", "drop", "--yes", "notes").code == 1
    assert (data / "db").exists()


def test_a_half_kept_entry_is_none(litereplica: CommandLine, data: Path) -> None:
    (data / "diverged" / ID / "entry.json").rename(data / "diverged" / ID / "entry.json.new")
    assert json.loads(litereplica("--json", "diverged", "list").out) == []
    assert litereplica("diverged", "drop", "--yes", ID).code == 1


def test_a_whole_log_of_an_earlier_version_is_listed_and_can_be_dropped(
    litereplica: CommandLine, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    store = Store.open(root, Disk(), "a")
    database = store.create("app.db")
    for rows in (1, 2, 3):
        commit(database, made(tmp_path, rows))
    set_log_aside(database, store.diverged)
    store.close()
    litereplica.configure(f"data: {{dir: {root}}}\n")
    [entry] = json.loads(litereplica("--json", "diverged", "list").out)
    assert (entry["database"], entry["records"], entry["kept"]) == ("app.db", 3, "log only")
    assert entry["base"] == str(Position.ZERO)
    refused = litereplica("diverged", "export", entry["id"], tmp_path / "out.db")
    assert refused.code == 1
    assert "only the log" in refused.error
    assert litereplica("diverged", "drop", "--yes", entry["id"]).code == 0
    assert not list((root / "diverged").iterdir())
