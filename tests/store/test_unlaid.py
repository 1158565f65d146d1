"""Transactions of this node that the primary commits with a page 1 of its own: what the files lack, and how long."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from litereplica.store.verify import Verification
from tests.store.application import NAME, Content, open_store
from tests.store.pair import Held, Pair
from tests.store.test_awaited import install


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    pair = Pair(tmp_path)
    pair.start()
    yield pair
    pair.close()


async def commit_here(pair: Pair, *, first_here: bool) -> None:
    """One of this node's that the primary commits with a page 1 of its own; it is complete here."""
    database = pair.database
    changes = pair.change()[0 if first_here else 1 :]
    awaited = Held(database).awaited(await pair.record(changes))
    awaited.begin(database)
    pair.commit([(1, pair.application.page()), changes[-1]])
    pair.deliver()
    assert awaited.committed


@pytest.mark.parametrize("first_here", [True, False])
async def test_one_that_differs_in_page_1_alone_is_applied_and_unlaid(pair: Pair, first_here: bool) -> None:
    database = pair.database
    for txid in (4, 5, 6):
        await commit_here(pair, first_here=first_here)
        assert (database.position.txid, database.applied) == (txid, txid)
        assert (database.unlaid.oldest, database.unlaid.newest) == (4, txid)
    database.unlaid.laid(6)
    assert database.unlaid.at_rest


async def test_one_that_wrote_the_primarys_page_1_itself_leaves_nothing_unlaid(pair: Pair) -> None:
    database = pair.database
    await commit_here(pair, first_here=True)
    for changes in (pair.change()[1:], pair.change()):
        awaited = Held(database).awaited(await pair.record(changes))
        pair.applied()
        awaited.begin(database)
        pair.commit(changes)
        pair.deliver()
        # The first one has no page 1 at all: the applier brings it in, with the one that is unlaid.
        assert (database.applied == database.position.txid, bool(database.unlaid)) == (
            (True, False) if changes[0][0] == 1 else (False, True)
        )
        pair.applied()


async def test_the_base_stays_before_a_record_with_page_1_until_that_is_laid(pair: Pair) -> None:
    database = pair.database
    database.file_complete()
    assert database.base.txid == 3
    await commit_here(pair, first_here=False)
    positions = {database.position.txid: database.position}
    database.file_complete()
    assert database.base.txid == 3
    for _ in range(3):
        await commit_here(pair, first_here=False)
        positions[database.position.txid] = database.position
    # A checkpoint, by an application or the applier, has brought more into the file.
    database.checkpointed(6)
    assert database.base == positions[5]
    database.checkpointed(7)
    assert database.base == positions[6]
    database.unlaid.laid(7)
    database.checkpointed(7)
    assert database.base == positions[7]


async def test_what_is_laid_over_too_late_leaves_the_later_one_unlaid(pair: Pair) -> None:
    database = pair.database
    unlaid = database.unlaid
    await commit_here(pair, first_here=False)
    unlaid.lay(4, database.checksums.table[0])
    assert not unlaid.is_overtaken
    await commit_here(pair, first_here=False)
    assert unlaid.is_overtaken
    unlaid.over()
    assert (unlaid.laying, unlaid.is_overtaken, unlaid.oldest, unlaid.newest) == (0, False, 4, 5)
    # Laid before the second one was committed, and told after it.
    unlaid.laid(4)
    assert (unlaid.oldest, unlaid.newest) == (5, 5)


async def test_what_another_node_commits_afterwards_lays_it(pair: Pair) -> None:
    database = pair.database
    await commit_here(pair, first_here=False)
    pair.application.commit({1: pair.application.page()})
    pair.deliver()
    assert (database.unlaid.oldest, database.unlaid.newest, database.applied) == (4, 5, 4)
    database.unlaid.laid(5)
    assert database.unlaid.at_rest


async def test_what_tells_of_the_newest_has_the_page_size_of_then(pair: Pair) -> None:
    """Another one is logged, and applied only once the WAL is empty."""
    database = pair.database
    pages = pair.change()
    awaited = Held(database).awaited(await pair.record(pages))
    awaited.begin(database)
    pair.commit(pages)
    pair.deliver()
    content = dict(pair.content)
    assert (awaited.committed, database.applied) == (True, 4)
    database.set_page_size(4096)
    assert not database.lacks_newest(lambda offset, size: content[offset // 512 + 1][:size])


async def test_page_1_alone_tells_that_the_newest_is_in_the_file_also_when_it_was_laid_over(pair: Pair) -> None:
    database = pair.database
    before, own, logged = pair.content[1], pair.application.page(), pair.application.page()
    awaited = Held(database).awaited(await pair.record([(1, own)]))
    awaited.begin(database)
    pair.commit([(1, logged)])
    pair.deliver()
    assert (awaited.committed, database.applied, bool(database.unlaid)) == (True, 4, True)
    assert database.lacks_newest(lambda _offset, _size: before)
    assert not database.lacks_newest(lambda _offset, _size: own)
    database.unlaid.lay(4, database.checksums.table[0])
    assert not database.lacks_newest(lambda _offset, _size: logged)


async def test_an_older_page_1_does_not_tell_that_the_newest_is_in_the_file(pair: Pair) -> None:
    database = pair.database
    older = pair.content[1]
    await commit_here(pair, first_here=False)
    database.unlaid.lay(4, database.checksums.table[0])
    laid = pair.content[1]
    database.unlaid.laid(4)
    database.unlaid.reported(4)
    # In WAL mode by now, where the primary adds nothing.
    own = pair.application.page()
    awaited = Held(database).awaited(await pair.record([(1, own)]))
    awaited.begin(database)
    pair.commit([(1, own)])
    pair.deliver()
    assert (awaited.committed, database.applied, bool(database.unlaid)) == (True, 5, False)
    assert not database.lacks_newest(lambda _offset, _size: own)
    assert database.lacks_newest(lambda _offset, _size: laid)
    assert database.lacks_newest(lambda _offset, _size: older)


@pytest.mark.parametrize("how", ["drop", "snapshot"])
async def test_another_content_has_nothing_unlaid(pair: Pair, how: str) -> None:
    database = pair.database
    await commit_here(pair, first_here=False)
    if how == "drop":
        pair.application.drop()
        pair.deliver()
    else:
        install(pair, {pgno: pair.application.page() for pgno in range(1, 9)}, 9)
    assert not database.unlaid


def put(pair: Pair, content: Content) -> None:
    """What a checkpoint of the WAL here leaves in the database file."""
    path = pair.database.file_path
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(content[pgno] for pgno in sorted(content)))


@pytest.mark.parametrize("how", ["killed", "stopped"])
@pytest.mark.parametrize("seed", range(10))
async def test_every_start_finds_the_logged_page_1(tmp_path: Path, seed: int, how: str) -> None:
    """The files have this node's own page 1, which is in no record, or the primary's; the base moves with either."""
    chance = random.Random(seed)
    pair = Pair(tmp_path, seed=seed)
    pair.start()
    while len(pair.content) < 3:
        pair.application.commit()
    pair.deliver()
    pair.applied()
    database = pair.database
    here = dict(pair.content)
    put(pair, here)
    database.file_complete()
    for _ in range(60):
        match chance.choice(["own", "own", "own", "lay", "checkpoint", "other", "base", "verify"]):
            case "own":
                first_here = chance.random() < 0.3
                await commit_here(pair, first_here=first_here)
                here = dict(pair.content) | {1: pair.application.page() if first_here else here[1]}
                assert database.applied == database.position.txid
            case "other":
                pair.application.commit({1: pair.application.page()})
                pair.deliver()
                database.unlaid.laid(database.position.txid)
                pair.applied()
                here = dict(pair.content)
            case "lay":
                database.unlaid.laid(database.position.txid)
                here[1] = pair.content[1]
            case "checkpoint":
                await database.log.sync()
                put(pair, here)
                database.checkpointed(database.applied)
            case "base":
                await pair.replica.advance_base(database)
            case "verify":
                await verify(pair)
    position = database.position
    if how == "stopped":
        pair.replica.stop()
    pair.replica.close()
    pair.replica = open_store(tmp_path / "replica")
    assert pair.database.position == position
    path = pair.replica.file_path(NAME)
    assert path.read_bytes() == b"".join(pair.content[pgno] for pgno in sorted(pair.content))
    assert not pair.database.unlaid
    pair.close()


async def verify(pair: Pair) -> None:
    verification = Verification(pair.database, "test")
    while verification.result is None:
        await verification.step()
    verification.close()
    assert verification.result.sound, verification.result


async def test_page_1_as_readers_here_see_it_is_among_those_that_are_known(pair: Pair) -> None:
    database = pair.database
    unlaid = database.unlaid
    before = database.checksums.table[0]
    for _ in range(2):
        # Neither holds page 1 here: readers see what was there before.
        await commit_here(pair, first_here=False)
        assert unlaid.firsts == {before}
    logged = database.checksums.table[0]
    assert logged != before
    # What is laid over may be there already when the next one is complete, and not be told.
    unlaid.lay(database.applied, logged)
    await commit_here(pair, first_here=False)
    assert unlaid.firsts == {before, logged}
    unlaid.reported(database.applied - 2)
    assert unlaid.laying == database.applied - 1
    unlaid.reported(unlaid.laying)
    assert not unlaid.laying
    await commit_here(pair, first_here=True)
    assert len(unlaid.firsts) == 1
    assert not unlaid.firsts & {before, logged, database.checksums.table[0]}
