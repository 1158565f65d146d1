"""Transactions of several databases that a killed process has left: all of them or none, whatever the start meets."""

import errno
import os
from itertools import count
from pathlib import Path

import msgpack
import pytest
import xxhash

from litereplica.store.disk import Disk
from litereplica.store.group import GROUPS_NAME, GroupFile
from litereplica.store.store import Store
from tests.store.application import Application, open_store
from tests.store.faulty_disk import FaultyDisk, Stopped

NAMES = ("a.db", "b.db")


class GroupsDisk(Disk):
    """Refuses what is done to the folder of the groups: ``fails``, how often by the name of the call."""

    __slots__ = ("fails",)

    def __init__(self) -> None:
        self.fails: dict[str, int] = {}

    def _refuse(self, call: str, folder: Path) -> None:
        if folder.name == GROUPS_NAME and self.fails.get(call, 0) > 0:
            self.fails[call] -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def fsync_directory(self, path: Path) -> None:
        self._refuse("fsync_directory", path)
        super().fsync_directory(path)

    def unlink(self, path: Path) -> None:
        self._refuse("unlink", path.parent)
        super().unlink(path)


def begin(root: Path, disk: Disk | None = None) -> tuple[Store, list[Application]]:
    """Two databases, each with two transactions that are durable."""
    store = open_store(root, disk)
    apps = [Application(store, seed=number, name=name) for number, name in enumerate(NAMES)]
    for app in apps:
        app.start()
        commit(app, 2)
    return store, apps


def commit(app: Application, times: int = 1) -> None:
    for _ in range(times):
        app.commit()
    app.database.log.sync_blocking()


def write_group(store: Store, version: int) -> Path:
    """As this version has it, or an older one."""
    group = GroupFile.write(store, {name: store.next_txid(name) for name in NAMES})
    (path,) = (each for each in (store.root / GROUPS_NAME).iterdir() if each.name.isdigit())
    if version == 1:
        body = msgpack.packb((1, {name: store.next_txid(name) for name in group.members}))
        path.write_bytes(body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little"))
    return path


def positions(store: Store) -> list[int]:
    return [store.databases[name].position.txid for name in NAMES]


def killed_after_logging(root: Path, disk: FaultyDisk) -> int:
    """Both records are in their logs, and neither is on the disk; their TXID."""
    store = open_store(root, disk)
    apps = [Application(store, seed=number, name=name) for number, name in enumerate(NAMES)]
    for app in apps:
        app.start()
        app.commit()
        app.database.log.sync_blocking()
    txid = apps[0].database.position.txid + 1
    GroupFile.write(store, dict.fromkeys(NAMES, txid))
    for app in apps:
        app.commit()
    store.close()
    disk.revive()
    return txid


@pytest.mark.parametrize("keep", ["nothing", "random"])
def test_power_that_is_lost_at_any_step_of_the_start_keeps_all_of_them_or_none(tmp_path: Path, keep: str) -> None:
    kept = set()
    for step in count():
        root = tmp_path / str(step)
        disk = FaultyDisk(root, tmp_path / f"graves-{step}")
        txid = killed_after_logging(root, disk)
        disk.stop_after = disk.steps + step
        has_started = True
        try:
            open_store(root, disk).close()
        except Stopped:
            has_started = False
        disk.lose_power(keep, seed=step)
        store = open_store(root, disk)
        found = [store.databases[name].position.txid == txid for name in NAMES]
        store.close()
        assert found[0] == found[1], step
        kept.add(found[0])
        if has_started:
            break
    assert kept == {False, True}, "it was lost before its logs were durable, and not any more afterwards"


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("logged", NAMES)
def test_a_record_whose_group_is_not_whole_is_taken_back(tmp_path: Path, version: int, logged: str) -> None:
    store, apps = begin(tmp_path / "data")
    write_group(store, version)
    apps[NAMES.index(logged)].commit()
    store.close()
    store = open_store(tmp_path / "data")
    assert positions(store) == [2, 2]
    assert not list((tmp_path / "data" / GROUPS_NAME).iterdir())
    for app in apps:
        app.go_on(store)
        app.check()
        commit(app)
    store.close()


@pytest.mark.parametrize("keep", ["nothing", "everything", "random"])
def test_power_that_is_lost_while_a_record_is_taken_back_lets_it_be_taken_back_again(tmp_path: Path, keep: str) -> None:
    for step in count():
        root = tmp_path / str(step)
        disk = FaultyDisk(root, tmp_path / f"graves-{step}")
        store, apps = begin(root, disk)
        write_group(store, 2)
        apps[1].commit()
        store.close()
        disk.revive()
        disk.stop_after = disk.steps + step
        has_started = True
        try:
            open_store(root, disk).close()
        except Stopped:
            has_started = False
        disk.lose_power(keep, seed=step)
        store = open_store(root, disk)
        assert positions(store) == [2, 2], step
        assert not list((root / GROUPS_NAME).iterdir())
        store.close()
        if has_started:
            break
    assert step > 5


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("times", [1, 5])
@pytest.mark.parametrize("left", ["killed", "stopped", "folded and killed"])
def test_a_group_that_was_left_behind_takes_no_acknowledged_transaction_back(
    tmp_path: Path, version: int, times: int, left: str
) -> None:
    root = tmp_path / "data"
    store, apps = begin(root)
    path = write_group(store, version)
    group = path.read_bytes()
    path.unlink()
    commit(apps[1], times)
    if left == "stopped":
        store.stop()
    store.close()
    if left == "folded and killed":
        open_store(root).close()
    path.write_bytes(group)
    for _ in range(2):
        store = open_store(root)
        assert positions(store) == [2, 2 + times]
        for app in apps:
            app.go_on(store)
            app.check()
        assert [each.name for each in (root / GROUPS_NAME).iterdir()] == ["00000001.left"]
        store.close()
    store = open_store(root)
    for app in apps:
        app.go_on(store)
        commit(app)
    store.close()
    store = open_store(root)
    assert positions(store) == [3, 3 + times]
    store.close()


@pytest.mark.parametrize("differing", ["epoch", "node", "checksum"])
def test_a_record_that_is_not_the_one_of_the_group_is_not_taken_back(tmp_path: Path, differing: str) -> None:
    root = tmp_path / "data"
    store, apps = begin(root)
    path = write_group(store, 2)
    # Logged, and not known to be durable.
    apps[1].commit()
    store.close()
    version, epoch, node, members = msgpack.unpackb(path.read_bytes()[:-8])
    if differing == "epoch":
        epoch += 1
    elif differing == "node":
        node = "node-2"
    else:
        members["b.db"][1] ^= 1
    body = msgpack.packb((version, epoch, node, members))
    path.write_bytes(body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little"))
    store = open_store(root)
    assert positions(store) == [2, 3]
    store.close()


@pytest.mark.parametrize("clean", [True, False])
def test_a_group_file_that_cannot_be_made_durable_goes_or_nothing_follows_it(tmp_path: Path, *, clean: bool) -> None:
    root, disk = tmp_path / "data", GroupsDisk()
    store, apps = begin(root, disk)
    disk.make_directories(root / GROUPS_NAME)
    disk.fails["fsync_directory"] = 1
    with pytest.raises(OSError, match="Input/output"):
        GroupFile.write(store, NAMES)
    assert not list((root / GROUPS_NAME).iterdir())
    commit(apps[1])
    disk.fails = {"fsync_directory": 1, "unlink": 1}
    with pytest.raises(OSError, match="Input/output"):
        GroupFile.write(store, NAMES)
    for app in apps:
        with pytest.raises(OSError, match="restart this node"):
            app.commit()
    if clean:
        with pytest.raises(OSError, match="restart this node"):
            store.stop()
    store.close()
    store = open_store(root)
    assert positions(store) == [2, 3]
    for app in apps:
        app.go_on(store)
        commit(app)
        app.check(file=False)
    store.close()
    store = open_store(root)
    assert positions(store) == [3, 4]
    store.close()
