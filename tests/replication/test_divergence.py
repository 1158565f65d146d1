"""A replica with transactions that the primary does not have: what is lost is kept, the rest goes on, over TCP."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio

from litereplica.cluster.encoding import encode
from litereplica.cluster.messages import (
    GOODBYE_NOT_PRIMARY,
    Found,
    Goodbye,
    Message,
    Resume,
    Resync,
    Search,
    Tip,
    Welcome,
)
from litereplica.ltx.position import Point, Position
from litereplica.store.cluster_state import load_state
from litereplica.store.diverged import Entry, entries, export_entry
from litereplica.store.snapshot import FinishedSnapshot
from tests.replication.nodes import PAGE, Line, Node, content, same, until

Lines = list[Any]


@pytest.fixture
def lines() -> Iterator[Lines]:
    with structlog.testing.capture_logs() as captured:
        yield captured


def count(lines: Lines, event: str) -> int:
    return sum(line["event"] == event for line in lines)


def kept(node: Node) -> list[Entry]:
    found = list(entries(node.store.diverged))
    assert all(isinstance(each, Entry) for each in found), found
    return [each for each in found if isinstance(each, Entry)]


async def share(primary: Node, replica: Node, times: int = 5) -> Position:
    """A history that both have, wholly in the files of both; its last position."""
    primary.grow(40)
    async with primary.serving(), replica.following(primary.port):
        primary.touch(times)
        await until(lambda: same(primary, replica))
    primary.checkpoint()
    replica.checkpoint()
    replica.random.seed(99)
    return primary.position()


async def forget(primary: Node, times: int) -> None:
    """So many more transactions, and one: the log goes back to that one alone."""
    await primary.begin_segment()
    primary.touch(times)
    primary.checkpoint()
    await primary.begin_segment()
    primary.touch(1)
    await primary.trim()


async def converge(primary: Node, replica: Node) -> None:
    async with primary.serving(), replica.following(primary.port) as client:
        await until(lambda: same(primary, replica))
        primary.touch(3)
        await until(lambda: same(primary, replica))
        await until(lambda: client.caught_up)
        assert content(primary.database()) == content(replica.database())


def export(node: Node, entry: Entry, folder: Path) -> bytes:
    export_entry(node.store.diverged, entry, folder / "export.db")
    return (folder / "export.db").read_bytes()


@pytest.mark.parametrize("further", [0, 2])
@pytest.mark.parametrize("alike", [1, 3])
async def test_a_history_with_the_same_content_is_another_one(
    primary: Node, replica: Node, tmp_path: Path, alike: int, further: int
) -> None:
    """What counts up makes the same pages on both sides of a cut; both were acknowledged, and one of each is lost."""
    common = await share(primary, replica)
    primary.store.epoch = 2
    for number in range(alike):
        for node in (replica, primary):
            node.database().commit([(3, bytes([number + 1]) * PAGE)], node.database().page_count, lambda: None)
    assert replica.position() == primary.position()
    had = content(replica.database())
    primary.touch(further)
    async with primary.serving(), replica.following(primary.port):
        await until(lambda: bool(kept(replica)) and primary.database().point == replica.database().point)
    [entry] = kept(replica)
    assert (entry.base, entry.records, entry.common) == (common, alike, True)
    assert export(replica, entry, tmp_path) == had
    assert content(primary.database()) == content(replica.database())
    for txid in range(common.txid + 1, primary.position().txid + 1):
        assert replica.database().log.header(txid).epoch == 2


async def test_two_lost_histories_with_the_same_end_are_both_kept(primary: Node, replica: Node) -> None:
    """Each ends with a drop at the same TXID, the second after one transaction less."""
    common = await share(primary, replica)
    replica.touch(2)
    replica.database().drop()
    async with primary.serving(), replica.following(primary.port):
        await until(lambda: bool(kept(replica)) and same(primary, replica))
        primary.store.epoch = 2
        primary.touch(1)
        await until(lambda: same(primary, replica))
    replica.store.epoch = 2
    replica.checkpoint()
    replica.touch(1)
    replica.database().drop()
    primary.store.epoch = 3
    async with primary.serving(), replica.following(primary.port):
        await until(lambda: len(kept(replica)) == 2 and same(primary, replica))
    first, second = sorted(kept(replica), key=lambda each: each.base.txid)
    assert first.end == second.end
    assert [each.base.txid - common.txid for each in (first, second)] == [0, 1]
    assert content(primary.database()) == content(replica.database())


@pytest.mark.parametrize("lost", [1, 100, 10_000])
async def test_lost_transactions_are_kept_and_the_replica_goes_back_by_itself(
    primary: Node, replica: Node, lines: Lines, tmp_path: Path, lost: int
) -> None:
    common = await share(primary, replica)
    for _ in range(lost):
        replica.touch()
    had, end = content(replica.database()), replica.position()
    primary.touch(lost // 2 + 1)
    line = Line()
    async with primary.serving(), line.to(primary.port), replica.following(line.port):
        await until(lambda: same(primary, replica), 60)
        primary.touch(3)
        await until(lambda: same(primary, replica))
    assert content(primary.database()) == content(replica.database())
    [entry] = kept(replica)
    assert (entry.base, entry.end, entry.records) == (common, end, lost)
    assert entry.common
    assert entry.whole
    assert export(replica, entry, tmp_path) == had
    assert count(lines, "snapshot_begins") == 0
    assert count(lines, "went_back") == 1
    assert line.connections == 1


@pytest.mark.parametrize("checkpoint", [False, True])
async def test_a_replica_that_is_just_ahead(
    primary: Node, replica: Node, lines: Lines, tmp_path: Path, checkpoint: bool
) -> None:
    common = await share(primary, replica)
    replica.touch(4)
    replica.grow(3)
    had = content(replica.database())
    if checkpoint:
        replica.checkpoint()
    await converge(primary, replica)
    [entry] = kept(replica)
    assert (entry.base, entry.records) == (common, 5)
    assert entry.reason == "the primary ends there"
    assert export(replica, entry, tmp_path) == had
    assert count(lines, "snapshot_begins") == 0


async def test_pages_whose_past_is_not_here_need_a_snapshot(
    primary: Node, replica: Node, lines: Lines, tmp_path: Path
) -> None:
    await share(primary, replica)
    await replica.begin_segment()
    async with primary.serving(), replica.following(primary.port):
        primary.touch(1)
        await until(lambda: same(primary, replica))
    common = primary.position()
    replica.checkpoint()
    await replica.trim()
    assert replica.database().log.first_txid == common.txid
    replica.touch(4)
    had = content(replica.database())
    replica.checkpoint()  # and now the old pages are nowhere
    primary.touch(9)
    await converge(primary, replica)
    [entry] = kept(replica)
    assert (entry.base, entry.records, entry.common) == (common, 4, True)
    assert export(replica, entry, tmp_path) == had
    assert count(lines, "snapshot_installed") == 1
    assert any("neither in the log" in str(line.get("reason")) for line in lines)


async def test_a_common_position_that_only_the_file_has_is_enough(primary: Node, replica: Node, lines: Lines) -> None:
    common = await share(primary, replica)
    await replica.begin_segment()
    replica.touch(1)
    await replica.trim()
    replica.touch(3)
    assert replica.database().base == common  # nothing was folded since
    primary.touch(9)
    await converge(primary, replica)
    assert count(lines, "snapshot_begins") == 0


async def test_nothing_in_common(primary: Node, replica: Node, lines: Lines, tmp_path: Path) -> None:
    replica.random.seed(99)
    replica.grow(20)
    replica.touch(5)
    had = content(replica.database())
    replica.checkpoint()
    primary.grow(30)
    primary.touch(20)
    await converge(primary, replica)
    [entry] = kept(replica)
    assert (entry.base, entry.records, entry.common) == (Position.ZERO, 6, False)
    assert export(replica, entry, tmp_path) == had
    assert count(lines, "snapshot_installed") == 1


async def test_the_primary_no_longer_has_the_log_of_the_common_position(
    primary: Node, replica: Node, lines: Lines
) -> None:
    await share(primary, replica)
    replica.touch(30)
    await forget(primary, 10)
    assert primary.database().log.first_txid > 7
    await converge(primary, replica)
    [entry] = kept(replica)
    assert not entry.common
    assert entry.records == entry.end.txid
    assert count(lines, "snapshot_installed") == 1


async def test_a_replica_that_is_behind_what_the_log_keeps_is_not_diverged(
    primary: Node, replica: Node, lines: Lines
) -> None:
    await share(primary, replica)
    await forget(primary, 10)
    await converge(primary, replica)
    # That its position was common history nobody could confirm any more: its log is kept, nothing else is.
    assert all(entry.log_only for entry in kept(replica))
    assert count(lines, "history_diverged") == 0


async def test_commits_of_this_node_that_nobody_can_compare_any_more_are_kept_whole(
    primary: Node, replica: Node, lines: Lines, tmp_path: Path
) -> None:
    """It was the primary, and what it acknowledged then lies before all that the primary's log has."""
    await share(primary, replica)
    replica.touch(3)
    had, end = content(replica.database()), replica.position()
    await forget(primary, 30)
    assert primary.database().log.first_txid > end.txid
    await converge(primary, replica)
    [entry] = kept(replica)
    assert (entry.end, entry.records, entry.common, entry.log_only) == (end, end.txid, False, False)
    assert export(replica, entry, tmp_path) == had
    assert count(lines, "snapshot_installed") == 1


async def beyond_the_log(primary: Node, replica: Node) -> Position:
    """A large database whose replica ends with commits of its own, which the primary's log cannot tell any more."""
    primary.grow(6000, step=500)
    async with primary.serving(), replica.following(primary.port):
        await until(lambda: same(primary, replica))
    for node in (primary, replica):
        node.checkpoint()
    await replica.begin_segment()
    replica.random.seed(99)
    replica.touch(3)
    await forget(primary, 30)
    return replica.position()


async def test_no_snapshot_comes_while_there_is_no_room_to_keep_what_it_replaces(
    primary: Node, replica: Node, lines: Lines, tmp_path: Path
) -> None:
    end = await beyond_the_log(primary, replica)
    had = content(replica.database())
    replica.disk.no_large_files = True
    line = Line()
    async with primary.serving(), line.to(primary.port), replica.following(line.port):
        await until(lambda: line.connections == 4)
        assert any("free some room" in str(each.get("reason")) for each in lines)
        assert not any(each["event"] == "snapshot_begins" and "replica" not in each for each in lines)
        assert count(lines, "snapshot_sent") == 0
        replica.disk.no_large_files = False
        await until(lambda: same(primary, replica))
    [entry] = kept(replica)
    assert (entry.end, entry.whole) == (end, True)
    assert export(replica, entry, tmp_path) == had
    assert count(lines, "snapshot_installed") == 1
    assert content(primary.database()) == content(replica.database())


async def test_what_was_kept_before_a_snapshot_was_cut_is_not_kept_again(
    primary: Node, replica: Node, lines: Lines, tmp_path: Path
) -> None:
    await beyond_the_log(primary, replica)
    had = content(replica.database())
    first = replica.database().log.first_txid
    line = Line()
    async with primary.serving(), line.to(primary.port):
        line.cut_after_bytes = 9_000_000
        async with replica.following(line.port):
            await until(lambda: line.cut_after_bytes is None)
        assert [entry.whole for entry in kept(replica)] == [True]
        await replica.trim()
        assert replica.database().log.first_txid > first
        async with replica.following(line.port):
            await until(lambda: same(primary, replica))
    [entry] = kept(replica)
    assert export(replica, entry, tmp_path) == had
    assert content(primary.database()) == content(replica.database())


async def test_pages_come_while_a_copy_that_takes_long_is_made_and_the_install_waits_for_it(
    primary: Node, replica: Node, lines: Lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await beyond_the_log(primary, replica)
    had = content(replica.database())
    monkeypatch.setattr("litereplica.replication.receiver.KEEPING_WAIT_S", 0.01)
    slow = threading.Event()
    replica.disk.allocating = slow
    async with primary.serving(), replica.following(primary.port):
        await until(lambda: count(lines, "snapshot_sent") == 1)
        with trio.move_on_after(0.3):
            await until(lambda: same(primary, replica))
        assert not same(primary, replica)
        slow.set()
        await until(lambda: same(primary, replica))
    [entry] = kept(replica)
    assert export(replica, entry, tmp_path) == had
    assert count(lines, "transactions_kept") == 1
    assert content(primary.database()) == content(replica.database())


async def test_a_log_that_was_trimmed_while_it_was_to_be_set_aside_comes_back_without_its_beginning(
    primary: Node, replica: Node, lines: Lines
) -> None:
    primary.grow(40)
    async with primary.serving(), replica.following(primary.port):
        primary.touch(5)
        await until(lambda: same(primary, replica))
        await replica.begin_segment()
        primary.touch(5)
        await until(lambda: same(primary, replica))
    replica.checkpoint()
    replica.random.seed(99)
    replica.touch(3)
    primary.touch(9)

    async def install(finished: FinishedSnapshot) -> None:
        await replica.trim()  # while the applier lets go of the database
        await replica.install(finished)

    async with primary.serving(), replica.following(primary.port, install=install):
        await until(lambda: same(primary, replica))
    assert count(lines, "replication_interrupted") == 0
    assert replica.database().log.first_txid == 7
    [entry] = kept(replica)
    assert entry.whole


async def test_a_log_set_aside_by_an_install_that_was_cut_goes_with_the_next_connection(
    primary: Node, replica: Node, lines: Lines
) -> None:
    await share(primary, replica)
    replica.touch(3)
    primary.touch(5)
    broken = trio.Event()

    async def install(finished: FinishedSnapshot) -> None:
        await replica.install(finished)
        if not broken.is_set():
            broken.set()
            replica.disk.full = True

    async with primary.serving(), replica.following(primary.port, install=install):
        await until(lambda: count(lines, "replication_interrupted") > 0)
        assert any(each.log_only for each in kept(replica))
        replica.disk.full = False
        await until(lambda: same(primary, replica))
    [entry] = kept(replica)
    assert entry.whole
    assert content(primary.database()) == content(replica.database())


async def test_a_node_with_one_database_of_another_history_knows_that_until_it_has_gone_back(
    primary: Node, replica: Node, lines: Lines
) -> None:
    """Also when it is killed meanwhile: its other databases are as new as anybody's, and seem to say that it is."""
    primary.grow(4, "other.db")
    await share(primary, replica)
    replica.touch(3)
    primary.store.epoch = 2
    primary.touch(5)
    primary.touch(5, "other.db")
    goes_on = trio.Event()

    async def install(finished: FinishedSnapshot) -> None:
        await goes_on.wait()
        await replica.install(finished)

    def remembered() -> bool:
        return load_state(replica.root).parted

    assert not remembered()
    async with primary.serving(), replica.following(primary.port, install=install) as client:
        await until(lambda: same(primary, replica, "other.db"))
        assert remembered()
        assert client.foreign == {"app.db"}
        goes_on.set()
        await until(lambda: same(primary, replica))
        await until(lambda: not remembered())
    # Cut off while it goes back, it finds out again.
    replica.touch(1)
    primary.touch(2)
    never = trio.Event()

    async def wait(_: FinishedSnapshot) -> None:
        await never.wait()

    async with primary.serving(), replica.following(primary.port, install=wait):
        await until(remembered)
    assert remembered()
    await converge(primary, replica)
    await until(lambda: not remembered())


async def test_databases_that_shrank_and_were_dropped_come_back(primary: Node, replica: Node, lines: Lines) -> None:
    await share(primary, replica)
    primary.grow(20, "b.db")
    async with primary.serving(), replica.following(primary.port):
        await until(lambda: same(primary, replica, "b.db"))
    replica.checkpoint("b.db")
    replica.commit([1, 2], 5)
    replica.touch(2)
    replica.grow(60)
    replica.database("b.db").drop()
    replica.database("b.db").file_path.unlink()
    replica.commit([1, 2, 3], 3, "b.db")
    async with primary.serving(), replica.following(primary.port):
        await until(lambda: same(primary, replica) and same(primary, replica, "b.db"))
        primary.touch(2)
        primary.touch(2, "b.db")
        await until(lambda: same(primary, replica) and same(primary, replica, "b.db"))
    assert content(primary.database()) == content(replica.database())
    assert content(primary.database("b.db")) == content(replica.database("b.db"))
    assert {entry.database for entry in kept(replica)} == {"app.db", "b.db"}
    assert count(lines, "went_back") == 2


async def test_a_common_position_where_the_database_was_dropped(primary: Node, replica: Node, lines: Lines) -> None:
    await share(primary, replica)
    async with primary.serving(), replica.following(primary.port):
        await until(lambda: same(primary, replica))
        primary.database().drop()
        await until(lambda: same(primary, replica))
    replica.commit([1, 2], 2)
    await converge_dropped(primary, replica)
    assert count(lines, "went_back") == 1


async def converge_dropped(primary: Node, replica: Node) -> None:
    async with primary.serving(), replica.following(primary.port):
        await until(lambda: same(primary, replica))
        assert not replica.database().exists
        primary.commit([1, 2, 3], 3)
        await until(lambda: same(primary, replica))


async def test_another_page_size_since_the_common_position_needs_a_snapshot(
    primary: Node, replica: Node, lines: Lines, tmp_path: Path
) -> None:
    from tests.replication.test_journals import resize

    await share(primary, replica)
    await resize(replica, 30, 512)
    replica.commit([1, 4], 30, page_size=512)
    had = replica.position()
    await converge(primary, replica)
    [entry] = kept(replica)
    assert (entry.page_size, entry.pages, entry.end) == (512, 30, had)
    export_entry(replica.store.diverged, entry, tmp_path / "export.db")
    assert count(lines, "snapshot_installed") == 1


async def test_cut_anywhere_it_begins_anew_and_keeps_once(primary: Node, replica: Node, lines: Lines) -> None:
    await share(primary, replica)
    replica.touch(50)
    primary.touch(20)
    line = Line()
    async with primary.serving(), line.to(primary.port):
        for step in range(0, 600, 40):
            line.cut_after_bytes = line.sent_bytes + step
            async with replica.following(line.port):
                await until(lambda: line.cut_after_bytes is None or same(primary, replica))
                if same(primary, replica):
                    break
        line.cut_after_bytes = None
        async with replica.following(line.port):
            await until(lambda: same(primary, replica))
    assert content(primary.database()) == content(replica.database())
    assert len(kept(replica)) == 1


async def test_a_database_that_only_this_node_has_goes_when_a_newer_epoch_does_not_know_it(
    primary: Node, replica: Node, lines: Lines, tmp_path: Path
) -> None:
    await share(primary, replica)
    replica.grow(12, "mine.db")
    replica.touch(3, "mine.db")
    had = content(replica.database("mine.db"))
    await converge(primary, replica)
    assert replica.database("mine.db").exists, "of the same epoch: it may have been made while nobody looked"
    primary.store.epoch = 2
    async with primary.serving(), replica.following(primary.port):
        await until(lambda: not replica.database("mine.db").exists)
        primary.touch(1)
        await until(lambda: same(primary, replica))
        [entry] = [each for each in kept(replica) if not each.log_only]
        assert entry.database == "mine.db"
        assert export(replica, entry, tmp_path) == had
        primary.grow(4, "mine.db")
        await until(lambda: same(primary, replica, "mine.db"))
        assert content(replica.database("mine.db")) == content(primary.database("mine.db"))


async def test_a_database_that_the_primary_makes_while_this_nodes_own_is_kept_is_not_dropped(
    primary: Node, replica: Node, lines: Lines, tmp_path: Path
) -> None:
    """Its snapshot has come, and is being made durable, when the copy is ready."""
    await share(primary, replica)
    # Of a primary that is gone: nobody but who drops it keeps it.
    replica.store.node = "c"
    replica.grow(500, "mine.db")
    replica.store.node = replica.name
    had = content(replica.database("mine.db"))
    primary.store.epoch = 2
    kept_first, arrived = threading.Event(), threading.Event()
    replica.disk.allocating = kept_first
    installing = threading.Event()

    def wait(operation: str, path: Path) -> int:
        if operation == "fdatasync" and path == replica.root / "incoming/mine.db/pages":
            arrived.set()
            assert installing.wait(20)
        return 0

    replica.disk.refuses = wait
    async with primary.serving(), replica.following(primary.port):
        await until(lambda: any((replica.root / "diverged").glob("mine.db@*/database")))
        primary.grow(4, "mine.db")
        await until(arrived.is_set)
        kept_first.set()
        await until(lambda: count(lines, "database_unknown_to_primary") == 1)
        installing.set()
        await until(lambda: same(primary, replica, "mine.db"))
        primary.touch(3, "mine.db")
        await until(lambda: same(primary, replica, "mine.db"))
    [entry] = [each for each in kept(replica) if not each.log_only]
    assert export(replica, entry, tmp_path) == had
    assert content(replica.database("mine.db")) == content(primary.database("mine.db"))
    assert count(lines, "snapshot_installed") == 1
    assert count(lines, "replication_interrupted") == 0


async def test_who_drops_a_database_and_who_replaces_it_keep_it_once(
    primary: Node, replica: Node, lines: Lines, tmp_path: Path
) -> None:
    await share(primary, replica)
    replica.grow(500, "mine.db")
    had = content(replica.database("mine.db"))
    primary.store.epoch = 2
    replica.disk.allocating = threading.Event()
    copies: list[Path] = []

    def note(operation: str, path: Path) -> int:
        if operation == "allocate" and path.name == "database":
            copies.append(path)
        return 0

    replica.disk.refuses = note
    async with primary.serving(), replica.following(primary.port):
        await until(lambda: len(copies) == 1)
        primary.grow(4, "mine.db")
        with trio.move_on_after(0.5):
            await until(lambda: len(copies) == 2)
        assert len(copies) == 1, "one clears away what the other has half made"
        replica.disk.allocating.set()
        await until(lambda: same(primary, replica, "mine.db"))
    [entry] = [each for each in kept(replica) if not each.log_only]
    assert entry.id.endswith(".1")
    assert export(replica, entry, tmp_path) == had
    assert count(lines, "transactions_kept") == 1


async def test_a_full_disk_keeps_the_records_or_waits(primary: Node, replica: Node, lines: Lines) -> None:
    await share(primary, replica)
    replica.touch(5)
    replica.disk.full = True
    async with primary.serving(), replica.following(primary.port):
        await until(lambda: any("free some room" in str(line.get("reason")) for line in lines))
        assert not same(primary, replica)
        replica.disk.full = False
        await until(lambda: same(primary, replica))
    [entry] = kept(replica)
    assert entry.whole
    assert content(primary.database()) == content(replica.database())


async def test_the_file_is_as_large_as_before_when_one_page_was_lost(
    make_node: Callable[..., Node], primary: Node
) -> None:
    """A large database: the content is built in pieces, and its file copied by the kernel."""
    replica = make_node("b")
    primary.grow(2000, step=500)
    async with primary.serving(), replica.following(primary.port):
        await until(lambda: same(primary, replica))
    replica.checkpoint()
    replica.random.seed(99)
    replica.touch(2)
    replica.checkpoint()
    had = content(replica.database())
    assert len(had) == 2000 * PAGE
    await converge(primary, replica)
    [entry] = kept(replica)
    assert (replica.store.diverged / entry.id / "database").read_bytes() == had


# ------------------------------------------------------------------------------------------------- what others may say
async def answering(replica: Node, answer: Callable[[Message], bytes], welcome: Welcome, lines: Lines) -> str:
    """What the replica says about a primary that answers its messages so."""
    from litereplica.cluster.framing import MessageReader

    async def handle(stream: trio.SocketStream) -> None:
        reader = MessageReader()
        async with stream:
            await stream.send_all(encode(welcome))
            while data := await stream.receive_some(4096):
                reader.room()[: len(data)] = data
                reader.received(len(data))
                while (message := reader.next()) is not None:
                    if reply := answer(message):
                        await stream.send_all(reply)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, handle, 0)
        port = listeners[0].socket.getsockname()[1]
        async with replica.following(port):
            await until(lambda: count(lines, "replication_interrupted") > 0)
        nursery.cancel_scope.cancel()
    return next(str(line["reason"]) for line in lines if line["event"] == "replication_interrupted")


async def test_an_answer_to_nothing_that_was_asked_is_refused(replica: Node, lines: Lines) -> None:
    replica.grow(10)
    replica.touch(5)
    at = replica.position()
    welcome = Welcome("a", 1, {"app.db": Tip(at, 1)}, frozenset(), frozenset({"app.db"}))

    def wrong(message: Message) -> bytes:
        return encode(Found(1, "app.db", 77)) if isinstance(message, Search) else b""

    assert "not asked for" in await answering(replica, wrong, welcome, lines)
    assert replica.position() == at
    lines.clear()
    unasked = Welcome("a", 1, {"app.db": Tip(at, 1)})
    assert "not begun" in await answering(replica, lambda _: encode(Found(1, "app.db", 3)), unasked, lines)
    lines.clear()
    foreign = Welcome("a", 1, {"x.db": Tip(at, 1)}, frozenset(), frozenset({"x.db"}))
    assert "does not have" in await answering(replica, lambda _: b"", foreign, lines)


async def test_a_position_that_retention_takes_during_the_search_needs_a_snapshot(replica: Node, lines: Lines) -> None:
    replica.grow(10)
    replica.touch(200)
    replica.checkpoint()
    database = replica.database()
    await replica.store.advance_base(database)
    await replica.begin_segment()
    replica.touch(3)
    await database.log.sync()
    asked: list[str] = []

    def answer(message: Message) -> bytes:
        if isinstance(message, Search):
            assert database.log.trim(database.saved_base.txid, -60, 1 << 40)
            return encode(Found(1, "app.db", message.samples[0].txid))
        if isinstance(message, Resync):
            asked.append(message.reason)
            return encode(Goodbye(GOODBYE_NOT_PRIMARY, "that is all", 1))
        return b""

    welcome = Welcome("a", 1, {"app.db": Tip(Position(300, 1), 1)}, frozenset(), frozenset({"app.db"}))
    await answering(replica, answer, welcome, lines)
    assert "trimmed meanwhile" in asked[0]


async def test_a_wish_for_a_position_that_is_not_the_primarys_is_answered_with_a_snapshot(
    primary: Node, lines: Lines
) -> None:
    from litereplica.cluster.framing import MessageReader
    from litereplica.cluster.messages import Hello, Snapshot

    primary.grow(10)
    primary.checkpoint()
    ahead = Point(primary.position().txid + 5, 5, 1)
    reader = MessageReader()
    async with primary.serving(), await trio.open_tcp_stream("127.0.0.1", primary.port) as stream:
        await stream.send_all(encode(Hello("b", 1, {"app.db": ahead})))
        with trio.fail_after(10):
            while True:
                message = reader.next()
                if message is None:
                    data = await stream.receive_some(4096)
                    reader.room()[: len(data)] = data
                    reader.received(len(data))
                elif isinstance(message, Welcome):
                    assert message.diverged == {"app.db"}
                    await stream.send_all(encode(Resume(1, "app.db", ahead)))
                elif isinstance(message, Snapshot):
                    break
