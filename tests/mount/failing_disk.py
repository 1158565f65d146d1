"""Runs a node whose disk cannot make log segments durable as long as a certain file is there.

The file's text may name other files, by the end of their paths or of their folders', and what of them fails:
``[CALL:]END``, a line each; CALL is fdatasync, fsync_directory, truncate or unlink; of pread, one in three.
Usage, put before a node's own command: ``python -m tests.mount.failing_disk FILE python -m litereplica -c CONFIG run``.
"""

import errno
import os
import random
import sys
from pathlib import Path
from typing import Final

from litereplica.config import load_settings
from litereplica.errors import LitereplicaError
from litereplica.logs import configure_logs
from litereplica.node.main import run_node
from litereplica.store.disk import Disk
from litereplica.store.store import Store

_DESCRIPTORS: Final = Path("/proc/self/fd")


class FailingDisk(Disk):
    """While ``fails`` exists, such a call answers as the kernel does when the disk has lost a write."""

    __slots__ = ("_fails", "_numbers")

    def __init__(self, fails: Path) -> None:
        self._fails = fails
        self._numbers = random.Random(1)

    def _check(self, call: str, path: Path) -> None:
        if not self._fails.exists():
            return
        for line in self._fails.read_text(encoding="utf-8").split() or [".ltx"]:
            failing, _, ending = line.rpartition(":")
            if (failing or "fdatasync") == call and (str(path).endswith(ending) or str(path.parent).endswith(ending)):
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    def pread(self, descriptor: int, size: int, offset: int) -> bytes:
        if self._fails.exists() and self._numbers.random() < 1 / 3:
            self._check("pread", (_DESCRIPTORS / str(descriptor)).readlink())
        return super().pread(descriptor, size, offset)

    def fdatasync(self, descriptor: int) -> None:
        self._check("fdatasync", (_DESCRIPTORS / str(descriptor)).readlink())
        super().fdatasync(descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        self._check("truncate", (_DESCRIPTORS / str(descriptor)).readlink())
        super().truncate(descriptor, size)

    def unlink(self, path: Path) -> None:
        self._check("unlink", path)
        super().unlink(path)

    def fsync_directory(self, path: Path) -> None:
        self._check("fsync_directory", path)
        super().fsync_directory(path)


def main(arguments: list[str]) -> int:
    disk = FailingDisk(Path(arguments[0]))
    settings = load_settings(Path(arguments[arguments.index("-c") + 1]), {})
    configure_logs(settings.log.format, settings.log.level)
    try:
        return run_node(settings, lambda root, _, node, compression: Store.open(root, disk, node, compression))
    except LitereplicaError as error:
        sys.stderr.write(f"{error.message}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
