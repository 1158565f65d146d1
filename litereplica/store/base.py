"""How far redo has to go back: the base, made durable.

Knows what has to be on the disk before the meta file may say so. Does not know when the database file is complete up to
a position: whoever sees the checkpoint tells the database.
"""

import contextlib
from typing import TYPE_CHECKING

from litereplica.store.roll_back import journal_of

if TYPE_CHECKING:
    from litereplica.store.database import Database


async def advance_base(database: "Database") -> None:
    """Make it durable that the database file holds everything up to ``database.base``.

    OSError: it is unknown what the file holds on the disk; redo goes on beginning where it did.
    """
    base, pages, folded = database.base, database.base_pages, database.install_folded
    if base == database.saved_base and not folded:
        return
    if database.file_failure is not None:
        # The kernel reports a lost write only once (fsync(2)): a later success would mean nothing.
        raise OSError(database.file_failure.errno, database.file_failure.strerror)
    generation, page_size = database.log.generation, database.page_size
    await database.log.sync()
    disk, path = database.store.disk, database.file_path

    def sync_files() -> None:
        # A database that was dropped need not have a file.
        with contextlib.suppress(FileNotFoundError):
            disk.sync_file(path)
            # The end of a rollback journal too: one that a loss of power brought back would be played back into a
            # file whose newest pages are in no record that is redone.
            with contextlib.suppress(FileNotFoundError):
                disk.sync_file(journal_of(path))
            disk.fsync_directory(path.parent)
        database.checksums.sync()

    try:
        await database.store.calls.run(sync_files)
    except OSError as error:
        database.file_failure = error
        raise
    if database.log.generation != generation or database.page_size != page_size:
        # A snapshot has replaced the file meanwhile, and says itself where its base is; or the meta file's page size
        # would be one that this base does not have yet.
        return
    if database.saved_base.txid > base.txid:
        # Who asked later was faster; the log before its base may be gone.
        return
    before = database.saved_base, database.saved_base_pages
    database.saved_base, database.saved_base_pages = base, pages
    try:
        database.save_meta()
    except OSError:
        # The log after the base that a start would find is still needed, and the next call has to do this again.
        database.saved_base, database.saved_base_pages = before
        raise
    if folded and database.kept_install is not None:
        disk.unlink(database.kept_install)
        database.kept_install = None
        database.install_folded = False
