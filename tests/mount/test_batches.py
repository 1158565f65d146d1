"""A writer other than SQLite's own may put many frames into one write."""

from pathlib import Path

import trio

from litereplica.ltx.checksum import page_checksum
from litereplica.mount.access import Access
from litereplica.mount.database_file import DatabaseFile
from litereplica.mount.tree import Tree
from litereplica.mount.wal_file import WalFile
from litereplica.sqlite.wal import WalHeader, encode_frames
from litereplica.store.disk import Disk
from litereplica.store.store import Store

PAGES = 600  # more than are held in memory
BATCH = 100  # frames in the last write


async def test_frames_of_the_write_that_commits_are_taken_from_it_and_not_from_the_old_file(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "data", Disk(), "a")
    access = Access()
    access.primary = True
    tree = Tree(store, access)
    (tmp_path / "data" / "files" / "app.db").touch()
    (tmp_path / "data" / "files" / "app.db-wal").touch()
    file = tree.database_file("app.db")
    assert isinstance(file, DatabaseFile)
    file.ensure_open()
    wal = tree.take("app.db-wal", directory=False).file
    assert isinstance(wal, WalFile)
    wal.ensure_open()
    try:
        for lap in range(1, 4):
            header = WalHeader.build(page_size=4096, checkpoint_sequence=lap, salt1=lap, salt2=lap + 7)
            pages = [(pgno, bytes([lap, pgno % 251]) * 2048) for pgno in range(1, PAGES + 1)]
            data, _, _ = encode_frames(header, header.s0, header.s1, pages, PAGES)
            cut = (PAGES - BATCH) * (4096 + 24)
            await wal.write_request(0, header.encode())
            await wal.write_request(32, data[:cut])
            await wal.write_request(32 + cut, data[cut:])
            database = store.databases["app.db"]
            wanted = 0
            for pgno, page in pages:
                wanted ^= page_checksum(pgno, page)
            assert (database.position.txid, database.position.checksum) == (lap, wanted)
            # A checkpoint: else the WAL may not begin again.
            store.disk.pwrite(file.descriptor, b"".join(page for _, page in pages), 0)
            await trio.lowlevel.checkpoint()
    finally:
        tree.close()
        store.close()
