"""Names and inodes, when the disk does not answer."""

import errno
import os
from pathlib import Path

import pytest

from litereplica.mount.access import Access
from litereplica.mount.tree import Tree
from tests.store.application import Application, open_store
from tests.store.faulty_disk import FaultyDisk

NAME = "app.db-journal"


class UnreadableDisk(FaultyDisk):
    """Reads fail while ``fails``."""

    fails = False

    def pread(self, descriptor: int, size: int, offset: int) -> bytes:
        if self.fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().pread(descriptor, size, offset)


def test_a_journal_that_could_not_be_read_once_can_be_opened_when_the_disk_is_well(tmp_path: Path) -> None:
    disk = UnreadableDisk(tmp_path / "data", tmp_path / "graves")
    store = open_store(tmp_path / "data", disk)
    Application(store).start()
    store.file_path(NAME).write_bytes(bytes(512))
    tree = Tree(store, Access())
    disk.fails = True
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output"):
            tree.take(NAME, directory=False)
        assert tree.known(NAME) is None
    assert not tree.journals.unnamed
    disk.fails = False
    inode = tree.take(NAME, directory=False)
    assert inode.file is not None
    assert inode.file is tree.database_file("app.db").journal
    tree.close()
    store.close()
