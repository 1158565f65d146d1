"""A file system of limited size for one data directory, which can be filled to the last block and emptied again.

Knows tmpfs (kernel documentation, filesystems/tmpfs.rst). Does not know what is kept in it.
"""

import contextlib
import os
import subprocess
from pathlib import Path
from typing import Final

from tests.support.mounts import is_mounted

SIZE_BYTES: Final = 2 * 1024 * 1024 * 1024
"""Room for the logs of dozens of databases, and for what is put aside of them time and again in some minutes."""
RETENTION_AGE: Final = "60s"
"""Of the log on such a disk: a node that was away for longer needs snapshots."""
LIMIT_S: Final = 10.0
_STEPS: Final = (1024 * 1024, 4096)
"""What takes up the room is made longer by so much at a time, then by single blocks."""


class SmallDisk:
    """Mounted at ``folder`` when it is made; who takes down the run takes it away, with everything below its folder."""

    def __init__(self, folder: Path, size_bytes: int = SIZE_BYTES) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._ballast = folder / "ballast"
        options = f"size={size_bytes},mode=0755"
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "litereplica-small", folder], check=True, timeout=LIMIT_S
        )

    @property
    def data(self) -> Path:
        """The data directory in it."""
        return self._folder / "data"

    def fill(self, left_bytes: int = 0) -> None:
        """Take up all the room but ``left_bytes``."""
        descriptor = os.open(self._ballast, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            length = os.fstat(descriptor).st_size
            for step in _STEPS:
                with contextlib.suppress(OSError):
                    while True:
                        os.posix_fallocate(descriptor, length, step)
                        length += step
            os.ftruncate(descriptor, max(0, length - left_bytes))
        finally:
            os.close(descriptor)

    def free(self) -> None:
        """Give the room back; twice is once."""
        self._ballast.unlink(missing_ok=True)

    @property
    def is_there(self) -> bool:
        return is_mounted(self._folder)
