"""Damage on the disk of a real node: found by its self-check, healed on a replica, reported on the primary."""

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest

from litereplica.node.scrub import Scrubber
from litereplica.store.store import folder_name
from tests.cli.running import CommandLine
from tests.cluster.comparing import assert_same, caught_up
from tests.store.application import Application, open_store
from tests.support.nodes import Node, Nodes
from tests.support.sql import Session, integrity, make_database, run_sql, shell
from tests.support.waiting import wait_until

QUICK: Final = {"rate": "200MiB", "pause": "200ms"}
OFF: Final = {"rate": "0"}
ROWS: Final = 4000


def scrubbing(node: Node, settings: dict[str, str]) -> Node:
    document = json.loads(node.config.read_text())
    document["data"]["scrub"] = settings
    document["log"] = {"level": "debug"}
    node.config.write_text(json.dumps(document))
    return node


def pair(nodes: Nodes, primary: dict[str, str], replica: dict[str, str], mode: str = "WAL") -> tuple[Node, Node]:
    """Two nodes with one database of some 4 MB that is wholly in its file on both."""
    first = scrubbing(nodes.make_primary("a"), primary).start()
    second = scrubbing(nodes.make_replica(first, "b"), replica).start()
    make_database(first.path())
    with Session(first.path()) as session:
        session.run(f"PRAGMA journal_mode={mode}")
        session.run("CREATE TABLE filler(id INTEGER PRIMARY KEY, payload BLOB)")
        session.run(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
            "INSERT INTO filler SELECT i, randomblob(1000) FROM n",
            ROWS,
        )
        if mode == "WAL":
            session.run("PRAGMA wal_checkpoint(TRUNCATE)")
    caught_up(first, [second])
    return first, second


def backing(node: Node) -> Path:
    return node.data / "files" / "app.db"


def content_pages(node: Node) -> int:
    return backing(node).stat().st_size // 4096


def flip(node: Node, pgno: int) -> bytes:
    """Damage a page on the disk; what it is then."""
    descriptor = os.open(backing(node), os.O_RDWR)
    try:
        page = bytearray(os.pread(descriptor, 4096, (pgno - 1) * 4096))
        page[2000] ^= 0x40
        os.pwrite(descriptor, page, (pgno - 1) * 4096)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return bytes(page)


def damaged(node: Node) -> list[int]:
    found: list[int] = node.status()["databases"][0]["damaged"]
    return found


def wait_in_file(node: Node) -> None:
    """The node counts all pages as being in the file, so that each must be what the checksums say."""

    def nothing_in_log() -> bool:
        return bool(verified(node)["log_pages"] <= 1)

    wait_until(nothing_in_log, f"{node.name} has everything in its file")


def verified(node: Node) -> dict[str, Any]:
    """The result of GET /verify."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", node.http_port, timeout=30)
    with closing(connection):
        connection.request("GET", "/verify?db=app.db")
        lines = connection.getresponse().read().decode().splitlines()
    found: dict[str, Any] = json.loads(lines[-1])
    return found


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_a_replica_with_damage_heals_and_its_readers_go_on(nodes: Nodes, mode: str) -> None:
    primary, replica = pair(nodes, OFF, QUICK, mode)
    wait_in_file(replica)
    pgno = content_pages(replica) // 2
    with closing(sqlite3.connect(f"file:{replica.path()}?mode=ro", uri=True)) as reader:
        assert reader.execute("SELECT count(*) FROM filler").fetchone() == (ROWS,)
        wrong = flip(replica, pgno)
        wait_until(lambda: replica.log_lines("damage_healed"), "the replica heals")
        assert len(replica.log_lines("pages_damaged")) == 1
        assert reader.execute("SELECT count(*), sum(length(payload)) FROM filler").fetchone() == (ROWS, 1000 * ROWS)
        assert reader.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        (kept,) = (replica.data / "damaged" / folder_name("app.db")).iterdir()
        assert kept.name.endswith(f"-{pgno}.pages")
        assert kept.read_bytes() == wrong
    wait_until(lambda: replica.get("/readyz")[0] == 200, "the replica is ready again")
    assert damaged(replica) == []
    run_sql(primary.path(), "INSERT INTO filler(payload) VALUES(randomblob(1000))")
    caught_up(primary, [replica])
    if mode == "WAL":
        assert_same([primary, replica])
    wait_in_file(replica)
    assert backing(replica).read_bytes() == backing(primary).read_bytes()
    assert verified(replica)["sound"]


def test_damage_is_found_in_pages_that_a_folded_wal_still_has(nodes: Nodes) -> None:
    primary = scrubbing(nodes.make("a"), QUICK).start()
    make_database(primary.path(), rows=20)
    with Session(primary.path()) as session:
        session.run("UPDATE t SET v = 'changed'")
        session.run("PRAGMA wal_checkpoint(PASSIVE)")
        assert verified(primary)["log_pages"] > 0
        # Two passes: one to see that the file is whole, one to see that it no longer is.
        right = backing(primary).read_bytes()
        passes(primary)
        flip(primary, 2)
        wait_until(lambda: damaged(primary) == [2], "the primary finds the damage")
        backing(primary).write_bytes(right)
        wait_until(lambda: damaged(primary) == [], "the primary sees that it is gone")


async def test_an_older_image_that_a_checkpoint_may_still_write_is_no_damage(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    try:
        app = Application(store)
        app.start()
        app.commit({pgno: app.page() for pgno in range(1, 40)})
        await app.checkpoint()
        original, other = app.oracle[1][7], app.page()
        app.commit({7: other})
        # The file has the newest image of every page by chance.
        app.commit({7: original})
        await app.sync()
        scrubber = Scrubber(store, 1 << 30, 0.1)
        for page, expected in ((original, {}), (other, {}), (app.page(), {app.name: [7]}), (original, {})):
            with app.database.file_path.open("r+b") as file:
                file.seek(6 * 512)
                file.write(page)
            await scrubber.look_at_all()
            assert scrubber.damaged == expected
    finally:
        store.close()


def passes(node: Node) -> None:
    """Return after two passes, the second of which has begun since."""
    begun = node.log.count("scrub_passed")
    wait_until(lambda: node.log.count("scrub_passed") >= begun + 2, f"{node.name} looks at its databases twice")


def test_damage_that_a_verification_finds_is_healed_too(nodes: Nodes) -> None:
    primary, replica = pair(nodes, OFF, OFF)
    wait_in_file(replica)
    last = content_pages(replica)
    wrong = [flip(replica, pgno) for pgno in (2, 3, last)]
    found = verified(replica)
    assert (found["sound"], found["damaged"]) == (False, [2, 3, last])
    wait_until(lambda: replica.log_lines("damage_healed"), "the replica heals")
    kept = sorted((replica.data / "damaged" / folder_name("app.db")).iterdir(), key=lambda path: path.stat().st_size)
    assert [each.read_bytes() for each in kept] == [wrong[2], wrong[0] + wrong[1]]
    wait_in_file(replica)
    assert backing(replica).read_bytes() == backing(primary).read_bytes()
    assert replica.get("/readyz")[0] == 200


def test_a_primary_with_damage_says_so_and_does_not_spread_it(nodes: Nodes) -> None:
    primary, replica = pair(nodes, QUICK, OFF)
    wait_in_file(primary)
    pgno = content_pages(primary) // 2
    flip(primary, pgno)
    wait_until(lambda: damaged(primary) == [pgno], "the primary finds the damage")
    assert primary.get("/readyz")[0] == 200
    assert "app.db" in primary.status()["reason"]
    assert len(primary.log_lines("pages_damaged")) == 1
    line = CommandLine(nodes.folder)
    line.configure("")
    found = line("--url", primary.url, "verify", "app.db")
    assert found.code == 4, found
    assert f"page {pgno} of app.db" in found.error
    assert line("--url", replica.url, "verify", "app.db").code == 0
    assert line("--url", replica.url, "verify", "app.db", "--against", primary.url).code == 4
    late = scrubbing(nodes.make_replica(primary, "c"), OFF)
    trim(primary)
    late.start(wait=False)
    wait_until(lambda: primary.log_lines("snapshot_failed"), "the primary refuses a snapshot")
    assert not (late.data / "files" / "app.db").exists()
    assert integrity(replica.path()) == "ok"
    assert len(primary.log_lines("snapshot_failed")) < 3
    # As docs/operations.md has it.
    copy = nodes.folder / "copy.db"
    assert shell(replica.path(), f".backup {copy}").returncode == 0
    assert shell(primary.path(), f".restore {copy}").returncode == 0
    wait_until(lambda: damaged(primary) == [], "the primary sees that the page is right again")
    assert line("--url", primary.url, "verify", "app.db").code == 0
    late.stop()
    late.start()
    caught_up(primary, [replica, late])
    assert line("--url", late.url, "verify", "app.db", "--against", primary.url).code == 0


@pytest.mark.parametrize("mode", ["WAL", "DELETE", "PERSIST"])
def test_what_applications_do_is_never_taken_for_damage(nodes: Nodes, mode: str) -> None:
    fast = {"rate": "500MiB", "pause": "100ms"}
    primary, replica = pair(nodes, fast, fast, mode)
    with Session(primary.path()) as session:
        session.run("PRAGMA synchronous=OFF")
        session.run("PRAGMA cache_size=50")
        for turn in range(12):
            for _ in range(3):
                session.run("BEGIN")
                session.run("UPDATE filler SET payload = randomblob(1000) WHERE id % 7 = ?", turn % 7)
                session.run("DELETE FROM filler WHERE id % 50 = ?", turn)
                session.run("ROLLBACK")
                session.run("UPDATE filler SET payload = randomblob(1000) WHERE id % 97 = ?", turn)
            if turn % 4 == 1:
                session.run("DELETE FROM filler WHERE id % 3 = 1")
                session.run("VACUUM")
                if mode == "DELETE":
                    session.run(f"PRAGMA page_size={8192 if turn % 8 == 1 else 4096}")
                    session.run("VACUUM")
                session.run("INSERT INTO filler(payload) SELECT payload FROM filler LIMIT 1200")
            if turn % 3 == 0:
                for node in (primary, replica):
                    found = verified(node)
                    assert found["type"] == "result", found
                    assert found["sound"], (node.name, found)
    caught_up(primary, [replica])
    for node in (primary, replica):
        assert verified(node)["sound"]
        assert not node.log_lines("pages_damaged"), node.log_lines("pages_damaged")
        assert not node.log_lines("scrub_failed"), node.log_lines("scrub_failed")


def test_a_replica_that_built_its_file_from_the_log_checks_it_too(nodes: Nodes) -> None:
    primary = scrubbing(nodes.make_primary("a"), OFF).start()
    make_database(primary.path(), rows=5000)
    replica = scrubbing(nodes.make_replica(primary, "b"), OFF).start()
    caught_up(primary, [replica])
    wait_in_file(replica)


def trim(primary: Node) -> None:
    """The log no longer reaches back to the beginning: another start with less retention forgets it."""
    document = json.loads(primary.config.read_text())
    document["data"]["retention"] = {"age": "1ms", "size": "1MiB"}
    primary.config.write_text(json.dumps(document))
    primary.stop()
    primary.start()
    with Session(primary.path()) as session:
        for _ in range(3):
            session.run("INSERT INTO filler(payload) SELECT randomblob(1000) FROM filler LIMIT 4000 OFFSET 0")
            session.run("DELETE FROM filler WHERE id > ?", ROWS)
            session.run("PRAGMA wal_checkpoint(TRUNCATE)")
            session.run("UPDATE filler SET payload = payload WHERE id = 1")
    wait_until(lambda: primary.log_lines("log_trimmed"), "the primary forgets old records")
