"""A replica goes on by itself when a disk, its own or the primary's, no longer refuses."""

import structlog

from tests.replication.nodes import Line, Node, content, old, same, until


async def test_records_meet_a_full_disk(primary: Node, replica: Node) -> None:
    primary.grow(10)
    with structlog.testing.capture_logs() as lines:
        async with primary.serving(), replica.following(primary.port):
            await until(lambda: same(primary, replica))
            replica.disk.full = True
            primary.touch(3)
            await until(lambda: any("free some room" in str(line.get("reason")) for line in lines))
            assert not same(primary, replica)
            replica.disk.full = False
            await until(lambda: same(primary, replica))
    assert content(primary.database()) == content(replica.database())


async def test_a_snapshot_meets_a_full_disk(primary: Node, replica: Node) -> None:
    await old(primary, 6000)
    line = Line()
    with structlog.testing.capture_logs() as lines:
        async with primary.serving(), line.to(primary.port), replica.following(line.port):
            await until(lambda: line.sent_bytes > 4_000_000)
            replica.disk.full = True
            await until(lambda: any("free some room" in str(line.get("reason")) for line in lines))
            replica.disk.full = False
            await until(lambda: same(primary, replica))
    assert content(primary.database()) == content(replica.database())
    assert not any((replica.root / "incoming").iterdir())


async def test_a_snapshot_that_cannot_be_made_durable_begins_anew(primary: Node, replica: Node) -> None:
    await old(primary, 3000)
    with structlog.testing.capture_logs() as lines:
        async with primary.serving(), replica.following(primary.port):
            replica.disk.loses = True
            await until(lambda: any("Input/output" in str(line.get("reason")) for line in lines))
            replica.disk.loses = False
            await until(lambda: same(primary, replica))
    assert content(primary.database()) == content(replica.database())


async def test_a_snapshot_that_the_primary_could_not_read_is_sent_when_it_can(primary: Node, replica: Node) -> None:
    await old(primary, 700)
    with structlog.testing.capture_logs() as lines:
        primary.disk.unreadable = frozenset({primary.database().file_path})
        async with primary.serving(), replica.following(primary.port):
            # Also the second time.
            await until(lambda: sum(line["event"] == "snapshot_failed" for line in lines) == 2)
            primary.touch(1)
            primary.disk.unreadable = frozenset()
            await until(lambda: same(primary, replica))
            primary.touch(3)
            await until(lambda: same(primary, replica))
    assert content(primary.database()) == content(replica.database())


async def test_many_that_cannot_be_read_do_not_make_each_other_wait(primary: Node, replica: Node) -> None:
    names = [f"{number}.db" for number in range(8)]
    await old(primary, 20, *names)
    with structlog.testing.capture_logs() as lines:
        primary.disk.unreadable = frozenset(primary.database(name).file_path for name in names)
        async with primary.serving(), replica.following(primary.port):
            await until(lambda: sum(line["event"] == "snapshot_failed" for line in lines) == 2 * len(names))
            primary.disk.unreadable = frozenset()
            # Tried after 1 s and after 2 more; after a minute when one of them has all the others' pauses too.
            await until(lambda: all(same(primary, replica, name) for name in names))
    for name in names:
        assert content(primary.database(name)) == content(replica.database(name))
