"""Snapshots over TCP: joining under load, cuts, other histories."""

import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from litereplica.cluster.messages import PAGES_LIMIT_BYTES, Acknowledged
from litereplica.ltx.encode import encode_record
from litereplica.replication.receiver import INLINE_BYTES
from litereplica.store.snapshot import resume_snapshots
from tests.replication.nodes import PAGE, Line, Node, content, old, same, until


async def test_a_replica_that_the_log_does_not_reach_gets_a_snapshot(primary: Node, replica: Node) -> None:
    await old(primary, 700)
    async with primary.serving() as server, replica.following(primary.port) as client:
        await until(lambda: same(primary, replica))
        primary.touch(5)
        await until(lambda: same(primary, replica))
        await until(lambda: client.caught_up)
        await until(lambda: server.replicas["b"].lag_ms() == 0)
        assert content(primary.database()) == content(replica.database())
        assert not any((replica.root / "incoming").iterdir())
        assert list(primary.database().log._pins) == ["replica b 1"]


async def test_a_replica_joins_under_load(primary: Node, replica: Node) -> None:
    await old(primary, 4000)
    async with primary.serving(), replica.following(primary.port):
        for number in range(400):
            primary.touch(1)
            if number % 40 == 20:
                primary.grow(7)
            if number % 100 == 50:
                # The file changes under the snapshot, and the base with it.
                primary.checkpoint()
            await trio.lowlevel.checkpoint()
        await until(lambda: same(primary, replica))
        assert content(primary.database()) == content(replica.database())


async def test_the_file_shrinks_and_grows_under_the_snapshot(primary: Node, replica: Node) -> None:
    await old(primary, 3000)
    line = Line()
    async with primary.serving(), line.to(primary.port), replica.following(line.port):
        await until(lambda: line.sent_bytes > 2_000_000)
        primary.commit([1, 3], 900)
        primary.checkpoint()
        await until(lambda: line.sent_bytes > 3_000_000)
        primary.grow(400)
        primary.checkpoint()
        primary.touch(4)
        await until(lambda: same(primary, replica))
        assert content(primary.database()) == content(replica.database())


async def test_the_database_is_dropped_and_made_again_under_the_snapshot(primary: Node, replica: Node) -> None:
    await old(primary, 3000)
    line = Line()
    async with primary.serving(), line.to(primary.port), replica.following(line.port):
        await until(lambda: line.sent_bytes > 2_000_000)
        primary.database().drop()
        primary.database().file_path.unlink()
        primary.commit([1, 2, 3], 3, page_size=512)
        await until(lambda: same(primary, replica))
        assert replica.database().page_size == 512
        assert replica.database().page_count == 3


async def test_a_dropped_database_whose_log_is_gone(primary: Node, replica: Node) -> None:
    await old(primary, 10)
    await primary.begin_segment()
    primary.database().drop()
    await primary.trim()
    assert primary.database().log.first_txid == primary.position().txid
    async with primary.serving(), replica.following(primary.port):
        await until(lambda: same(primary, replica))
        assert not replica.database().exists
        primary.commit([1, 2], 2)
        await until(lambda: same(primary, replica))
        assert content(replica.database()) == content(primary.database())


async def test_a_log_that_goes_on_beyond_the_position_does_not_hold_up_the_others(primary: Node, replica: Node) -> None:
    """No step leaves such a log; a replica does not believe its snapshot, and asks again."""
    primary.grow(50, "first.db")
    primary.checkpoint("first.db")
    await primary.begin_segment("first.db")
    primary.touch(2, "first.db")
    await old(primary, 50)
    database = primary.database("first.db")
    header = database.next_header(PAGE, 0, 0)
    database.log.append(encode_record(header, [], 0), header.min_txid, header.timestamp_ms)
    async with primary.serving(), replica.following(primary.port):
        await until(lambda: same(primary, replica), 5.0)
    assert replica.position("first.db") != database.position


async def test_a_connection_cut_in_mid_snapshot_goes_on_where_it_was(primary: Node, replica: Node) -> None:
    await old(primary, 4000)
    size = 4000 * PAGE
    line = Line()
    async with primary.serving(), line.to(primary.port), replica.following(line.port) as client:
        for cut in (3_000_000, 9_000_000):
            line.cut_after_bytes = cut
            await until(lambda: line.cut_after_bytes is None)
            primary.touch(1)
        await until(lambda: same(primary, replica))
        assert client.connected
        assert line.connections == 3
        # Only the chunks that were cut are sent again.
        assert line.sent_bytes < size + 2 * (PAGES_LIMIT_BYTES + 1_000_000) + 200_000
        assert content(primary.database()) == content(replica.database())


async def test_a_connection_cut_in_the_records_of_a_snapshot(primary: Node, replica: Node) -> None:
    await old(primary, 100)
    primary.grow(1000, step=100)
    line = Line()
    line.cut_after_bytes = 100 * PAGE + 2_000_000
    async with primary.serving(), line.to(primary.port), replica.following(line.port):
        await until(lambda: line.cut_after_bytes is None)
        primary.touch(3)
        await until(lambda: same(primary, replica))
        assert line.connections == 2
        assert content(primary.database()) == content(replica.database())


async def test_a_snapshot_goes_on_after_the_replica_was_restarted(
    make_node: Callable[..., Node], primary: Node
) -> None:
    await old(primary, 40_000)
    replica = make_node("b")
    line = Line()
    line.cut_after_bytes = 100_000_000
    async with primary.serving(), line.to(primary.port):
        async with replica.following(line.port):
            await until(lambda: line.cut_after_bytes is None)
            line.go_silent()
        replica.close()
        replica = make_node("b")
        found = resume_snapshots(replica.store)
        done = found["app.db"].progress.next_pgno - 1
        found["app.db"].close()
        assert done * PAGE >= 64_000_000
        primary.touch(3)
        before = line.sent_bytes
        line.speak()
        async with replica.following(line.port):
            await until(lambda: same(primary, replica))
        assert line.sent_bytes - before < (40_000 - done) * PAGE + 1_000_000
        assert content(primary.database()) == content(replica.database())


async def test_other_databases_go_on_during_a_snapshot(primary: Node, replica: Node) -> None:
    await old(primary, 20_000)
    primary.grow(5, "small.db")
    async with primary.serving(), replica.following(primary.port):
        await until(lambda: (replica.root / "incoming").exists() and any((replica.root / "incoming").iterdir()))
        rounds = 0
        while not same(primary, replica):
            primary.touch(1, "small.db")
            await until(lambda: same(primary, replica, "small.db"))
            rounds += 1
        assert rounds > 5


async def test_several_snapshots_for_several_replicas(make_node: Callable[..., Node], primary: Node) -> None:
    names = [f"{number}.db" for number in range(10)]
    await old(primary, 300, *names)
    b, c = make_node("b"), make_node("c")
    async with primary.serving(), b.following(primary.port), c.following(primary.port):
        for name in names:
            primary.touch(1, name)
            await until(lambda name=name: same(primary, b, name) and same(primary, c, name))  # type: ignore[misc]
            assert content(b.database(name)) == content(c.database(name)) == content(primary.database(name))


async def test_a_replica_of_another_history_gets_a_snapshot(primary: Node, replica: Node) -> None:
    primary.grow(10)
    primary.touch(5)
    primary.checkpoint()
    replica.random.seed(99)
    replica.grow(20)
    replica.checkpoint()
    assert replica.position().txid < primary.position().txid
    async with primary.serving() as server, replica.following(primary.port):
        await until(lambda: same(primary, replica))
        primary.touch(1)
        last = primary.position().txid
        await until(lambda: same(primary, replica))
        await until(lambda: server.replicas["b"].databases.get("app.db") == Acknowledged(last, last))
        assert content(primary.database()) == content(replica.database())


async def test_records_that_do_not_fit_on_the_way_lead_to_a_snapshot_beside_the_other_databases(
    primary: Node, replica: Node
) -> None:
    primary.grow(10)
    primary.grow(10, "other.db")
    primary.checkpoint()
    line = Line()
    async with primary.serving(), line.to(primary.port), replica.following(line.port) as client:
        await until(lambda: same(primary, replica) and same(primary, replica, "other.db"))
        replica.checkpoint()
        # Bytes that changed behind the replica's back: its checksums no longer lead to the primary's.
        replica.database().checksums.table[0] ^= 1
        primary.touch(1)
        primary.touch(1, "other.db")
        await until(lambda: same(primary, replica) and same(primary, replica, "other.db"))
        primary.touch(1)
        await until(lambda: same(primary, replica))
        assert client.connected
        assert line.connections == 1
        assert content(primary.database()) == content(replica.database())


async def test_a_replica_beyond_the_hard_cap_gets_a_snapshot(primary: Node, replica: Node) -> None:
    line = Line()
    primary.grow(10)
    async with primary.serving(timeout_s=30.0), line.to(primary.port), replica.following(line.port, timeout_s=30.0):
        await until(lambda: same(primary, replica))
        replica.checkpoint()
        line.go_silent()
        for _ in range(12):
            primary.commit(list(range(1, 1025)), 1024)
            await trio.lowlevel.checkpoint()
        primary.checkpoint()
        await primary.store.maintain(1e9, 20_000_000)
        assert primary.database().log.first_txid > 2
        line.speak()
        await until(lambda: same(primary, replica))
        assert content(primary.database()) == content(replica.database())
    # What it had was the primary's history: nothing of it is lost, and nothing is kept.
    assert not any((replica.root / "diverged").iterdir())


def name_of(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


async def test_pages_are_not_written_to_another_file_when_those_before_cannot_be_saved(
    primary: Node, replica: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The save fails in one thread while another one writes: the descriptor must stay what it is until that is done."""
    monkeypatch.setattr("litereplica.store.snapshot.SAVE_BYTES", 1_000_000)
    saving, writing = threading.Event(), threading.Event()
    write, make_durable = replica.disk.pwrite, replica.disk.fdatasync
    found: list[str] = []

    def pwrite(descriptor: int, data: bytes | memoryview, offset: int) -> int:
        if saving.is_set() and not writing.is_set() and len(data) > INLINE_BYTES:
            writing.set()
            time.sleep(0.3)
            found.append(name_of(descriptor))
        return write(descriptor, data, offset)

    def fdatasync(descriptor: int) -> None:
        if not saving.is_set() and "/incoming/" in name_of(descriptor):
            saving.set()
            assert writing.wait(10)
            raise OSError(errno.EIO, "Input/output error")
        make_durable(descriptor)

    monkeypatch.setattr(replica.disk, "pwrite", pwrite)
    monkeypatch.setattr(replica.disk, "fdatasync", fdatasync)
    await old(primary, 4000)
    async with primary.serving(), replica.following(primary.port):
        await until(lambda: same(primary, replica))
    assert content(primary.database()) == content(replica.database())
    [path] = found
    assert "/incoming/" in path
    assert "deleted" not in path
