"""What is known of a database, and who waits for it."""

import asyncio

from litereplica.ltx.position import Position
from litereplica.proxy.known import REMEMBERED, KnownDatabase


def test_a_position_is_there_only_with_its_checksum() -> None:
    known = KnownDatabase()
    assert not known.has(Position(0, 0))
    known.told(5, 50)
    known.told(7, 70)
    assert known.has(Position(5, 50))
    assert known.has(Position(7, 70))
    assert not known.has(Position(7, 71)), "of another history"
    assert not known.has(Position(6, 60)), "not known: to be asked"
    assert not known.has(Position(8, 80))
    known.remember(Position(8, 80))
    assert not known.has(Position(8, 80)), "logged and not yet applied"
    known.told(8, None)
    assert known.has(Position(8, 80))


def test_what_is_not_shown_yet_is_told_and_not_there() -> None:
    known = KnownDatabase()
    known.told(5, 50)
    known.told(6, 60, shown=False)
    assert known.applied == 6
    assert known.has(Position(5, 50))
    assert not known.has(Position(6, 60))
    known.told(6, 60, shown=False)
    assert known.has(Position(5, 50)), "the same once more is no step back"
    known.advance(Position(6, 60))
    assert known.has(Position(6, 60))
    known.told(6, 60, shown=False)
    assert known.has(Position(6, 60)), "whoever has asked knows better"
    known.told(4, 41, shown=False)
    assert not known.has(Position(4, 41))
    assert not known.has(Position(3, 30))
    assert not known.has(Position(5, 50))


def test_a_step_back_means_another_history() -> None:
    known = KnownDatabase()
    known.told(5, 50)
    known.told(7, 70)
    known.told(6, 61)
    assert not known.has(Position(5, 50))
    assert known.has(Position(6, 61))


def test_only_so_much_is_remembered() -> None:
    known = KnownDatabase()
    for txid in range(1, REMEMBERED + 10):
        known.told(txid, txid)
    assert not known.has(Position(5, 5))
    assert known.has(Position(REMEMBERED, REMEMBERED))


def test_whoever_waits_is_told_in_time_and_those_that_gave_up_are_forgotten() -> None:
    async def run() -> None:
        known = KnownDatabase()
        far = [asyncio.create_task(known.wait(10**6 + number)) for number in range(500)]
        near = [asyncio.create_task(known.wait(number)) for number in range(1, 100)]
        await asyncio.sleep(0)
        known.told(50, None)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [task.done() for task in near] == [True] * 50 + [False] * 49
        known.forget()
        known.told(99, None)
        await asyncio.gather(*near)
        for task in far:
            task.cancel()
        await asyncio.gather(*far, return_exceptions=True)
        assert len(known._waiters) < 5

    asyncio.run(run())
