"""Switches of one node that another process turns while it runs: a small file that both have mapped.

Knows where each switch is. Does not know what a node does about it (daemon.py).
"""

import mmap
import struct
from pathlib import Path
from typing import Final

DISK_FAULTS: Final = ("", "write", "sync", "torn", "torn-die", "read")
"""What the disk does: nothing wrong; a write fails; making durable fails; half of a write arrives, then it fails, or
the process dies in it; a read fails. Each failure is EIO."""
_NUMBER: Final = struct.Struct("<q")
_WALL, _BOOT, _FAULT, _EVERY, _MET = (place * _NUMBER.size for place in range(5))
SIZE_BYTES: Final = mmap.PAGESIZE


class Switches:
    """Made when it is not there. Each switch is one aligned number, so nobody sees half of a change."""

    __slots__ = ("_map",)

    def __init__(self, path: Path) -> None:
        with path.open("ab") as file:
            file.truncate(SIZE_BYTES)
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), SIZE_BYTES)

    def _get(self, at: int) -> int:
        number: int = _NUMBER.unpack_from(self._map, at)[0]
        return number

    def _set(self, at: int, number: int) -> None:
        _NUMBER.pack_into(self._map, at, number)

    @property
    def wall_ns(self) -> int:
        """So far the node's wall clock is ahead of the machine's."""
        return self._get(_WALL)

    @wall_ns.setter
    def wall_ns(self, number: int) -> None:
        self._set(_WALL, number)

    @property
    def boot_ns(self) -> int:
        """So far the node's CLOCK_BOOTTIME is ahead: as long as it seems to have slept."""
        return self._get(_BOOT)

    @boot_ns.setter
    def boot_ns(self, number: int) -> None:
        assert number >= self.boot_ns, "it never goes back"
        self._set(_BOOT, number)

    @property
    def fault(self) -> str:
        """One of DISK_FAULTS."""
        return DISK_FAULTS[self._get(_FAULT)]

    @property
    def every(self) -> int:
        """One call in so many meets the fault."""
        return max(1, self._get(_EVERY))

    def break_disk(self, fault: str, every: int) -> None:
        """From now on ``fault`` for one call in ``every``."""
        self._set(_EVERY, every)
        self._set(_FAULT, DISK_FAULTS.index(fault))

    def mend_disk(self) -> None:
        """The disk is well again."""
        self._set(_FAULT, 0)

    @property
    def met(self) -> int:
        """How many calls met a fault so far."""
        return self._get(_MET)

    def count(self) -> None:
        """One more; by the node only."""
        self._set(_MET, self.met + 1)
