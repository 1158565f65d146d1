"""The file of a dropped database, between the record that says so and the unlink.

Knows how to tell it, after a crash, from a new file that an application has made under the same name: a second name of
the same inode in the database's folder. While that exists the inode's number cannot be used again. Does not know why a
database was dropped.
"""

import contextlib
from pathlib import Path
from typing import Final

import structlog

from litereplica.store.disk import Disk
from litereplica.store.sides import remove_sides

log = structlog.get_logger()

DROPPED_NAME: Final = "dropped"


def keep_dropped(disk: Disk, path: Path, directory: Path) -> None:
    """Before a drop is logged: remember which file it means. Raises OSError (a full disk)."""
    forget_dropped(disk, directory)
    with contextlib.suppress(FileNotFoundError):
        try:
            disk.link(path, directory / DROPPED_NAME)
        except PermissionError:
            # A file system without hard links: after a crash in the instant before the unlink the file stays.
            log.warning("dropped_file_not_marked", path=str(path))
        disk.fsync_directory(directory)


def forget_dropped(disk: Disk, directory: Path) -> None:
    """Let the remembered file go: it is unlinked, or the database is there again."""
    with contextlib.suppress(FileNotFoundError):
        disk.unlink(directory / DROPPED_NAME)


def forget_unlinked(disk: Disk, path: Path, directory: Path) -> None:
    """The same, if the file has lost its place; makes that durable first."""
    kept = directory / DROPPED_NAME
    if kept.exists() and not _same(path, kept):
        if path.parent.is_dir():
            disk.fsync_directory(path.parent)
        forget_dropped(disk, directory)


def finish_drop(disk: Disk, path: Path, directory: Path, *, dropped: bool) -> None:
    """After a crash. ``dropped``: the log ends with the drop; else its record was lost, or more follow it."""
    kept = directory / DROPPED_NAME
    if not kept.exists():
        return
    if dropped and (not path.exists() or _same(path, kept)):
        # The sides first: with the file goes what tells that they are its own.
        remove_sides(disk, path)
        if path.exists():
            disk.unlink(path)
            disk.fsync_directory(path.parent)
    elif not dropped and not path.exists():
        disk.make_directories(path.parent)
        disk.link(kept, path)
        disk.fsync_directory(path.parent)
    forget_dropped(disk, directory)


def _same(path: Path, kept: Path) -> bool:
    try:
        return path.samefile(kept)
    except FileNotFoundError:
        return False
