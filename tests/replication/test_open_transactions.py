"""A replica goes back while its file is not what its log says: an application is in a transaction, or it is damaged."""

from pathlib import Path

import pytest
import structlog

from litereplica.store.snapshot import FinishedSnapshot
from tests.replication.nodes import PAGE, Node, content, same, until
from tests.replication.test_divergence import count, export, forget, kept, share
from tests.store.journals import OpenTransaction


def installing(node: Node) -> "object":
    """What a node does that cuts off whoever had the file open."""

    async def install(finished: FinishedSnapshot) -> None:
        node.store.install(
            finished.database, finished.pages_file, finished.page_size, finished.page_count, finished.position,
            finished.checksums, finished.epoch, finished.timestamp_ms, apart=finished.apart,
        )  # fmt: skip
        node.database(finished.database).set_applied(finished.position.txid)

    return install


def damage(node: Node, pgno: int) -> None:
    with node.database().file_path.open("r+b") as file:
        file.seek((pgno - 1) * PAGE)
        file.write(b"damage")


@pytest.mark.parametrize("compared", [True, False])
async def test_what_is_kept_has_no_pages_of_a_transaction_that_is_open(
    primary: Node, replica: Node, tmp_path: Path, compared: bool
) -> None:
    await share(primary, replica)
    replica.touch(3)
    had, end = content(replica.database()), replica.position()
    replica.checkpoint()
    transaction = OpenTransaction(replica.database(), list(range(2, 30)))
    if compared:
        primary.touch(7)
    else:
        await forget(primary, 10)
    with structlog.testing.capture_logs() as lines:
        async with primary.serving(), replica.following(primary.port, install=installing(replica)):
            await until(lambda: same(primary, replica))
    [entry] = kept(replica)
    assert (entry.end, entry.whole) == (end, True)
    assert export(replica, entry, tmp_path) == had
    # The way back over the file is closed by the transaction's pages.
    assert count(lines, "snapshot_installed") == 1
    assert not transaction.journal.exists()
    assert content(primary.database()) == content(replica.database())


async def test_a_damaged_file_stays_with_what_only_this_node_has_and_the_others_go_on(
    primary: Node, replica: Node
) -> None:
    primary.grow(4, "other.db")
    await share(primary, replica)
    replica.touch(3)
    end = replica.position()
    replica.checkpoint()
    damage(replica, 17)
    before = replica.database().file_path.read_bytes()
    primary.touch(7)
    with structlog.testing.capture_logs() as lines:
        async with primary.serving(), replica.following(primary.port) as client:
            await until(lambda: count(lines, "transactions_not_kept") == 1)
            primary.touch(3, "other.db")
            await until(lambda: same(primary, replica, "other.db"))
            assert not client.caught_up
            assert client.foreign == {"app.db"}
    assert count(lines, "snapshot_begins") == 0
    assert count(lines, "replication_interrupted") == 0
    assert kept(replica) == []
    assert replica.position() == end
    assert replica.database().file_path.read_bytes() == before


async def test_a_snapshot_does_not_take_the_place_of_a_damaged_file_with_what_only_this_node_has(
    primary: Node, replica: Node
) -> None:
    await share(primary, replica)
    replica.touch(3)
    end = replica.position()
    replica.checkpoint()
    damage(replica, 17)
    before = replica.database().file_path.read_bytes()
    await forget(primary, 10)
    with structlog.testing.capture_logs() as lines:
        async with primary.serving(), replica.following(primary.port):
            await until(lambda: any("first one is page 17" in str(each.get("reason")) for each in lines))
    assert count(lines, "snapshot_installed") == 0
    assert kept(replica) == []
    assert replica.position() == end
    assert replica.database().file_path.read_bytes() == before


async def test_a_damaged_database_that_the_primary_does_not_know_stays(primary: Node, replica: Node) -> None:
    await share(primary, replica)
    replica.grow(8, "mine.db")
    replica.checkpoint("mine.db")
    path = replica.database("mine.db").file_path
    with path.open("r+b") as file:
        file.seek(3 * PAGE)
        file.write(b"damage")
    before = path.read_bytes()
    primary.store.epoch = 2
    primary.touch(1)
    with structlog.testing.capture_logs() as lines:
        async with primary.serving(), replica.following(primary.port):
            await until(lambda: count(lines, "database_unknown_to_primary") > 0)
            await until(lambda: same(primary, replica))
    assert path.read_bytes() == before
    assert replica.database("mine.db").exists
