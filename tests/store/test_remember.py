"""What a node remembers of its cluster, told by two at once."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import trio

from litereplica.cluster.lease import Reign
from litereplica.store.cluster_state import ClusterState
from litereplica.store.disk import Disk
from litereplica.store.store import Store
from tests.store.application import open_store
from tests.store.gated_disk import GatedDisk, entered

Change = Callable[[ClusterState], ClusterState]
REIGN: Final = Reign(8, "b", 1000, "b has the lease", {})


def epoch_9(state: ClusterState) -> ClusterState:
    return replace(state, epoch=9)


def reign(state: ClusterState) -> ClusterState:
    return state.with_reigns((REIGN,))


@pytest.mark.parametrize("orders", [(epoch_9, reign), (reign, epoch_9)])
async def test_two_changes_at_once_are_both_kept(tmp_path: Path, orders: tuple[Change, Change]) -> None:
    disk = GatedDisk()
    store = open_store(tmp_path, disk)
    disk.gate.clear()
    disk.entered.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(trio.to_thread.run_sync, store.remember, orders[0]))
        await entered(disk)  # the first is about to be made durable
        nursery.start_soon(partial(trio.to_thread.run_sync, store.remember, orders[1]))
        await trio.sleep(0.05)
        disk.gate.set()
    for seen in (store, reopened(store, tmp_path)):
        assert seen.state.epoch == 9
        assert seen.state.reigns == (REIGN,)
        seen.close()


def reopened(store: Store, root: Path) -> Store:
    store.stop()
    store.close()
    return open_store(root, Disk())
