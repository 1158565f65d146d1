"""The disk's twin whose fdatasync takes as long as the test wants."""

import threading

import trio

from litereplica.store.disk import Disk
from litereplica.store.store import Store


class GatedDisk(Disk):
    """An fdatasync that takes as long as the test wants, and then fails if it wants."""

    __slots__ = ("code", "entered", "gate", "syncs")

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.syncs = 0
        self.code = 0

    def fdatasync(self, descriptor: int) -> None:
        self.syncs += 1
        self.entered.set()
        assert self.gate.wait(10)
        if self.code:
            raise OSError(self.code, "broken")
        super().fdatasync(descriptor)


def use_threads(store: Store, gated: GatedDisk) -> None:
    """As on a disk whose fdatasync is slow; the next one waits for the gate."""
    store.calls._mean_s = 1.0
    gated.gate.clear()
    gated.entered.clear()
    gated.syncs = 0


async def entered(gated: GatedDisk) -> None:
    assert await trio.to_thread.run_sync(gated.entered.wait, 10)
