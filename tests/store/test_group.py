"""Transactions of several databases that a killed process has left: all of them or none, whatever the start meets."""

from itertools import count
from pathlib import Path

import pytest

from litereplica.store.group import GroupFile
from tests.store.application import Application, open_store
from tests.store.faulty_disk import FaultyDisk, Stopped

NAMES = ("a.db", "b.db")


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
