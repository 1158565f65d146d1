"""Records of any length are applied in bounded memory, one database beside the other."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from litereplica.applier.protocol import Applied, Apply
from tests.applier.support import Child, Client, Primary, assert_equal_files, client, rows, together

# A child with one database needs about 25 MiB, of which numpy is the most; the rest is room for the pieces.
MEMORY_LIMIT_KIB = 48 << 10


def test_a_record_of_100_mb_needs_little_memory_and_is_one_transaction(tmp_path: Path, child: Child) -> None:
    primary, other = Primary(tmp_path), Primary(tmp_path, "other.db")
    child.apply(primary.change("CREATE TABLE t (data)"))
    child.apply(other.change("CREATE TABLE t (n)"))
    span = primary.change("INSERT INTO t VALUES (randomblob(100000000))")
    assert span.length > 100_000_000
    with client(child.mount / "app.db") as reader:
        child.send(span)
        others = 0
        most = 0
        while True:
            child.send(other.change("INSERT INTO t VALUES (1)"))
            message = child.expect(Applied)
            most = max(most, child.pss_kib())
            if message.database == "app.db":
                break
            others += 1
            assert reader.run("SELECT count(*) FROM t") in ([(0,)], [(1,)])
        assert others > 10  # the long record held nobody up
        assert reader.run("SELECT length(data) FROM t") == [(100_000_000,)]
    assert most < MEMORY_LIMIT_KIB, most
    assert_equal_files(primary, child.mount / "app.db")


def test_compressed_zeros_do_not_fill_the_memory(tmp_path: Path, child: Child) -> None:
    primary = Primary(tmp_path)
    primary.execute("CREATE TABLE t (data)")
    primary.execute("INSERT INTO t VALUES (zeroblob(200000000))")
    primary.spans()
    pages = primary.file_pages()
    span = primary.log(pages, len(pages), compression="zstd")
    assert span.length < 1 << 20
    child.send(span._replace(first_txid=span.first_txid))
    most = 0
    while True:
        most = max(most, child.pss_kib())
        child.socket.settimeout(0.05)
        try:
            if child.expect(Applied):
                break
        except TimeoutError:
            continue
    child.socket.settimeout(60)
    assert most < MEMORY_LIMIT_KIB, most
    assert rows(child.mount / "app.db", "SELECT length(data) FROM t") == [(200_000_000,)]


def test_a_redo_of_many_spans_is_one_transaction(tmp_path: Path, child: Child) -> None:
    """Whatever was handed out before a death comes back as a whole: no reader sees a part of it."""
    primary = Primary(tmp_path)
    spans = [primary.change("CREATE TABLE t (data)")]
    spans += [primary.change("INSERT INTO t VALUES (randomblob(400000))") for _ in range(12)]
    child.send(*(span._replace(redo_until=10) for span in spans[:9]))
    child.socket.settimeout(0.3)
    try:
        unexpected = child.receive()
    except TimeoutError:
        unexpected = None
    assert unexpected is None, unexpected
    child.socket.settimeout(60)
    child.send(together(spans[9:]))
    assert child.expect(Applied).txid == 13
    assert_equal_files(primary, child.mount / "app.db")


def test_a_redo_over_what_a_dead_applier_published_never_goes_back(tmp_path: Path) -> None:
    """It died after the commit frame and before it could say so; recovery by a reader shows its transaction."""
    primary = Primary(tmp_path)
    first = primary.change("CREATE TABLE t (n)")
    rest = [primary.change("INSERT INTO t VALUES (randomblob(300000))") for _ in range(6)]
    replica = tmp_path / "mount/app.db"
    with client_kept(replica, tmp_path, first, rest) as reader, Child(tmp_path / "mount") as second:
        assert reader.run("SELECT count(*) FROM t") == [(6,)]
        for span in rest:
            second.send(span._replace(redo_until=7))
            assert reader.run("SELECT count(*) FROM t") == [(6,)]
        second.expect_applied(7)
        assert reader.run("SELECT count(*) FROM t") == [(6,)]
        assert_equal_files(primary, replica)


@contextmanager
def client_kept(replica: Path, folder: Path, first: Apply, rest: list[Apply]) -> Iterator[Client]:
    """A reader that was there before the applier died, so that -wal and -shm outlive it."""
    with Child(folder / "mount") as dead:
        dead.apply(first)
        found = Client(replica)
        found.run("SELECT count(*) FROM t")
        dead.apply(*rest)
        with (replica.parent / "app.db-shm").open("r+b") as shm:
            shm.write(bytes(48))  # the header as a death in publish leaves it: copy 1 is not copy 2
    try:
        yield found
    finally:
        found.close()


def test_the_wal_index_grows_as_sqlite_expects_it(tmp_path: Path, child: Child) -> None:
    """Many blocks of 4,096 frames, and readers that look pages up in each of them."""
    primary = Primary(tmp_path, page_size=512)
    child.apply(primary.change("CREATE TABLE t (id INTEGER PRIMARY KEY, data)"))
    with client(child.mount / "app.db") as reader:
        reader.run("BEGIN")
        reader.run("SELECT * FROM t")
        for _ in range(5):
            child.apply(primary.change("INSERT INTO t (data) VALUES (randomblob(4000000))"))
        assert (child.mount / "app.db-shm").stat().st_size >= 9 * 32768
        assert rows(child.mount / "app.db", "PRAGMA integrity_check") == [("ok",)]
        assert rows(child.mount / "app.db", "SELECT sum(length(data)) FROM t") == [(20_000_000,)]
    assert_equal_files(primary, child.mount / "app.db")
