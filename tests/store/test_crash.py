"""A stop after every single step of the disk, and what the next start makes of it."""

import random
from pathlib import Path

import pytest
import trio

from litereplica.store.store import Store
from tests.store.application import Application, assert_file_is, open_store, rolling
from tests.store.faulty_disk import FaultyDisk, Stopped

STEPS = 45


async def work(app: Application, seed: int, *, drops: bool = True) -> None:
    """Everything that a primary does, in some order."""
    chance = random.Random(seed)
    app.start()
    for _ in range(STEPS):
        what = chance.choices(
            ["commit", "stream", "sync", "checkpoint", "partial", "maintain", "drop"],
            [10, 2, 3, 2, 1, 2, 1 if drops else 0],
        )[0]
        if what == "commit":
            app.commit()
        elif what == "stream":
            await app.commit_stream()
        elif what == "sync":
            await app.sync()
        elif what == "maintain":
            await app.store.maintain(age_s=0, size_bytes=3 * 6000)
        elif what == "drop":
            if app.database.exists:
                app.drop()
        elif app.database.exists:
            await app.checkpoint(whole=what == "checkpoint")


def run_until(root: Path, disk: FaultyDisk, seed: int, stop_after: int | None) -> Application:
    store = open_store(root, disk)
    app = Application(store, seed=seed)
    disk.stop_after = disk.steps + stop_after if stop_after is not None else None
    try:
        trio.run(work, app, seed)
    except Stopped:
        pass
    finally:
        store.close()
    return app


def count_steps(tmp_path: Path, seed: int) -> int:
    disk = FaultyDisk(tmp_path / "count", tmp_path / "graves")
    store = open_store(tmp_path / "count", disk)
    before = disk.steps
    trio.run(work, Application(store, seed=seed), seed)
    store.close()
    return disk.steps - before


def check_after(app: Application, store: Store, least: int) -> None:
    database = store.get(app.name)
    txid = database.position.txid if database is not None else 0
    assert least <= txid <= app.in_flight
    content = app.oracle[txid]
    if database is None:
        app.go_on(store)
        app.start()
        return
    assert database.position.checksum == rolling(content)
    assert database.page_count == len(content)
    assert database.applied == txid
    if txid:
        assert_file_is(store.file_path(app.name), content)
    app.go_on(store)
    app.start()
    app.check(file=bool(txid))


@pytest.mark.parametrize("seed", range(3))
def test_killed_after_any_step(tmp_path: Path, seed: int) -> None:
    total = count_steps(tmp_path, seed)
    for step in range(total):
        root = tmp_path / str(step)
        disk = FaultyDisk(root, tmp_path / f"graves-{step}")
        app = run_until(root, disk, seed, step)
        disk.revive()
        store = open_store(root, disk)
        check_after(app, store, app.acknowledged)
        app.commit()
        app.check(file=False)
        store.close()
        store = open_store(root, disk)
        app.go_on(store)
        app.check()
        store.close()


@pytest.mark.parametrize("keep", ["nothing", "everything", "random"])
@pytest.mark.parametrize("seed", range(3))
def test_power_lost_after_any_step(tmp_path: Path, seed: int, keep: str) -> None:
    total = count_steps(tmp_path, seed)
    for step in range(0, total, 1 if keep == "random" else 2):
        root = tmp_path / str(step)
        disk = FaultyDisk(root, tmp_path / f"graves-{step}")
        app = run_until(root, disk, seed, step)
        disk.lose_power(keep, seed=1000 * seed + step)
        if not (root / "format").exists():
            continue
        store = open_store(root, disk)
        check_after(app, store, app.synced)
        app.commit()
        store.close()
        store = open_store(root, disk)
        app.go_on(store)
        app.check()
        store.close()


@pytest.mark.parametrize("seed", range(2))
def test_killed_after_any_step_of_recovery(tmp_path: Path, seed: int) -> None:
    root = tmp_path / "data"
    disk = FaultyDisk(root, tmp_path / "graves")
    app = run_until(root, disk, seed, None)
    for step in range(200):
        disk.revive()
        disk.stop_after = step
        try:
            store = open_store(root, disk)
        except Stopped:
            continue
        check_after(app, store, app.acknowledged)
        store.close()
        return
    pytest.fail("recovery does not end")


@pytest.mark.parametrize("seed", range(3))
def test_killed_after_any_step_of_a_clean_stop(tmp_path: Path, seed: int) -> None:
    root = tmp_path / "data"
    disk = FaultyDisk(root, tmp_path / "graves")
    app = run_until(root, disk, seed, None)
    for step in range(200):
        disk.revive()
        store = open_store(root, disk)
        app.go_on(store)
        app.commit()
        disk.stop_after = disk.steps + step
        try:
            store.stop()
        except Stopped:
            store.close()
            disk.lose_power("random", step)
            store = open_store(root, disk)
            check_after(app, store, app.acknowledged - 1)
            store.close()
            continue
        store.close()
        return
    pytest.fail("the stop does not end")
