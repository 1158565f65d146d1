"""What an application does, in a process of its own: run as a script, it knows SQLite and nothing of litereplica.

``prepare PATH PAGE_SIZE``: makes a WAL database with the tables that the others use.
``write PATH NAME COUNT SECONDS BYTES PAUSE_S``: rows of one writer, numbered; each acknowledged number on stdout.
``watch PATH``: reads the counter again and again until stdin ends; then one JSON line about what it saw.
"""

import json
import os
import random
import select
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

BUSY_S: Final = 60.0
RETRY_S: Final = 0.02

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS entry (writer TEXT, number INTEGER, payload BLOB, PRIMARY KEY (writer, number));
CREATE TABLE IF NOT EXISTS counter (id INTEGER PRIMARY KEY, value INTEGER);
INSERT OR IGNORE INTO counter VALUES (1, 0);
"""


def connect(path: str) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, timeout=BUSY_S)


def prepare(path: str, page_size: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    connection = connect(path)
    connection.execute(f"PRAGMA page_size={page_size}")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.executescript(SCHEMA)
    connection.close()


# ------------------------------------------------------------------------------------------------------------- write
def write(path: str, name: str, count: str, seconds: str, size: str, pause_s: str) -> None:
    """Insert numbered rows; the counter goes up with each. Ends at the first error, which says so on stdout."""
    connection = connect(path)
    connection.execute("PRAGMA synchronous=NORMAL")
    end = time.monotonic() + float(seconds)
    numbers = random.Random(name)
    most = int(size)
    first = connection.execute("SELECT ifnull(max(number), 0) FROM entry WHERE writer = ?", (name,)).fetchone()[0] + 1
    acknowledged = []
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    said = time.monotonic()
    try:
        for number in range(first, first + int(count)):
            if stop or time.monotonic() > end:
                break
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO entry VALUES (?, ?, ?)", (name, number, numbers.randbytes(most)))
            connection.execute("UPDATE counter SET value = value + 1 WHERE id = 1")
            connection.execute("COMMIT")
            acknowledged.append(number)
            if float(pause_s):
                time.sleep(float(pause_s))
            if time.monotonic() - said > 0.01:
                os.write(1, f"{number}\n".encode())
                said = time.monotonic()
    except sqlite3.Error as error:
        os.write(1, f"{acknowledged[-1] if acknowledged else first - 1}\nstopped: {error}\n".encode())
        return
    os.write(1, f"{acknowledged[-1] if acknowledged else first - 1}\n".encode())
    connection.close()


# ------------------------------------------------------------------------------------------------------------- watch
def watch(path: str) -> None:
    """Never may a later read show an older counter, also over new connections and new mounts."""
    seen, reads, errors, backwards = -1, 0, 0, []
    connection: sqlite3.Connection | None = None
    while not select.select((0,), (), (), 0)[0]:
        try:
            if connection is None:
                # Not created: while the node is down there may be an empty directory instead of the mount.
                connection = sqlite3.connect(f"file:{path}?mode=rw", uri=True, isolation_level=None, timeout=5)
            value = connection.execute("SELECT value FROM counter WHERE id = 1").fetchone()[0]
            rows = connection.execute("SELECT value FROM counter WHERE id = 1").fetchone()[0]
        except sqlite3.Error:
            errors += 1
            if connection is not None:
                connection.close()
                connection = None
            time.sleep(RETRY_S)
            continue
        for each in (value, rows):
            if each < seen:
                backwards.append([seen, each])
            seen = max(seen, each)
        reads += 2
        if reads % 2000 == 0:
            connection.close()
            connection = None
        time.sleep(0.0005)
    sys.stdout.write(json.dumps({"seen": seen, "reads": reads, "errors": errors, "backwards": backwards[:10]}))


if __name__ == "__main__":
    COMMANDS: Final[dict[str, Callable[..., None]]] = {"prepare": prepare, "write": write, "watch": watch}
    COMMANDS[sys.argv[1]](*sys.argv[2:])
