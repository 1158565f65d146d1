"""The WAL and the rollback journal beside a database file.

Knows their names, and how they go for good. Does not know when what they hold does not count any more.
"""

from pathlib import Path
from typing import Final

from litereplica.store.disk import Disk

_SUFFIXES: Final = ("-wal", "-journal")


def sides_of(path: Path) -> list[Path]:
    """What may lie beside the database file ``path``."""
    return [path.with_name(path.name + suffix) for suffix in _SUFFIXES]


def remove_sides(disk: Disk, path: Path) -> None:
    """Remove a WAL and a journal of which nobody needs anything any more: durable. Raises OSError."""
    sides = [side for side in sides_of(path) if side.exists()]
    for side in sides:
        disk.unlink(side)
    if sides:
        disk.fsync_directory(path.parent)
