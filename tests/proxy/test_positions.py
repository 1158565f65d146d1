"""Positions for cookies: never from before the question, few readings for many questions, and no node that holds."""

import asyncio
import threading
from pathlib import Path

import pytest

from litereplica.errors import Unavailable
from litereplica.ltx.position import Position
from litereplica.proxy.positions import MountPositions

Said = tuple[int, dict[str, object]]


class Nobody:
    """A node that does not answer over HTTP."""

    async def ask(self, *_: object) -> tuple[int, dict[str, object]]:
        raise Unavailable("nobody")


class Answers:
    """A node that answers; what it says of each database."""

    def __init__(self, **said: Said) -> None:
        self.said = said

    async def ask(self, _url: str, _path: str, query: dict[str, str]) -> Said:
        return self.said[query["db"].removesuffix(".db")]


class Files(MountPositions):
    """Counts its readings, and waits in each of them until it is let go."""

    def __init__(self, mount: Path, node: Nobody | Answers | None = None) -> None:
        super().__init__(mount, ("a.db", "b.db"), node or Nobody(), "")  # type: ignore[arg-type]
        self.readings = 0
        self.go = threading.Event()
        self.go.set()

    def _read(self) -> dict[str, Position]:
        self.readings += 1
        found = super()._read()
        assert self.go.wait(10)
        return found


def write(folder: Path, txid: int) -> None:
    (folder / "new").write_text(f"{Position(txid, 7)}\n")
    (folder / "new").rename(folder / "a.db-pos")


def test_a_database_that_is_not_there_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, 5)
    assert asyncio.run(Files(tmp_path).now()) == {"a.db": Position(5, 7)}


NONE: Said = (404, {"error": "not_found"})
AT_FIVE: Said = (200, {"db": "a.db", "txid": f"{5:016x}", "checksum": f"{7:016x}"})


def test_a_mount_that_is_away_is_not_one_without_databases(tmp_path: Path) -> None:
    """The folder below it is there all the same, and empty."""
    assert asyncio.run(Files(tmp_path).now()) is None
    assert asyncio.run(Files(tmp_path, Answers(a=AT_FIVE, b=NONE)).now()) == {"a.db": Position(5, 7)}


def test_nothing_is_known_only_when_the_node_says_that_there_is_nothing(tmp_path: Path) -> None:
    assert asyncio.run(Files(tmp_path, Answers(a=NONE, b=NONE)).now()) == {}
    assert asyncio.run(Files(tmp_path, Answers(a=NONE, b=(503, {"error": "unavailable"}))).now()) is None


def test_a_question_is_never_answered_from_before_it_was_asked(tmp_path: Path) -> None:
    async def run() -> None:
        files = Files(tmp_path)
        write(tmp_path, 1)
        files.go.clear()
        first = asyncio.create_task(files.now())
        while not files.readings:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        write(tmp_path, 2)
        others = [asyncio.create_task(files.now()) for _ in range(50)]
        await asyncio.sleep(0.01)
        files.go.set()
        assert await first == {"a.db": Position(1, 7)}
        assert await asyncio.gather(*others) == [{"a.db": Position(2, 7)}] * 50
        assert files.readings == 2
        files.close()

    asyncio.run(run())


def test_who_goes_takes_nothing_from_those_who_wait(tmp_path: Path) -> None:
    async def run() -> None:
        files = Files(tmp_path)
        write(tmp_path, 1)
        files.go.clear()
        gone, stays = asyncio.create_task(files.now()), asyncio.create_task(files.now())
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.sleep(0.01)
        files.go.set()
        assert await stays == {"a.db": Position(1, 7)}
        files.close()

    asyncio.run(run())


def test_a_node_that_stands_still_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("litereplica.proxy.positions.READ_LIMIT_S", 0.1)

    async def run() -> None:
        files = Files(tmp_path)
        write(tmp_path, 2)
        files.go.clear()
        assert await asyncio.gather(*(files.now() for _ in range(20))) == [None] * 20
        assert await files.now() is None
        assert files.readings == 1
        files.go.set()
        write(tmp_path, 3)
        assert await files.now() == {"a.db": Position(3, 7)}
        files.close()

    asyncio.run(run())
