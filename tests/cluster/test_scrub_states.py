"""The self-check where something else is wrong too: a disk without room, a node that has come to lead."""

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from litereplica.node import scrub
from litereplica.node.scrub import Scrubber
from litereplica.store.disk import Disk
from tests.store.test_verify import application, flip


class FullDisk(Disk):
    """No room for whole files."""

    __slots__ = ()

    def write_file(self, path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, f"no room for {len(data)} bytes", str(path))


@asynccontextmanager
async def running(scrubber: Scrubber) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scrubber.run)
        await trio.testing.wait_all_tasks_blocked()
        yield
        nursery.cancel_scope.cancel()


async def until_healing_is(scrubber: Scrubber, healing: bool) -> None:
    with trio.fail_after(10):
        while bool(scrubber._healing) is not healing:
            await trio.sleep(0.01)


async def test_nothing_is_fetched_anew_before_what_is_damaged_is_kept(tmp_path: Path) -> None:
    async with application(tmp_path) as app:
        flip(app, 50)
        flip(app, 2900)
        asked: list[str] = []
        scrubber = Scrubber(app.store, 1 << 40, 1e9)
        scrubber.ask_snapshot = lambda _name, reason: asked.append(reason)
        disk, app.store.disk = app.store.disk, FullDisk()
        async with running(scrubber):
            await scrubber.look_at_all()
            assert scrubber.damaged == {app.name: [50, 2900]}
            assert not asked
            app.store.disk = disk
            await scrubber.look_at_all()
            await until_healing_is(scrubber, healing=True)
            await trio.testing.wait_all_tasks_blocked()
            assert asked
        kept = sorted(path.name.partition("-")[2] for path in scrubber.folder.rglob("*.pages"))
        assert kept == ["2900.pages", "50.pages"]


async def test_a_node_that_comes_to_lead_while_it_heals_goes_on_looking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrub, "HEAL_STEP_S", 0.01)
    async with application(tmp_path) as app:
        flip(app, 50)
        scrubber = Scrubber(app.store, 1 << 40, 1e9)
        scrubber.ask_snapshot = lambda _name, _reason: None
        async with running(scrubber):
            await scrubber.look_at_all()
            assert scrubber.damaged == {app.name: [50]}
            scrubber.ask_snapshot = None
            await until_healing_is(scrubber, healing=False)
            assert scrubber.damaged == {app.name: [50]}
            flip(app, 60)
            await scrubber.look_at_all()
            assert scrubber.damaged == {app.name: [50, 60]}
            app.commit({50: app.page(), 60: app.page()})
            await app.checkpoint()
            await scrubber.look_at_all()
            assert scrubber.damaged == {}
