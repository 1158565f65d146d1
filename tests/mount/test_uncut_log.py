"""The disk refuses a record and then to cut what is left of it: only a restart can tell what is in the log.

So the node is fenced, and whoever holds the lease hears of it: the other nodes are whole.
"""

import errno
import os
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import pyfuse3
import pytest

from litereplica.sqlite.wal import FRAME_HEADER_BYTES, WAL_HEADER_BYTES, encode_frames
from litereplica.store.disk import Disk
from tests.mount.refusing import SIZE, Writer, adopted, adopted_wal, refused, wal_header
from tests.store.named_calls import NamedCalls

REASON = "the log of app.db failed (Input/output error): check the disk, then restart this node"

Attempt = Callable[[], Awaitable[object]]


async def _in_wal(root: Path, disk: Disk, *, at_once: bool) -> tuple[Writer, Attempt]:
    """``at_once``: with the WAL's header in the same write, which takes the slow path."""
    writer, original, wal = await adopted_wal(root, disk)
    header = wal_header(1)
    frame, _, _ = encode_frames(header, header.s0, header.s1, [(3, b"X" + original[2 * SIZE + 1 : 3 * SIZE])], 11)
    if not at_once:
        await wal.write_request(0, header.encode())
        await wal.write_request(WAL_HEADER_BYTES, frame[:FRAME_HEADER_BYTES])

    async def commit() -> None:
        if at_once:
            assert await refused(wal, 0, header.encode() + frame) == errno.EIO
        else:
            assert await refused(wal, WAL_HEADER_BYTES + FRAME_HEADER_BYTES, frame[FRAME_HEADER_BYTES:]) == errno.EIO

    return writer, commit


async def wal(root: Path, disk: Disk) -> tuple[Writer, Attempt]:
    return await _in_wal(root, disk, at_once=False)


async def wal_with_its_header(root: Path, disk: Disk) -> tuple[Writer, Attempt]:
    return await _in_wal(root, disk, at_once=True)


async def journal(root: Path, disk: Disk) -> tuple[Writer, Attempt]:
    writer, original = await adopted(root, disk)
    live = await writer.change(original, [1, 2, 3])

    async def commit() -> None:
        with pytest.raises(OSError, match="Input/output"):
            await writer.end(live)

    return writer, commit


async def copy(root: Path, disk: Disk) -> tuple[Writer, Attempt]:
    writer = Writer(root, disk)
    with sqlite3.connect(writer.path) as connection:
        connection.execute("CREATE TABLE t (v)")
    connection.close()
    file = writer.open()
    file.importers = 1

    async def commit() -> None:
        with pytest.raises(OSError, match="Input/output"):
            await file.copied()

    return writer, commit


async def drop(root: Path, disk: Disk) -> tuple[Writer, Attempt]:
    writer, _ = await adopted(root, disk)
    file = writer.open()

    async def commit() -> None:
        with pytest.raises(OSError, match="Input/output"):
            file.drop(writer.store.databases["app.db"])

    return writer, commit


def told(writer: Writer) -> list[str]:
    heard: list[str] = []
    writer.access.told_fenced = heard.append
    return heard


@pytest.mark.parametrize("way", [wal, wal_with_its_header, journal, copy, drop])
async def test_a_record_that_could_not_be_cut_fences_the_node(
    tmp_path: Path, way: Callable[[Path, Disk], Awaitable[tuple[Writer, Attempt]]]
) -> None:
    disk = NamedCalls()
    writer, commit = await way(tmp_path / "data", disk)
    heard = told(writer)
    database = writer.store.databases.get("app.db")
    before = database.position.txid if database is not None else 0
    disk.refuses = lambda call, path: call in {"pwrite", "truncate"} and path.suffix == ".ltx"
    await commit()
    disk.well_again()
    assert writer.access.fenced == REASON
    assert heard == [REASON]
    assert writer.store.databases["app.db"].position.txid == before
    writer.close()
    again = Writer(tmp_path / "data", Disk())
    known = again.store.get("app.db")
    assert (known.position.txid if known is not None else 0) == before
    again.close()


async def test_the_record_of_a_journal_whose_end_is_refused_fences_the_node_if_it_cannot_be_cut(tmp_path: Path) -> None:
    """A start will find it whole, and the transaction was refused: nothing may follow it until then."""
    disk = NamedCalls()
    writer, commit = await journal(tmp_path / "data", disk)
    heard = told(writer)
    disk.refuses = lambda call, path: (call == "truncate" and path.suffix == ".ltx") or call == "unlink"
    await commit()
    disk.well_again()
    assert heard == [REASON]
    assert writer.store.databases["app.db"].position.txid == 1
    writer.close()


async def test_a_log_that_failed_before_this_node_became_the_primary_fences_it_with_the_first_commit(
    tmp_path: Path,
) -> None:
    """What was received could not be cut when the connection to the last primary ended."""
    disk = NamedCalls()
    writer, commit = await wal(tmp_path / "data", disk)
    heard = told(writer)
    database = writer.store.databases["app.db"]
    database.append_bytes(b"LRX1 the beginning of a record")
    disk.refuses = lambda call, path: call == "truncate" and path.suffix == ".ltx"
    with pytest.raises(OSError, match="Input/output"):
        database.cut_uncounted()
    disk.well_again()
    assert writer.access.fenced is None
    await commit()
    assert heard == [REASON]
    writer.close()


async def test_a_content_that_is_still_to_be_put_in_place_fences_nobody(tmp_path: Path) -> None:
    """That is made up for without a restart."""
    writer, _ = await wal(tmp_path / "data", Disk())
    database = writer.store.databases["app.db"]
    error = database.install_failure = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    database.log.fail(error)
    writer.open().say_refused(pyfuse3.FUSEError(errno.EIO))
    assert writer.access.fenced is None
    writer.close()
