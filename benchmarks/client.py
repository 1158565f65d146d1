"""The measured program: an ordinary SQLite client, in a process of its own, the same for every system.

``python -m benchmarks.client MODE '{"option": value, …}'`` prints one JSON object a line, the result last.

Knows paths of databases and the standard library's sqlite3. Knows nothing of mounts, nodes or replicas: where a path
leads is the caller's affair, and that is what makes the figures comparable. Times are of ``CLOCK_MONOTONIC``, which all
processes of a machine share.
"""

import contextlib
import json
import os
import random
import select
import sqlite3
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

PAYLOAD = "litereplica benchmark row " * 4  # 104 bytes: "about 100" of every question on small transactions
WARM_UP_TRANSACTIONS = 200
WARM_UP_TIMED = 10
# A transaction that is refused for so long is not going to be taken.
TRIES_LIMIT_S = 30.0
BLOB_BYTES = 500_000
READ_ROW_BYTES = 1000
FILL_ROW_BYTES = 1000
# Rows of filler a transaction: 32 MB, so that a WAL stays small beside the databases that are filled.
FILL_ROWS = 32_000
BUSY_TIMEOUT_S = 30.0
# A replica that does not have the database yet is asked again this often. Waits of this kind are never part of a figure
# finer than a millisecond.
ASK_AGAIN_S = 0.002

Result = dict[str, object]


def say(result: Result) -> None:
    print(json.dumps(result), flush=True)


def connect(path: str, synchronous: str = "NORMAL", journal: str = "WAL") -> sqlite3.Connection:
    """A read-write connection in that journal mode; statements outside BEGIN commit by themselves."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT_S)
    mode = connection.execute(f"PRAGMA journal_mode={journal}").fetchone()[0]
    if mode != journal.lower():
        raise SystemExit(f"{path}: journal mode is {mode}, not {journal.lower()}")
    connection.execute(f"PRAGMA synchronous={synchronous}")
    return connection


def connect_reader(path: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_S)


def small(path: str, synchronous: str, seconds: float, journal: str = "WAL") -> Result:
    """Transactions of one inserted row, for so many seconds, the default checkpoints among them."""
    with closing(connect(path, synchronous, journal)) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS small(id INTEGER PRIMARY KEY, payload TEXT)")
        insert = "INSERT INTO small(payload) VALUES(?)"
        for _ in range(WARM_UP_TRANSACTIONS):
            connection.execute(insert, (PAYLOAD,))
        count = 0
        begin = now = time.monotonic()
        end = begin + seconds
        while now < end:
            connection.execute(insert, (PAYLOAD,))
            count += 1
            now = time.monotonic()
        (last,) = connection.execute("SELECT MAX(id) FROM small").fetchone()
    return {"transactions": count, "seconds": now - begin, "last": last}


def update(path: str, seconds: float) -> Result:
    """Transactions that each change one random row of the filler."""
    chosen = random.Random(7)
    with closing(connect(path)) as connection:
        (rows,) = connection.execute("SELECT MAX(id) FROM filler").fetchone()
        statement = "UPDATE filler SET version = version + 1 WHERE id = ?"
        for _ in range(WARM_UP_TRANSACTIONS):
            connection.execute(statement, (chosen.randint(1, rows),))
        count = 0
        begin = now = time.monotonic()
        while now < begin + seconds:
            connection.execute(statement, (chosen.randint(1, rows),))
            count += 1
            now = time.monotonic()
    return {"transactions": count, "seconds": now - begin}


def tries_until_taken(connection: sqlite3.Connection, insert: str) -> int:
    """Inserts one row, again at once when it is refused; how often it was tried."""
    tries = 0
    end = time.monotonic() + TRIES_LIMIT_S
    while True:
        tries += 1
        try:
            connection.execute(insert, (PAYLOAD,))
        except sqlite3.OperationalError as error:
            if time.monotonic() > end:
                raise SystemExit(f"refused {tries} times in {TRIES_LIMIT_S:g} s: {error}") from None
        else:
            return tries


def timed(path: str, synchronous: str, seconds: float, *, halt: bool = False) -> Result:
    """Transactions of one inserted row; how long each took, with all its tries. `halt`: under the database's lock."""
    with contextlib.ExitStack() as stack:
        if halt:
            stack.enter_context(Path(f"{path}-halt").open("w"))
        connection = stack.enter_context(closing(connect(path, synchronous)))
        insert = "INSERT INTO small(payload) VALUES(?)"
        taken_ns: list[int] = []
        tries = 0
        end = None
        while end is None or time.monotonic() < end:
            begin = time.monotonic_ns()
            tries += tries_until_taken(connection, insert)
            taken_ns.append(time.monotonic_ns() - begin)
            if end is None and len(taken_ns) == WARM_UP_TIMED:
                taken_ns, tries = [], 0
                end = time.monotonic() + seconds
        (last,) = connection.execute("SELECT MAX(id) FROM small").fetchone()
    return {"taken_ns": taken_ns, "tries": tries, "last": last}


def load(path: str, rate_per_s: float) -> Result:
    """Small transactions at a steady rate, or without pause at 0, until standard input ends; the slowest of them."""
    with closing(connect(path)) as connection:
        say({"ready": True})
        slowest_ns = count = 0
        begin = time.monotonic()
        while not select.select((sys.stdin,), (), (), 0)[0]:
            wait_s = begin + count / rate_per_s - time.monotonic() if rate_per_s else 0.0
            if wait_s > 0:
                time.sleep(wait_s)
            before = time.monotonic_ns()
            connection.execute("INSERT INTO small(payload) VALUES(?)", (PAYLOAD,))
            slowest_ns = max(slowest_ns, time.monotonic_ns() - before)
            count += 1
        return {"transactions": count, "seconds": time.monotonic() - begin, "slowest_ns": slowest_ns}


def large(path: str, size_bytes: int) -> Result:
    """One transaction of so many bytes in blobs of half a megabyte; COMMIT ends with SQLite's own checkpoint."""
    blob = os.urandom(BLOB_BYTES)
    with closing(connect(path)) as connection:
        connection.execute("CREATE TABLE large(id INTEGER PRIMARY KEY, payload BLOB)")
        begin = time.monotonic()
        connection.execute("BEGIN")
        for _ in range(size_bytes // BLOB_BYTES):
            connection.execute("INSERT INTO large(payload) VALUES(?)", (blob,))
        connection.execute("COMMIT")
        seconds = time.monotonic() - begin
        (last,) = connection.execute("SELECT MAX(id) FROM large").fetchone()
    return {"bytes": size_bytes // BLOB_BYTES * BLOB_BYTES, "seconds": seconds, "last": last}


def checkpoint(path: str, size_bytes: int) -> Result:
    """A WAL of so many bytes, then the time of one complete checkpoint of it."""
    with closing(connect(path)) as connection:
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("CREATE TABLE large(id INTEGER PRIMARY KEY, payload BLOB)")
        blob = os.urandom(BLOB_BYTES)
        wal = Path(f"{path}-wal")
        while wal.stat().st_size < size_bytes:
            connection.execute("INSERT INTO large(payload) VALUES(?)", (blob,))
        wal_bytes = wal.stat().st_size
        begin = time.monotonic()
        busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        seconds = time.monotonic() - begin
        if busy:
            raise SystemExit(f"{path}: the checkpoint was refused (busy)")
    return {"bytes": wal_bytes, "seconds": seconds}


def hold_rows(path: str, rows: int, *, in_wal: bool) -> Result:
    """Rows to read, in the WAL or in the database file, kept there until standard input ends."""
    with closing(connect(path)) as connection:
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("CREATE TABLE reads(id INTEGER PRIMARY KEY, payload BLOB)")
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO reads(payload) VALUES(?)", ((os.urandom(READ_ROW_BYTES),) for _ in range(rows))
        )
        connection.execute("COMMIT")
        if not in_wal:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        say({"ready": True})
        sys.stdin.read()
    return {"rows": rows}


def read(path: str, rows: int, seconds: float) -> Result:
    """Random point reads for so many seconds; then whole scans for as long."""
    chosen = random.Random(7)
    with closing(connect_reader(path)) as connection:
        statement = "SELECT payload FROM reads WHERE id = ?"
        count = 0
        begin = now = time.monotonic()
        while now < begin + seconds:
            (_,) = connection.execute(statement, (chosen.randint(1, rows),)).fetchone()
            count += 1
            now = time.monotonic()
        points_s = now - begin
        scanned = 0
        begin = now = time.monotonic()
        while now < begin + seconds:
            scanned += connection.execute("SELECT SUM(LENGTH(payload)) FROM reads").fetchone()[0]
            now = time.monotonic()
    return {"points": count, "points_s": points_s, "scanned_bytes": scanned, "scans_s": now - begin}


def await_row(path: str, table: str, last: int, seconds: float) -> Result:
    """Waits until a reader of this path sees row `last` of `table`; `at_s` is when it did."""
    deadline = time.monotonic() + seconds
    connection: sqlite3.Connection | None = None
    while time.monotonic() < deadline:
        try:
            connection = connection or connect_reader(path)
            if connection.execute(f"SELECT 1 FROM {table} WHERE id = ?", (last,)).fetchone():
                return {"at_s": time.monotonic()}
        except sqlite3.OperationalError:
            # Not there yet, or there without the table: a new connection finds out.
            if connection:
                connection.close()
                connection = None
        time.sleep(ASK_AGAIN_S)
    raise SystemExit(f"{path}: row {last} of {table} was not there after {seconds:g} s")


def write_paced(path: str, rate_per_s: float, count: int) -> Result:
    """So many small transactions at a steady rate; when each COMMIT had returned, in nanoseconds."""
    with closing(connect(path)) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS small(id INTEGER PRIMARY KEY, payload TEXT)")
        connection.execute("INSERT INTO small(payload) VALUES(?)", (PAYLOAD,))
        (first,) = connection.execute("SELECT MAX(id) + 1 FROM small").fetchone()
        say({"ready": True, "first": first})
        sys.stdin.readline()
        committed: list[int] = []
        begin = time.monotonic()
        for turn in range(count):
            wait_s = begin + turn / rate_per_s - time.monotonic()
            if wait_s > 0:
                time.sleep(wait_s)
            connection.execute("INSERT INTO small(payload) VALUES(?)", (PAYLOAD,))
            committed.append(time.monotonic_ns())
    return {"first": first, "committed_ns": committed}


def watch(path: str, first: int, count: int, seconds: float) -> Result:
    """Reads the highest row number without pause; when each of `count` rows from `first` on was seen first."""
    seen: list[int] = []
    deadline = time.monotonic() + seconds
    with closing(connect_reader(path)) as connection:
        statement = "SELECT MAX(id) FROM small"
        connection.execute(statement).fetchone()
        say({"ready": True})
        while len(seen) < count:
            (highest,) = connection.execute(statement).fetchone()
            now = time.monotonic_ns()
            while first + len(seen) <= (highest or 0):
                seen.append(now)
            if now > deadline * 1e9:
                raise SystemExit(f"{path}: saw {len(seen)} of {count} rows in {seconds:g} s")
    return {"seen_ns": seen}


def fill(path: str, size_bytes: int) -> Result:
    """Grows the table `filler` until the database has at least so many bytes, then checkpoints."""
    with closing(connect(path)) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS filler(id INTEGER PRIMARY KEY, version INTEGER, payload BLOB)")
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
        while True:
            missing = size_bytes - page_bytes * connection.execute("PRAGMA page_count").fetchone()[0]
            if missing <= 0:
                break
            rows = min(FILL_ROWS, missing // FILL_ROW_BYTES + 1)
            connection.execute(
                "WITH RECURSIVE turn(n) AS (VALUES(1) UNION ALL SELECT n + 1 FROM turn WHERE n < ?) "
                "INSERT INTO filler(version, payload) SELECT 0, randomblob(?) FROM turn",
                (rows, FILL_ROW_BYTES),
            )
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (last,) = connection.execute("SELECT MAX(id) FROM filler").fetchone()
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
    return {"last": last, "bytes": pages * page_bytes}


def create_many(path: str, first: int, count: int) -> Result:
    """Databases `path` + number + .db, each with the table of small transactions."""
    for number in range(first, first + count):
        with closing(connect(f"{path}{number:04}.db")) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS small(id INTEGER PRIMARY KEY, payload TEXT)")
    return {"created": count}


def small_in_many(path: str, count: int, seconds: float) -> Result:
    """Small transactions, each in the next of `count` databases, over connections that stay open."""
    connections = [connect(f"{path}{number:04}.db") for number in range(count)]
    insert = "INSERT INTO small(payload) VALUES(?)"
    for connection in connections:
        connection.execute(insert, (PAYLOAD,))
    transactions = 0
    begin = now = time.monotonic()
    while now < begin + seconds:
        connections[transactions % count].execute(insert, (PAYLOAD,))
        transactions += 1
        now = time.monotonic()
    # The last one written to, so that a caller can wait for it on a replica.
    number = (transactions - 1) % count
    (last,) = connections[number].execute("SELECT MAX(id) FROM small").fetchone()
    for connection in connections:
        connection.close()
    return {"transactions": transactions, "seconds": now - begin, "number": number, "last": last}


def copy(source: str, path: str) -> Result:
    """The bytes of a file copied to a new durable one: what a snapshot is compared with."""
    begin = time.monotonic()
    with Path(source).open("rb", buffering=0) as origin, Path(path).open("wb", buffering=0) as target:
        while data := origin.read(1 << 20):
            target.write(data)
        os.fsync(target.fileno())
    return {"seconds": time.monotonic() - begin, "bytes": Path(path).stat().st_size}


def remove(paths: list[str]) -> Result:
    """Databases that are no longer needed, with what SQLite left beside them."""
    for path in paths:
        # The database first: a mount does not give away a WAL that has transactions of it.
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(path + suffix).unlink(missing_ok=True)
    return {"removed": len(paths)}


MODES: Mapping[str, Callable[..., Result]] = {
    mode.__name__: mode
    for mode in (
        small, update, timed, load, large, checkpoint, hold_rows, read, await_row, write_paced, watch, fill,
        create_many, small_in_many, copy, remove,
    )
}  # fmt: skip


def main() -> None:
    mode, options = sys.argv[1], json.loads(sys.argv[2])
    say(MODES[mode](**options))


if __name__ == "__main__":
    main()
