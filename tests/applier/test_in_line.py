"""A lock that is waited for in the kernel: who gets it, and how a wait is given up."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from litereplica.applier import locks
from litereplica.applier.in_line import MOST_WAITING, Line, Place
from tests.applier.support import until

pytestmark = pytest.mark.timeout(30)

OFFSET = 7


@pytest.fixture(scope="module")
def line() -> Iterator[Line]:
    before = signal.getsignal(signal.SIGURG)
    yield Line()
    signal.signal(signal.SIGURG, before)


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def theirs(tmp_path: Path, ours: int) -> Iterator[int]:
    """The same file, opened by somebody who has the lock."""
    descriptor = os.open(tmp_path / "file", os.O_RDWR)
    assert locks.try_exclusive(descriptor, OFFSET)
    yield descriptor
    os.close(descriptor)


def enter(line: Line, descriptor: int) -> Place:
    place = line.enter("app.db", descriptor, OFFSET)
    assert place is not None
    return place


def is_awake(line: Line) -> bool:
    try:
        return bool(line.served())
    except BlockingIOError:
        return False


def test_who_waits_has_the_lock_and_is_woken_when_it_is_given_back(line: Line, ours: int, theirs: int) -> None:
    place = enter(line, ours)
    time.sleep(0.05)
    assert not place.is_served
    assert not is_awake(line)
    locks.release(theirs, OFFSET)
    until(lambda: is_awake(line))
    assert place.is_served
    assert not locks.try_exclusive(theirs, OFFSET)
    place.leave()


def test_a_close_look_ends_and_the_wait_goes_on(line: Line, ours: int, theirs: int) -> None:
    place = enter(line, ours)
    time.sleep(0.02)
    for _ in range(20):
        place.look_closely()
        time.sleep(0.003)
    spent = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - spent < 0.05
    locks.release(theirs, OFFSET)
    until(lambda: place.is_served)
    place.leave()


@pytest.mark.parametrize("after_s", [0.0, 0.0001, 0.03])
def test_nobody_has_the_lock_or_waits_for_it_after_a_wait_was_given_up(
    line: Line, ours: int, theirs: int, after_s: float
) -> None:
    for _ in range(30):
        place = enter(line, ours)
        time.sleep(after_s)
        started = time.monotonic()
        place.leave()
        assert time.monotonic() - started < 10
    locks.release(theirs, OFFSET)
    time.sleep(0.02)
    assert locks.holder(theirs, OFFSET) is None


def test_a_lock_that_came_while_the_wait_was_given_up_is_given_back(line: Line, ours: int, theirs: int) -> None:
    for turn in range(200):
        place = enter(line, ours)
        time.sleep(turn * 1e-6)
        locks.release(theirs, OFFSET)
        place.leave()
        assert locks.try_exclusive(theirs, OFFSET)


def test_a_descriptor_may_be_another_file_once_the_wait_was_left(line: Line, theirs: int, tmp_path: Path) -> None:
    for _ in range(50):
        descriptor = os.open(tmp_path / "file", os.O_RDWR)
        place = enter(line, descriptor)
        place.leave()
        os.close(descriptor)
        other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
        assert other == descriptor
        assert locks.try_exclusive(other, OFFSET)
        time.sleep(0.001)
        os.close(other)


def test_no_more_wait_than_there_are_threads(line: Line, ours: int, theirs: int, tmp_path: Path) -> None:
    places = [enter(line, ours) for _ in range(MOST_WAITING)]
    assert line.enter("one more", ours, OFFSET) is None
    for place in places:
        place.leave()
    again: list[Place | None] = [None]

    def has_room() -> bool:
        again[0] = line.enter("one more", ours, OFFSET)
        return again[0] is not None

    until(has_room)
    assert again[0] is not None
    again[0].leave()
    assert len([each for each in Path("/proc/self/task").iterdir() if comm(each) == "lock"]) <= MOST_WAITING


def comm(task: Path) -> str:
    return (task / "comm").read_text(encoding="ascii").strip()


def test_a_call_that_fails_is_told(line: Line, theirs: int, tmp_path: Path) -> None:
    reading = os.open(tmp_path / "file", os.O_RDONLY)
    place = enter(line, reading)
    with pytest.raises(OSError, match="waiting for a lock failed"):
        until(lambda: place.is_served)
    place.leave()
    os.close(reading)
