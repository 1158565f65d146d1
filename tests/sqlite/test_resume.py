"""A detector that begins in the middle: the WAL was written by others (a node that has become primary)."""

import contextlib
import random
from pathlib import Path

import apsw
import pytest

from litereplica.errors import Corrupt
from litereplica.sqlite.detector import CommitDetector
from tests.sqlite.following import Followed, scan
from tests.sqlite.recording import Recorder, open_recorded


def follow_from(before: bytes) -> Followed:
    """A follower of a file with these bytes."""
    followed = Followed(file=bytearray(before))
    followed.detector.resume(scan(before).committed, len(before), followed.read)
    return followed


@pytest.mark.parametrize("seed", range(6))
def test_what_real_sqlite_commits_after_it_began_is_found(tmp_path: Path, seed: int) -> None:
    random_ = random.Random(seed)
    recorder = Recorder(f"resume{seed}")
    path = tmp_path / "app.db"
    page_size = random_.choice((512, 4096, 65536))
    with contextlib.closing(open_recorded(path, recorder, f"resume{seed}", page_size)) as connection:
        connection.execute("CREATE TABLE t (n, v)")
        for number in range(random_.randrange(1, 40)):
            connection.execute("INSERT INTO t VALUES (?, ?)", (number, bytes(random_.randrange(3000))))
            if random_.random() < 0.1:
                connection.execute("PRAGMA wal_checkpoint(RESTART)")
        before = Path(f"{path}-wal").read_bytes()
        followed = follow_from(before)
        known = len(recorder.log)
        count = 0
        for number in range(30):
            connection.execute("INSERT INTO t VALUES (?, ?)", (number, bytes(random_.randrange(3000))))
            count += 1
            if random_.random() < 0.2:
                connection.execute("PRAGMA wal_checkpoint(RESTART)")
        for kind, offset, data in recorder.log[known:]:
            if kind == "write":
                followed.write(offset, data)
            else:
                followed.detector.truncate(offset)
                del followed.file[offset:]
    assert len(followed.commits) == count
    assert not followed.rewinds


def test_an_empty_wal_has_nothing_committed() -> None:
    detector = CommitDetector()
    detector.resume(0, 0, lambda _offset, _size: b"")
    assert detector.committed_frames == 0
    assert not detector.unsettled


@pytest.mark.parametrize("more", [1, 1000])
def test_more_frames_than_the_file_has_are_refused(tmp_path: Path, more: int) -> None:
    path = tmp_path / "app.db"
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        connection.execute("PRAGMA journal_mode=WAL; CREATE TABLE t (n)").fetchall()
        data = Path(f"{path}-wal").read_bytes()
    with pytest.raises(Corrupt, match="not valid"):
        CommitDetector().resume(scan(data).committed + more, len(data), lambda at, size: data[at : at + size])


def test_a_frame_inside_a_transaction_is_no_end(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        connection.execute("PRAGMA journal_mode=WAL; CREATE TABLE t (n)").fetchall()
        data = Path(f"{path}-wal").read_bytes()
    assert scan(data).committed == 2
    with pytest.raises(Corrupt, match="the last of a transaction"):
        CommitDetector().resume(1, len(data), lambda at, size: data[at : at + size])
