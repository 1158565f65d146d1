"""A random application in a process of its own: ``program.py MOUNT SEED WORKER SECONDS``.

Knows SQLite: that of apsw, because older ones (3.40.1 among them) commit transactions that their own recovery does not
find (test_equal.py has the case), and this program meets that within seconds.
Everything that it does follows from the seed, except how its steps meet those of the other workers.
Ends with 0, or with 1 and a line about an error that no application should see.
"""

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import apsw

SHARED: Final = ("shared.db", "folder/shared.db")
PAGE_SIZES: Final = (512, 1024, 4096, 8192, 65536)
# What concurrent applications do to each other, with or without us.
EXPECTED: Final = ("locked", "busy", "no such table", "already exists", "no such savepoint", "schema has changed")


class Program:
    def __init__(self, mount: str, seed: str, worker: str) -> None:
        self.mount = Path(mount)
        self.random = random.Random(f"{seed} {worker}")
        self.own = f"own{worker}.db"
        self.open: dict[str, apsw.Connection] = {}
        self.steps = 0

    def connection(self, name: str) -> apsw.Connection:
        found = self.open.get(name)
        if found is None:
            path = self.mount / name
            path.parent.mkdir(exist_ok=True)
            found = self.open[name] = apsw.Connection(str(path))
            found.set_busy_timeout(20_000)
            if self.random.random() < 0.5:
                found.execute(f"PRAGMA page_size={self.random.choice(PAGE_SIZES)}")
                found.execute(f"PRAGMA auto_vacuum={self.random.choice((0, 1, 2))}")
            found.execute("PRAGMA journal_mode=WAL")
            found.execute(f"PRAGMA synchronous={self.random.choice(('OFF', 'NORMAL', 'FULL'))}")
            found.execute(f"PRAGMA cache_size={self.random.choice((5, 50, 2000))}")
            found.execute(f"PRAGMA wal_autocheckpoint={self.random.choice((0, 20, 1000))}")
            found.execute("CREATE TABLE IF NOT EXISTS t0 (id INTEGER PRIMARY KEY, v BLOB)")
        return found

    def close(self, name: str) -> None:
        found = self.open.pop(name, None)
        if found is not None:
            found.close()

    def blob(self) -> bytes:
        most = self.random.choice((10, 10, 300, 300, 5_000, 5_000, 100_000, 2_000_000))
        return self.random.randbytes(self.random.randint(0, most))

    def table(self) -> str:
        return f"t{self.random.randint(0, 3)}"

    def change(self, connection: apsw.Connection) -> None:
        table, number = self.table(), self.random.randint(0, 400)
        kind = self.random.random()
        if kind < 0.5:
            for _ in range(self.random.choice((1, 1, 3, 40))):
                key = self.random.randint(0, 400)
                connection.execute(f"INSERT OR REPLACE INTO {table} (id, v) VALUES (?, ?)", (key, self.blob()))
        elif kind < 0.7:
            connection.execute(f"UPDATE {table} SET v = ? WHERE id BETWEEN ? AND ?", (self.blob(), number, number + 5))
        elif kind < 0.9:
            connection.execute(f"DELETE FROM {table} WHERE id BETWEEN ? AND ?", (number, number + 100))
        elif kind < 0.94:
            connection.execute(f"CREATE TABLE IF NOT EXISTS {table} (id INTEGER PRIMARY KEY, v BLOB)")
        elif kind < 0.96:
            connection.execute(f"CREATE INDEX IF NOT EXISTS i_{table} ON {table} (substr(v, 1, 20))")
        elif kind < 0.98 and table != "t0":
            connection.execute(f"DROP TABLE IF EXISTS {table}")
        else:
            connection.execute(f"ALTER TABLE {table} ADD COLUMN c{self.random.randint(0, 1 << 40)} DEFAULT 7")

    def transaction(self, connection: apsw.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            for _ in range(self.random.randint(1, 6)):
                if self.random.random() < 0.3:
                    connection.execute("SAVEPOINT s")
                    self.change(connection)
                    if self.random.random() < 0.5:
                        connection.execute("ROLLBACK TO s")
                    connection.execute("RELEASE s")
                else:
                    self.change(connection)
            connection.execute("COMMIT" if self.random.random() < 0.8 else "ROLLBACK")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def vacuum(self, connection: apsw.Connection) -> None:
        connection.execute(self.random.choice(("VACUUM", "PRAGMA incremental_vacuum(20)")))

    def checkpoint(self, connection: apsw.Connection) -> None:
        kind = self.random.choice(("PASSIVE", "FULL", "RESTART", "TRUNCATE"))
        connection.execute(f"PRAGMA wal_checkpoint({kind})").fetchall()

    def read(self, connection: apsw.Connection) -> None:
        connection.execute(f"SELECT count(*), sum(length(v)) FROM {self.table()}").fetchall()

    def drop(self) -> None:
        self.close(self.own)
        for each in (self.own, f"{self.own}-wal", f"{self.own}-shm"):
            (self.mount / each).unlink(missing_ok=True)

    def step(self) -> None:
        self.steps += 1
        name = self.random.choice((*SHARED, self.own))
        kind = self.random.random()
        if kind < 0.02:
            self.drop()
        elif kind < 0.08:
            self.close(name)
        else:
            choices: list[Callable[[apsw.Connection], None]] = [self.transaction, self.change, self.read]
            choices += [self.vacuum, self.checkpoint]
            weights = (40, 40, 10, 2, 6)
            self.random.choices(choices, weights)[0](self.connection(name))


def main(mount: str, seed: str, worker: str, seconds: str) -> int:
    program = Program(mount, seed, worker)
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        try:
            program.step()
        except apsw.Error as error:
            if not any(each in str(error) for each in EXPECTED):
                print(f"worker {worker}, step {program.steps}: {type(error).__name__}: {error}")  # noqa: T201
                return 1
            for connection in program.open.values():
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
    for name in list(program.open):
        program.close(name)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
