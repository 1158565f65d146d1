"""A transaction of a replica's application, from its record to its outcome in the replica's log."""

import errno
import random
import sqlite3
from array import array
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import trio

from litereplica.ltx.checksum import page_checksum
from litereplica.ltx.format import Origin
from litereplica.ltx.position import Position
from litereplica.store.adopt import adopt, record_file
from litereplica.store.awaited import Awaited
from litereplica.store.database import Database, Pages
from litereplica.store.local import Stale
from tests.store.application import NAME, Content, rolling
from tests.store.pair import ORIGIN, Held, Pair


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    pair = Pair(tmp_path)
    pair.start()
    yield pair
    pair.close()


async def test_a_transaction_is_complete_here_before_anybody_sees_its_position(pair: Pair) -> None:
    database = pair.database
    changes = pair.change()
    held = Held(database)
    awaited = held.awaited(await pair.record(changes))
    awaited.begin(database)
    heard: list[tuple[int, int, int]] = []
    pair.replica.listeners.append(lambda each: heard.append((each.position.txid, each.applied, len(held.completed_at))))
    committed = pair.commit(changes)
    assert not awaited.settled
    pair.deliver()
    assert (awaited.committed, awaited.refused, awaited.unknown, awaited.failure) == (True, None, None, None)
    assert held.completed_at == [committed]
    assert database.position == committed
    assert heard == [(4, 4, 1)]
    assert database.awaited is None
    with trio.fail_after(1):
        await awaited.wait()


async def test_records_that_come_in_one_piece_with_it_are_the_appliers(pair: Pair) -> None:
    database = pair.database
    changes = pair.change()
    awaited = Held(database).awaited(await pair.record(changes))
    awaited.begin(database)
    pair.commit(changes)
    pair.application.commit()
    pair.commit(pair.change(), Origin("node-3", 5))
    pair.deliver()
    assert awaited.committed
    assert (database.position.txid, database.applied) == (6, 4)
    assert [database.origin_at(txid) for txid in (4, 5, 6)] == [ORIGIN, None, Origin("node-3", 5)]


async def test_another_record_in_its_place_refuses_it(pair: Pair) -> None:
    database = pair.database
    changes = pair.change()
    held = Held(database)
    for other in (None, Origin("node-2", 78), Origin("node-3", 77)):
        pair.applied()
        awaited = held.awaited(await pair.record(changes))
        awaited.begin(database)
        if other is None:
            pair.application.commit({1: pair.application.page()})
        else:
            pair.commit(pair.change(), other)
        # What comes behind it is too late.
        pair.commit(changes)
        pair.deliver()
        assert not awaited.committed
        assert "another transaction of dir/app.db came first" in (awaited.refused or "")
        await awaited.wait()
    assert held.completed_at == []
    assert database.applied == 7


async def test_it_is_settled_only_by_its_whole_record(pair: Pair) -> None:
    database = pair.database
    changes = pair.change()
    held = Held(database)
    awaited = held.awaited(await pair.record(changes))
    awaited.begin(database)
    pair.commit(changes)
    data = pair.undelivered()
    for start, stop in pairwise(range(len(data))):
        pair.deliver(data[start:stop])
        assert not awaited.settled
    pair.deliver(data[-1:])
    assert awaited.committed


@pytest.mark.parametrize("first", ["written here", "not written here"])
async def test_a_record_that_left_other_pages_than_expected_is_left_to_the_applier(pair: Pair, first: str) -> None:
    database = pair.database
    changes = pair.change()[0 if first == "written here" else 1 :]
    held = Held(database)
    awaited = held.awaited(await pair.record(changes))
    awaited.begin(database)
    pair.commit([(1, pair.application.page()), (changes[-1][0], pair.application.page())])
    pair.deliver()
    assert awaited.committed
    assert len(held.completed_at) == 1
    assert (database.position.txid, database.applied) == (4, 3)
    assert database.unlaid.at_rest


async def test_bytes_that_cannot_be_written_leave_the_record_to_the_applier(pair: Pair) -> None:
    database = pair.database
    changes = pair.change()
    held = Held(database, OSError(errno.EIO, "Input/output error"))
    awaited = held.awaited(await pair.record(changes))
    awaited.begin(database)
    pair.commit(changes)
    pair.application.commit()
    pair.deliver()
    assert awaited.committed
    assert awaited.failure is held.failure
    assert (database.position.txid, database.applied) == (5, 3)


async def test_only_a_transaction_on_the_newest_position_is_awaited(pair: Pair) -> None:
    database = pair.database
    first = Held(database).awaited(await pair.record(pair.change()))
    first.begin(database)
    with pytest.raises(AssertionError):
        Held(database).awaited(await pair.record(pair.change())).begin(database)
    first.withdraw(database)
    late = Held(database).awaited(await pair.record(pair.change()))
    pair.application.commit()
    pair.deliver()
    with pytest.raises(Stale, match="begin it again"):
        late.begin(database)
    assert database.awaited is None
    assert not first.settled


async def test_what_nobody_awaits_any_more_is_the_appliers(pair: Pair) -> None:
    database = pair.database
    changes = pair.change()
    held = Held(database)
    awaited = held.awaited(await pair.record(changes))
    awaited.begin(database)
    awaited.withdraw(database)
    awaited.withdraw(database)
    pair.commit(changes)
    pair.deliver()
    assert not awaited.settled
    assert held.completed_at == []
    assert (database.position.txid, database.applied) == (4, 3)


async def test_a_transaction_that_makes_a_database_is_awaited_too(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    paths = [store.file_path(NAME) for store in (pair.replica, pair.primary)]
    for path in paths:
        path.parent.mkdir()
    connection = sqlite3.connect(paths[0])
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    transaction = await record_file(pair.replica, NAME, ORIGIN)
    held = Held(pair.database)
    awaited = held.awaited(transaction)
    awaited.begin(pair.database)
    # What the applier makes of it on the primary.
    paths[1].write_bytes(paths[0].read_bytes())
    await adopt(pair.primary, NAME, ORIGIN)
    pair.deliver()
    assert awaited.committed
    assert pair.database.position == held.completed_at[0] == pair.application.database.position
    assert pair.database.applied == 1
    assert pair.database.origin_at(1) == ORIGIN
    pair.close()


def install(pair: Pair, content: Content, at: int) -> Database:
    store, disk = pair.replica, pair.replica.disk
    path = store.incoming / "pages"
    descriptor = disk.open(path, 0o102)
    disk.pwrite(descriptor, b"".join(content[pgno] for pgno in sorted(content)), 0)
    disk.fdatasync(descriptor)
    disk.close(descriptor)
    entries = array("Q", [page_checksum(pgno, content[pgno]) for pgno in sorted(content)])
    return store.install(NAME, path, 512, len(content), Position(at, rolling(content)), entries, 1, 1234)


@pytest.mark.parametrize("pages", [0, 9])
async def test_a_snapshot_leaves_the_outcome_unknown(pair: Pair, pages: int) -> None:
    """The transaction may be in it or not: the primary can tell, this node's log cannot."""
    database = pair.database
    held = Held(database)
    awaited = held.awaited(await pair.record(pair.change()))
    awaited.begin(database)
    known: list[bool] = []
    pair.replica.listeners.append(lambda _: known.append(awaited.settled))
    install(pair, {pgno: pair.application.page() for pgno in range(1, pages + 1)}, 9)
    assert known == [True]
    assert awaited.unknown == f"dir/app.db was replaced by a snapshot at {database.position}"
    assert (awaited.committed, awaited.refused, held.completed_at, database.awaited) == (False, None, [], None)
    await awaited.wait()


async def test_a_drop_refuses_it(pair: Pair) -> None:
    database = pair.database
    received = Held(database).awaited(await pair.record(pair.change()))
    received.begin(database)
    pair.application.drop()
    pair.deliver()
    assert received.refused
    own = Held(pair.application.database)
    pair.applied()
    pair.application.commit()
    pair.deliver()
    pair.applied()
    dropped_here = own.awaited(await pair.record(pair.change()))
    dropped_here.begin(database)
    database.drop()
    assert dropped_here.refused


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_comes_in_between_each_is_committed_once_or_refused(tmp_path: Path, seed: int) -> None:
    pair = Pair(tmp_path, seed=seed)
    pair.start()
    database, primary = pair.database, pair.application.database
    chance = random.Random(seed)
    ended: list[tuple[Awaited, Held]] = []
    # On its way to the primary; on its way back.
    forwarded: tuple[Origin, Position, Pages] | None = None
    data = b""
    for number in range(300):
        match chance.choices(["begin", "commit", "own", "deliver", "apply"], [3, 3, 1, 3, 3])[0]:
            case "begin" if database.awaited is None and database.applied == database.position.txid:
                held, changes = Held(database), pair.change()
                transaction = await pair.record(changes, Origin("node-2", number))
                awaited = held.awaited(transaction)
                awaited.begin(database)
                ended.append((awaited, held))
                forwarded = (transaction.origin, transaction.base, changes)
                transaction.close()
            case "commit" if forwarded is not None:
                origin, base, changes = forwarded
                if primary.position == base:
                    pair.commit(changes, origin)
                forwarded = None
            case "own":
                pair.application.commit({1: pair.application.page()})
            case "deliver":
                data += pair.undelivered()
                size = chance.choice([len(data), chance.randint(0, len(data))])
                pair.deliver(data[:size])
                data = data[size:]
            case "apply":
                pair.applied()
    pair.application.commit({1: pair.application.page()})
    pair.deliver(data + pair.undelivered())
    logged = {primary.origin_at(txid) for txid in range(1, primary.position.txid + 1)}
    assert {awaited.committed for awaited, _ in ended} == {True, False}
    for awaited, held in ended:
        assert awaited.settled
        assert awaited.committed == (awaited.origin in logged) == (awaited.refused is None)
        if awaited.committed:
            assert held.completed_at == [Position(awaited.base.txid + 1, awaited.post_checksum)]
        else:
            assert held.completed_at == []
    assert database.position == primary.position
    pair.close()
