"""What applications do on the mount while the trace is recorded: random programs of ordinary SQLite.

Knows statements and what SQLite promises when COMMIT returns; tells the trace what was acknowledged. Every transaction
raises a number in a table of its database, so that a state tells which transactions it has. Does not know nodes.
"""

import contextlib
import errno
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.crash.oracle import ACKS, MULTI
from tests.crash.recording import Step
from tests.support.sql import Session, SqlError

COPIED: Final = "copied.db"
PAGE_SIZES: Final = (512, 1024, 4096)
ROLLBACK_MODES: Final = ("DELETE", "TRUNCATE", "PERSIST")
_TABLES: Final = (
    f"CREATE TABLE IF NOT EXISTS {ACKS} (writer INTEGER PRIMARY KEY, number)",
    f"CREATE TABLE IF NOT EXISTS {MULTI} (writer INTEGER PRIMARY KEY, number)",
    "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, v)",
    "CREATE INDEX IF NOT EXISTS i ON t (v)",
)
# Rows that a database has about: 200 pages of 512 bytes, so that a state is small and a VACUUM has something to do.
_ROWS: Final = 120


@dataclass
class _Database:
    name: str
    session: Session | None = None
    page_size: int = 512
    synchronous: str = "FULL"
    mode: str = "WAL"
    number: int = 0
    exists: bool = False


@dataclass
class Program:
    """One run. ``modes``: journal modes that databases may have.

    ``multi``: the first two databases are written together, through ATTACH, when both have a rollback journal.
    ``unsafe``: synchronous=OFF also with a rollback journal.
    """

    mount: Path
    record: Callable[[Step], None]
    seed: int
    modes: tuple[str, ...] = ("WAL",)
    multi: bool = False
    unsafe: bool = False
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self._databases = [_Database(name) for name in ("a.db", "b.db", "dir/c.db")]
        self._multi_number = 0
        self._writer = 1

    @property
    def groups(self) -> list[list[str]]:
        return [["a.db", "b.db"]] if self.multi else []

    def run(self, actions: int) -> None:
        (self.mount / "dir").mkdir(exist_ok=True)
        for database in self._databases:
            with contextlib.suppress(SqlError):
                self._open(database)
        for _ in range(actions):
            self._act()

    @property
    def names(self) -> list[str]:
        return [each.name for each in self._databases]

    def start_existing(self) -> None:
        """The databases may be there already, with the numbers of another program in them."""
        for database in self._databases:
            database.exists = (self.mount / database.name).exists()
        self._writer = 2

    def close(self) -> None:
        """Let all connections go, some as a crash of their program does."""
        for database in self._databases:
            self._close(database)

    def gone(self) -> None:
        """The node was killed under the programs: they end too."""
        for database in self._databases:
            if database.session is not None:
                database.session.kill()
                database.session = None

    # -- actions ---------------------------------------------------------------------------------------------------

    def _act(self) -> None:
        kinds: list[tuple[Callable[[_Database], None], int]] = [
            (self._commit, 40), (self._commit_big, 6), (self._spill, 4), (self._roll_back, 4), (self._savepoint, 3),
            (self._checkpoint, 8), (self._reopen, 4), (self._vacuum, 2), (self._shrink, 3), (self._drop, 1),
            (self._synchronous, 4), (self._other_checkpoint, 2), (self._restart_wal, 2), (self._die, 2),
            (self._commit_huge, 1), (self._copy_in, 2), (self._vacuum_into, 1),
            (self._switch, 4 if len(self.modes) > 1 else 0), (self._commit_both, 8 if self.multi else 0),
        ]  # fmt: skip
        action = self.chance.choices([each for each, _ in kinds], [weight for _, weight in kinds])[0]
        database = self.chance.choice(self._databases)
        name = action.__name__.removeprefix("_")
        self.counts[name] = self.counts.get(name, 0) + 1
        self.record(["note", f"{name} {database.name}"])
        try:
            self._open(database)
            action(database)
        except SqlError as error:
            # A refusal that is part of the program's life (a commit that cannot be captured, a lock).
            self.counts["refused"] = self.counts.get("refused", 0) + 1
            self.record(["note", f"refused {name} {database.name}: {error}"])
            session = database.session
            if session is not None:
                with contextlib.suppress(SqlError):
                    session.run("ROLLBACK")

    def _open(self, database: _Database) -> Session:
        if database.session is None:
            session = database.session = Session(self.mount / database.name)
            try:
                if database.exists:
                    database.mode = self._mode_found(session)
                else:
                    self._create(database, session)
                self._set_synchronous(database)
            except SqlError:
                database.session = None
                session.close()
                raise
        return database.session

    def _create(self, database: _Database, session: Session) -> None:
        database.page_size = self.chance.choice(PAGE_SIZES)
        session.run(f"PRAGMA page_size={database.page_size}")
        if self.chance.random() < 0.3:
            session.run("PRAGMA auto_vacuum=1")
        database.mode = self.chance.choice(self.modes)
        session.run(f"PRAGMA journal_mode={database.mode}")
        session.run("BEGIN IMMEDIATE")
        for statement in _TABLES:
            session.run(statement)
        session.run("COMMIT")
        database.exists = True

    def _mode_found(self, session: Session) -> str:
        """A mode other than WAL is the connection's own."""
        if session.run("PRAGMA journal_mode") == [("wal",)]:
            return "WAL"
        others = [mode for mode in self.modes if mode != "WAL"] or ["DELETE"]
        return str(session.run(f"PRAGMA journal_mode={self.chance.choice(others)}")[0][0]).upper()

    def _set_synchronous(self, database: _Database) -> None:
        assert database.session is not None
        if database.synchronous == "OFF" and database.mode != "WAL" and not self.unsafe:
            # Then SQLite itself promises nothing after a loss of power; and writes no super-journal.
            database.synchronous = "NORMAL"
        database.session.run(f"PRAGMA synchronous={database.synchronous}")
        database.session.run(f"PRAGMA wal_autocheckpoint={self.chance.choice([0, 20, 100])}")

    def _close(self, database: _Database) -> None:
        session, database.session = database.session, None
        if session is not None:
            if self.chance.random() < 0.2:
                session.kill()
            else:
                session.close()

    def _blob(self) -> bytes:
        return self.chance.randbytes(self.chance.choice([10, 100, 100, 700, 3000]))

    def _change(self, session: Session, times: int) -> None:
        for _ in range(times):
            row = self.chance.randint(1, _ROWS)
            if self.chance.random() < 0.8:
                session.run("INSERT OR REPLACE INTO t VALUES (?, ?)", row, self._blob())
            else:
                session.run("DELETE FROM t WHERE id = ?", row)

    def _finish(self, database: _Database) -> None:
        """The transaction's number, COMMIT, and word of it in the trace."""
        session = database.session
        assert session is not None
        database.number += 1
        session.run(f"INSERT OR REPLACE INTO {ACKS} VALUES (?, ?)", self._writer, database.number)
        session.run("COMMIT")
        self._acknowledged([database], ACKS, database.number)

    def _acknowledged(self, databases: list[_Database], table: str, number: int) -> None:
        for each in databases:
            durable = each.mode != "WAL" or each.synchronous in ("FULL", "EXTRA")
            self.record(["ack", [each.name], table, self._writer, number, durable])

    def _commit(self, database: _Database) -> None:
        for _ in range(self.chance.randint(1, 5)):
            session = self._open(database)
            session.run("BEGIN IMMEDIATE")
            self._change(session, self.chance.randint(0, 4))
            self._finish(database)

    def _commit_big(self, database: _Database) -> None:
        session = self._open(database)
        session.run("BEGIN IMMEDIATE")
        self._change(session, 40)
        self._finish(database)

    def _commit_huge(self, database: _Database) -> None:
        """More pages than one block of a record holds; and away with them."""
        session = self._open(database)
        if database.page_size < PAGE_SIZES[-1]:
            return  # thousands of pages would make every start after it slow
        session.run("BEGIN IMMEDIATE")
        session.run("INSERT OR REPLACE INTO t VALUES (?, randomblob(1100000))", _ROWS + 1)
        self._finish(database)
        session.run("DELETE FROM t WHERE id = ?", _ROWS + 1)
        session.run("VACUUM")

    def _copy_in(self, database: _Database) -> None:
        """``cp`` of a database file into the mount, over one that is there from the second time on."""
        with tempfile.TemporaryDirectory(prefix="litereplica-crash-") as folder:
            made = Path(folder) / "made.db"
            with Session(made) as session:
                session.run(f"PRAGMA page_size={database.page_size}")
                session.run("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
                self._change(session, 20)
            try:
                shutil.copyfile(made, self.mount / COPIED)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.ENOSPC, errno.EIO):
                    raise
                self.counts["refused"] = self.counts.get("refused", 0) + 1
                self.record(["note", f"refused copy_in: {error}"])

    def _vacuum_into(self, database: _Database) -> None:
        target = self.mount / "into.db"
        target.unlink(missing_ok=True)
        self._open(database).run("VACUUM INTO ?", str(target))

    def _spill(self, database: _Database) -> None:
        """A transaction that does not fit into the page cache."""
        session = self._open(database)
        session.run("PRAGMA cache_size=5")
        try:
            session.run("BEGIN IMMEDIATE")
            self._change(session, 50)
            if self.chance.random() < 0.7:
                self._finish(database)
            else:
                session.run("ROLLBACK")
        finally:
            with contextlib.suppress(SqlError):
                session.run("PRAGMA cache_size=-2000")

    def _roll_back(self, database: _Database) -> None:
        session = self._open(database)
        session.run("BEGIN IMMEDIATE")
        self._change(session, 6)
        session.run("ROLLBACK")

    def _savepoint(self, database: _Database) -> None:
        session = self._open(database)
        session.run("BEGIN IMMEDIATE")
        self._change(session, 3)
        session.run("SAVEPOINT s")
        self._change(session, 6)
        session.run("ROLLBACK TO s")
        self._change(session, 2)
        session.run("RELEASE s")
        self._finish(database)

    def _checkpoint(self, database: _Database) -> None:
        kind = self.chance.choice(["PASSIVE", "FULL", "RESTART", "TRUNCATE"])
        self._open(database).run(f"PRAGMA wal_checkpoint({kind})")

    def _other_checkpoint(self, database: _Database) -> None:
        """Another program does it, beside a reader or not."""
        session = self._open(database)
        if self.chance.random() < 0.5:
            session.run("BEGIN")
            session.run("SELECT count(*) FROM t")
        try:
            with Session(self.mount / database.name, busy_s=0.1) as other:
                other.run(f"PRAGMA wal_checkpoint({self.chance.choice(['PASSIVE', 'TRUNCATE'])})")
        finally:
            with contextlib.suppress(SqlError):
                session.run("COMMIT")

    def _restart_wal(self, database: _Database) -> None:
        session = self._open(database)
        session.run("PRAGMA wal_checkpoint(PASSIVE)")
        self._commit(database)

    def _reopen(self, database: _Database) -> None:
        self._close(database)
        self._open(database)

    def _die(self, database: _Database) -> None:
        """The program is killed in the middle of a transaction, of which some is in the files already."""
        session = self._open(database)
        session.run("PRAGMA cache_size=5")
        session.run("BEGIN IMMEDIATE")
        self._change(session, self.chance.choice([2, 40]))
        session.kill()
        database.session = None

    def _vacuum(self, database: _Database) -> None:
        self._open(database).run("VACUUM")

    def _shrink(self, database: _Database) -> None:
        session = self._open(database)
        session.run("BEGIN IMMEDIATE")
        session.run("DELETE FROM t WHERE id % 3 = ?", self.chance.randint(0, 2))
        self._finish(database)
        if self.chance.random() < 0.5:
            session.run("VACUUM")

    def _drop(self, database: _Database) -> None:
        """Remove the file, as programs do, and make it again."""
        if self.multi and database.name in self.groups[0]:
            return  # its counterpart would keep the rows that both have
        session, database.session = database.session, None
        if session is not None:
            session.close()
        (self.mount / database.name).unlink()
        for suffix in ("-wal", "-shm", "-journal"):
            (self.mount / (database.name + suffix)).unlink(missing_ok=True)
        database.exists = False
        self._open(database)

    def _synchronous(self, database: _Database) -> None:
        database.synchronous = self.chance.choice(["FULL", "FULL", "NORMAL", "EXTRA", "OFF"])
        self._set_synchronous(database)

    def _switch(self, database: _Database) -> None:
        mode = self.chance.choice(self.modes)
        rows = self._open(database).run(f"PRAGMA journal_mode={mode}")
        database.mode = str(rows[0][0]).upper()
        self._set_synchronous(database)

    def _commit_both(self, _: _Database) -> None:
        one, other = self._databases[:2]
        for each in (one, other):
            self._open(each)
        if "WAL" in (one.mode, other.mode) or "OFF" in (one.synchronous, other.synchronous):
            return
        session = self._open(one)
        session.run("ATTACH ? AS other", str(self.mount / other.name))
        try:
            session.run(f"PRAGMA other.journal_mode={other.mode}")
            session.run(f"PRAGMA other.synchronous={other.synchronous}")
            session.run("BEGIN IMMEDIATE")
            self._change(session, 2)
            session.run("INSERT OR REPLACE INTO other.t VALUES (?, ?)", self.chance.randint(1, _ROWS), self._blob())
            self._multi_number += 1
            for table in (f"main.{MULTI}", f"other.{MULTI}"):
                session.run(f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", self._writer, self._multi_number)
            session.run("COMMIT")
            self._acknowledged([one, other], MULTI, self._multi_number)
        except SqlError:
            with contextlib.suppress(SqlError):
                session.run("ROLLBACK")
            raise
        finally:
            with contextlib.suppress(SqlError):
                session.run("DETACH other")
