"""The disk refuses what SQLite does to a WAL: what was refused never happens, and what happens is logged."""

import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from litereplica.errors import Refused
from litereplica.ltx.format import Origin
from litereplica.mount.access import FOR_EVER
from litereplica.mount.operations import Operations
from litereplica.mount.wal_file import WalFile
from litereplica.sqlite.wal import FRAME_HEADER_BYTES, WAL_HEADER_BYTES, encode_frames
from litereplica.store.database import ROLLBACK_MODE
from tests.mount.refusing import SIZE, Writer, adopted_wal, refused, wal_header
from tests.store.named_calls import NamedCalls

FRAME = FRAME_HEADER_BYTES + SIZE
# The kernel hands over a write in pieces, cut where a page of the file ends.
CUT = 4096 - WAL_HEADER_BYTES
TAILS = [b"\0" * 56, b"\xff" * 56, bytes(range(56))]


async def commit_refused(disk: NamedCalls, root: Path, tail: bytes, code: int) -> tuple[Writer, bytes]:
    """A COMMIT whose last piece, ``tail``, is in the file already, of a WAL before, and is refused when it comes."""
    writer, original, wal = await adopted_wal(root, disk)
    file, count = writer.open(), writer.store.databases["app.db"].page_count
    old = b"OLD" + original[2 * SIZE + 3 : 3 * SIZE - len(tail)] + tail
    header = wal_header(1)
    frame, _, _ = encode_frames(header, header.s0, header.s1, [(3, old)], count)
    await wal.write_request(0, header.encode())
    await wal.write_request(32, frame[:24])
    await wal.write_request(56, frame[24:])
    await file.write(2 * SIZE, old)
    header = wal_header(2)
    frame, _, _ = encode_frames(header, header.s0, header.s1, [(3, b"NEW" + old[3:])], count)
    await wal.write_request(0, header.encode())
    await wal.write_request(32, frame[:24])
    await wal.write_request(56, frame[24:CUT])
    disk.code = code
    disk.refuses = lambda call, path: call == "pwrite" and path.name.endswith(".ltx")
    assert await refused(wal, 32 + CUT, frame[CUT:]) == code
    # SQLite was told of a short write, and tries the rest of it again.
    assert await refused(wal, 32 + CUT, frame[CUT:]) == code
    disk.well_again()
    return writer, old


@pytest.mark.parametrize("tail", TAILS, ids=["zeroes", "ones", "numbers"])
async def test_a_commit_that_was_refused_is_not_made_by_a_close(tmp_path: Path, tail: bytes) -> None:
    writer, _ = await commit_refused(NamedCalls(), tmp_path / "data", tail, errno.EIO)
    wal, database = writer.open().wal, writer.store.databases["app.db"]
    assert wal is not None
    before = database.position
    await wal.released(opener_is_gone=False)
    assert database.position == before
    writer.close()


@pytest.mark.parametrize("tail", TAILS, ids=["zeroes", "ones", "numbers"])
async def test_a_commit_that_was_refused_is_not_made_by_a_checkpoint(tmp_path: Path, tail: bytes) -> None:
    writer, old = await commit_refused(NamedCalls(), tmp_path / "data", tail, errno.ENOSPC)
    database = writer.store.databases["app.db"]
    before = database.position
    with pytest.raises(pyfuse3.FUSEError):
        await writer.open().write(2 * SIZE, b"NEW" + old[3:])
    assert database.position == before
    writer.close()


async def test_the_next_transaction_after_a_refused_one_is_committed(tmp_path: Path) -> None:
    writer, old = await commit_refused(NamedCalls(), tmp_path / "data", TAILS[2], errno.ENOSPC)
    wal, database = writer.open().wal, writer.store.databases["app.db"]
    assert wal is not None
    before = database.position.txid
    header = wal_header(2)
    # The same once more: also a transaction that is made again.
    for number in range(2):
        frame, s0, s1 = encode_frames(header, header.s0, header.s1, [(3, b"NEW" + old[3:])], database.page_count)
        at = WAL_HEADER_BYTES
        if number:
            at += FRAME
            frame, s0, s1 = encode_frames(header, s0, s1, [(3, old)], database.page_count)
        await wal.write_request(at, frame[:24])
        await wal.write_request(at + 24, frame[24:])
        assert database.position.txid == before + number + 1
    writer.close()


async def test_in_a_rollback_mode_what_cannot_be_made_durable_does_not_happen_and_the_node_is_fenced(
    tmp_path: Path,
) -> None:
    """A new primary still reads such a database through the WAL of its time as a replica."""
    disk = NamedCalls()
    writer, _, wal = await adopted_wal(tmp_path / "data", disk)
    database = writer.store.databases["app.db"]
    database.journal_mode = ROLLBACK_MODE
    before = database.position.txid
    header = wal_header(1)
    await wal.write_request(0, header.encode())
    frame, s0, s1 = encode_frames(header, header.s0, header.s1, [(3, bytes(SIZE))], database.page_count)
    await wal.write_request(WAL_HEADER_BYTES, frame)
    assert database.log.durable_txid == database.position.txid == before + 1
    page = bytes([7]) * SIZE
    frame, _, _ = encode_frames(header, s0, s1, [(3, page)], database.page_count)
    disk.refuses = lambda call, _path: call == "fdatasync"
    assert await refused(wal, WAL_HEADER_BYTES + FRAME, frame) == errno.EIO
    assert writer.access.fenced is not None
    assert database.position.txid == before + 1
    assert page not in wal.path.read_bytes()
    writer.close()


async def test_a_refused_transaction_of_another_node_is_not_made_by_a_close(tmp_path: Path) -> None:
    disk = NamedCalls()
    writer, original, wal = await adopted_wal(tmp_path / "data", disk)
    database = writer.store.databases["app.db"]
    header = wal_header(1)
    frame, _, _ = encode_frames(header, header.s0, header.s1, [(3, original[2 * SIZE : 3 * SIZE])], database.page_count)
    before = database.position
    writer.access.expected["app.db"] = (before, Origin("b", 7))
    await wal.write_expected(0, header.encode())
    await wal.write_expected(32, frame[:24])
    await wal.write_expected(56, frame[24:CUT])
    disk.refuses = lambda call, path: call == "pwrite" and path.name.endswith(".ltx")
    with pytest.raises(OSError, match="Input/output"):
        await wal.write_expected(32 + CUT, frame[CUT:])
    disk.well_again()
    with pytest.raises(pyfuse3.FUSEError):
        await wal.write_expected(32 + CUT, frame[CUT:])
    await wal.released(opener_is_gone=False)
    assert database.position == before
    writer.access.expected["app.db"] = (before, Origin("b", 7))
    await wal.write_expected(32, frame[:24])
    await wal.write_expected(56, frame[24:])
    assert database.position.txid == before.txid + 1
    writer.close()


async def test_a_database_whose_removal_the_disk_refuses_is_gone_all_the_same(tmp_path: Path) -> None:
    disk = NamedCalls()
    writer, original, wal = await adopted_wal(tmp_path / "data", disk)
    database = writer.store.databases["app.db"]
    operations = Operations(writer.store, writer.access)
    operations.tree = writer.tree
    page = (4, original[3 * SIZE : 4 * SIZE])
    header = wal_header(1)
    frame, s0, s1 = encode_frames(header, header.s0, header.s1, [page], 11)
    await wal.write_request(0, header.encode())
    await wal.write_request(WAL_HEADER_BYTES, frame)
    name = pyfuse3.FileNameT(b"app.db")
    context: Any = SimpleNamespace(pid=1)
    disk.refuses = lambda call, path: call == "unlink" and path.name == "app.db"
    with pytest.raises(pyfuse3.FUSEError):
        await operations.unlink(pyfuse3.ROOT_INODE, name, context)
    disk.well_again()
    dropped = database.position
    assert not database.exists
    # Of one who has it open: what it commits is gone too.
    frame, _, _ = encode_frames(header, s0, s1, [page], 11)
    assert await refused(wal, WAL_HEADER_BYTES + FRAME, frame) == errno.EIO
    assert database.position == dropped
    assert writer.tree.known("app.db") is None
    await operations.unlink(pyfuse3.ROOT_INODE, name, context)
    assert not writer.path.exists()
    writer.close()


async def test_frames_that_are_not_all_of_a_database_do_not_make_one(tmp_path: Path) -> None:
    writer, original, wal = await adopted_wal(tmp_path / "data", NamedCalls())
    database = writer.store.databases["app.db"]
    pages = [(pgno, original[(pgno - 1) * SIZE : pgno * SIZE]) for pgno in range(1, 12)]
    header = wal_header(1)
    frame, s0, s1 = encode_frames(header, header.s0, header.s1, pages[3:4], 11)
    await wal.write_request(0, header.encode())
    await wal.write_request(WAL_HEADER_BYTES, frame)
    database.drop()
    dropped = database.position
    frame, _, _ = encode_frames(header, s0, s1, pages[3:4], 11)
    assert await refused(wal, WAL_HEADER_BYTES + FRAME, frame) == errno.EIO
    assert database.position == dropped
    frames, _, _ = encode_frames(header, s0, s1, pages, 11)
    await wal.write_request(WAL_HEADER_BYTES + FRAME, frames)
    assert database.position.txid == dropped.txid + 1
    writer.close()


@pytest.mark.parametrize("primary", [True, False])
async def test_a_wal_that_the_disk_does_not_cut_is_followed_on(tmp_path: Path, primary: bool) -> None:
    disk = NamedCalls()
    writer, original, wal = await adopted_wal(tmp_path / "data", disk)
    database = writer.store.databases["app.db"]
    page = b"X" + original[2 * SIZE + 1 : 3 * SIZE]
    header = wal_header(1)
    frame, s0, s1 = encode_frames(header, header.s0, header.s1, [(3, page)], 11)
    await wal.write_request(0, header.encode())
    await wal.write_request(WAL_HEADER_BYTES, frame)
    await writer.open().write(2 * SIZE, page)
    if not primary:
        wal.end_as_primary()
        writer.access.primary = False
        writer.access.elsewhere = SimpleNamespace()
    disk.refuses = lambda call, path: call == "truncate" and path.name.endswith("-wal")
    with pytest.raises(OSError, match="Input/output"):
        await wal.truncate(0)
    disk.well_again()
    assert wal.detector.committed_frames == 1
    # SQLite pays no heed to that, and goes on behind what it finds.
    writer.access.primary = True
    wal.begin_as_primary(1)
    before = database.position.txid
    frame, s0, s1 = encode_frames(header, s0, s1, [(4, page)], 11)
    at = WAL_HEADER_BYTES + FRAME
    await wal.write_request(at, frame[:24])
    await wal.write_request(at + 24, frame[24:])
    assert database.position.txid == before + 1
    await writer.open().write(3 * SIZE, page)
    await wal.truncate(0)
    assert (wal.size(), wal.detector.committed_frames) == (0, 0)
    writer.close()


class Refusing:
    """An Elsewhere that takes no transaction; ``refuses`` is called before it says so."""

    def __init__(self) -> None:
        self.refuses: Callable[[], object] = lambda: None

    def problem(self, _name: str) -> None:
        """It would take one."""

    async def ready(self, _database: object) -> None:
        pass

    async def commit(self, _transaction: object, _awaited: object, *, durable: bool) -> None:  # noqa: ARG002
        self.refuses()
        raise Refused("the primary refuses")


class PageDisk(NamedCalls):
    """Refuses the writes to a WAL that have one of ``sizes``, or are at an offset beyond ``room`` bytes."""

    __slots__ = ("room", "sizes")

    def __init__(self) -> None:
        super().__init__()
        self.sizes: set[int] = set()
        self.room = 1 << 60

    def pwrite(self, descriptor: int, data: bytes | memoryview, offset: int) -> int:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        if name.endswith("-wal") and (len(data) in self.sizes or offset + len(data) > self.room):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().pwrite(descriptor, data, offset)


async def held_commit(root: Path, disk: PageDisk) -> tuple[Writer, WalFile, Refusing, bytes]:
    """A replica's WAL whose application has written all of a frame but its last bytes, which are the answer."""
    writer, original, wal = await adopted_wal(root, disk)
    header = wal_header(1)
    await wal.write_request(0, header.encode())
    wal.end_as_primary()
    writer.access.primary = False
    elsewhere = Refusing()
    writer.access.elsewhere = elsewhere  # type: ignore[assignment]
    frame, _, _ = encode_frames(header, header.s0, header.s1, [(3, b"X" + original[2 * SIZE + 1 : 3 * SIZE])], 11)
    await wal.write_request(WAL_HEADER_BYTES, frame[:24])
    await wal.write_request(WAL_HEADER_BYTES + 24, frame[24:CUT])
    return writer, wal, elsewhere, frame[CUT:]


async def test_a_wal_does_not_become_shorter_than_the_kernel_has_counted(tmp_path: Path) -> None:
    disk = PageDisk()
    writer, wal, _, rest = await held_commit(tmp_path / "data", disk)
    assert wal.size() == 4096
    disk.room = 4096
    assert await refused(wal, 4096, rest) == errno.ENOSPC
    assert wal.size() >= 4096
    writer.close()


async def test_the_page_of_a_refused_commit_is_spoiled_though_its_header_cannot_be(tmp_path: Path) -> None:
    disk = PageDisk()
    writer, wal, elsewhere, rest = await held_commit(tmp_path / "data", disk)
    elsewhere.refuses = lambda: disk.sizes.add(FRAME_HEADER_BYTES)
    assert await refused(wal, 4096, rest) == errno.EIO
    assert wal.read_now(WAL_HEADER_BYTES + FRAME_HEADER_BYTES, SIZE) == b"\xff" * SIZE
    writer.close()


async def test_it_is_said_when_the_page_of_a_refused_commit_cannot_be_spoiled(tmp_path: Path) -> None:
    disk = PageDisk()
    writer, wal, elsewhere, rest = await held_commit(tmp_path / "data", disk)
    elsewhere.refuses = lambda: disk.sizes.add(SIZE)
    with capture_logs() as lines:
        assert await refused(wal, 4096, rest) == errno.EIO
    assert [line["event"] for line in lines if line["log_level"] == "warning"] == ["refused_not_spoiled"]
    assert wal.read_now(WAL_HEADER_BYTES, FRAME_HEADER_BYTES) == bytes(FRAME_HEADER_BYTES)
    writer.close()


async def test_a_database_that_enters_the_log_with_its_wal_is_not_counted_once_the_fence_has_closed(
    tmp_path: Path,
) -> None:
    disk = NamedCalls()
    writer = Writer(tmp_path / "data", disk)
    with sqlite3.connect(writer.path) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t (v)")
    connection.close()
    writer.open()
    writer.path.with_name("app.db-wal").touch()
    wal = writer.tree.take("app.db-wal", directory=False).file
    assert isinstance(wal, WalFile)
    wal.ensure_open()

    def close_fence(call: str, path: Path) -> bool:
        if call == "pwrite" and path.suffix == ".ltx":
            writer.access.accepts_until = 0.0
        return False

    disk.refuses = close_fence
    assert await refused(wal, 0, wal_header(1).encode()) == errno.EIO
    database = writer.store.databases["app.db"]
    assert (database.position.txid, database.log.uncounted) == (0, 0)
    disk.well_again()
    writer.access.accepts_until = FOR_EVER
    await wal.write_request(0, wal_header(1).encode())
    assert database.position.txid == 1
    writer.close()


async def test_who_waits_to_empty_the_wal_may_do_so_no_more_once_this_node_is_no_primary(tmp_path: Path) -> None:
    writer, original, wal = await adopted_wal(tmp_path / "data", NamedCalls())
    database = writer.store.databases["app.db"]
    header = wal_header(1)
    frame, _, _ = encode_frames(header, header.s0, header.s1, [(3, b"NEW" + original[2 * SIZE + 3 : 3 * SIZE])], 11)
    await wal.write_request(0, header.encode())
    await wal.write_request(WAL_HEADER_BYTES, frame)
    # As after a checkpoint: nothing but the role is in the way.
    await writer.open().write(2 * SIZE, frame[FRAME_HEADER_BYTES:])
    size = wal.size()
    wal.hold()
    codes: list[int] = []

    async def empty() -> None:
        with pytest.raises(pyfuse3.FUSEError) as error:
            await wal.truncate(0)
        codes.append(error.value.errno)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(empty)
        await trio.testing.wait_all_tasks_blocked()
        writer.access.primary = False
        wal.let_go()
    assert codes == [errno.EIO]
    assert wal.size() == size
    assert database.position.txid == 2
    writer.close()
