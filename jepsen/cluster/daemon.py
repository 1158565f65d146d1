"""``litereplica run`` with a planted bug, or on a disk and with clocks that somebody else can put wrong while it runs.

``python -m jepsen.cluster.daemon [--mutation NAME] [--switches FILE] -c CONFIG run`` is the same program with the same
settings: only the twin of the disk goes through the door that the store has for it, what the process is told of the
time comes through here, and a mutation is in its place before the node is made (jepsen/mutations).
Knows what a wrong disk and a wrong clock are. Does not know when (switches.py) or why.

Clocks: only this process's are wrong; the machine's, and those of its children, are right. Of the wall clock
``time.time`` and ``time.time_ns`` are all that the daemon looks at. Its log lines have the machine's time, so that what
was when can be told.
"""

import argparse
import errno
import itertools
import os
import sys
import time
from pathlib import Path
from typing import Final

from jepsen.cluster.switches import Switches
from litereplica.store.disk import Disk

KILLED: Final = 137


class FaultyDisk(Disk):
    """Does what Disk does, unless the switches say otherwise."""

    __slots__ = ("_calls", "_switches")

    def __init__(self, switches: Switches) -> None:
        self._switches = switches
        self._calls = itertools.count(1)

    def _meets(self, *faults: str) -> str:
        """The fault that this call meets, if it is one of these."""
        fault = self._switches.fault
        if fault not in faults or next(self._calls) % self._switches.every:
            return ""
        self._switches.count()
        return fault

    def pread(self, descriptor: int, size: int, offset: int) -> bytes:
        if self._meets("read"):
            raise _broken()
        return super().pread(descriptor, size, offset)

    def pwrite(self, descriptor: int, data: bytes | memoryview, offset: int) -> int:
        if fault := self._meets("write", "torn", "torn-die"):
            if fault != "write":
                super().pwrite(descriptor, bytes(data)[: len(data) // 2], offset)
            if fault == "torn-die":
                os._exit(KILLED)
            raise _broken()
        return super().pwrite(descriptor, data, offset)

    def fdatasync(self, descriptor: int) -> None:
        if self._meets("sync"):
            raise _broken()
        super().fdatasync(descriptor)

    def fsync_directory(self, path: Path) -> None:
        if self._meets("sync"):
            raise _broken()
        super().fsync_directory(path)


def _broken() -> OSError:
    return OSError(errno.EIO, os.strerror(errno.EIO))


def put_clocks_wrong(switches: Switches) -> None:
    """From now on this process sees the time as the switches say."""
    wall_ns, clock, clock_ns = time.time_ns, time.clock_gettime, time.clock_gettime_ns

    def shift_ns(which: int) -> int:
        if which == time.CLOCK_REALTIME:
            return switches.wall_ns
        return switches.boot_ns if which == time.CLOCK_BOOTTIME else 0

    time.time_ns = lambda: wall_ns() + switches.wall_ns
    time.time = lambda: (wall_ns() + switches.wall_ns) / 1e9
    time.clock_gettime_ns = lambda which: clock_ns(which) + shift_ns(which)
    time.clock_gettime = lambda which: clock(which) + shift_ns(which) / 1e9


def main(arguments: list[str]) -> int:
    """Be a node; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutation", default="")
    parser.add_argument("--switches", type=Path)
    parser.add_argument("-c", dest="config", type=Path, required=True)
    parser.add_argument("command", choices=("run",))
    options = parser.parse_args(arguments)
    switches = Switches(options.switches) if options.switches is not None else None
    if switches is not None:
        # Before anybody keeps one of them by another name.
        put_clocks_wrong(switches)
    import structlog  # noqa: PLC0415

    from jepsen.mutations import put_in_node  # noqa: PLC0415
    from litereplica.config import load_settings  # noqa: PLC0415
    from litereplica.errors import LitereplicaError  # noqa: PLC0415
    from litereplica.logs import configure_logs  # noqa: PLC0415
    from litereplica.node.main import run_node  # noqa: PLC0415
    from litereplica.store.store import Store  # noqa: PLC0415

    settings = load_settings(options.config, {})
    configure_logs(settings.log.format, settings.log.level)
    if options.mutation:
        put_in_node(options.mutation)
        structlog.get_logger().info("mutation", name=options.mutation)

    def open_store(root: Path, disk: Disk, node: str, compression: str) -> Store:
        return Store.open(root, disk if switches is None else FaultyDisk(switches), node, compression)

    try:
        return run_node(settings, open_store)
    except LitereplicaError as error:
        sys.stderr.write(f"litereplica: {' '.join(error.message.split())}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
