"""An application, in a process of its own: ``worker.py LIBRARY ROOT``. Knows SQLite and nothing of litereplica.

LIBRARY is ``sqlite3`` (the module, with the system's SQLite) or ``apsw`` (with a newer one of its own). Each line of
standard input is the repr of (verb, arguments...); each is answered with the repr of an answer:
("rows", rows, in_transaction) or ("error", name of SQLite's code, text, in_transaction). Long rows come as a digest, so
that only what has to be compared travels. ``%ROOT%`` in a statement stands for the directory of the databases, and
``content(seed, size)`` is an SQL function whose bytes follow from its arguments: a program does the same wherever it
runs.
"""

import ast
import ctypes
import hashlib
import random
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import apsw

# Rows whose repr is longer are compared by their digest.
LONG: Final = 2000
SIDES: Final = ("", "-journal", "-wal", "-shm")
NOT_DATABASES: Final = re.compile(r"^\.|-journal$|-wal$|-shm$|-pos$|-mj[0-9A-F]{9}$")
BURST_BUSY_MS: Final = 25_000
COPY_S: Final = 30.0


def content(*arguments: Any) -> Any:
    seed, size = arguments
    return random.Random(seed).randbytes(size)


class Standard:
    """The sqlite3 module."""

    errors: Final = (sqlite3.Error, sqlite3.Warning, OverflowError)

    def connect(self, path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(path, isolation_level=None, timeout=0)
        connection.create_function("content", 2, content, deterministic=True)
        return connection

    def execute(self, connection: Any, sql: str) -> list[Any]:
        return list(connection.execute(sql).fetchall())

    def in_transaction(self, connection: Any) -> bool:
        return bool(connection.in_transaction)

    def code(self, error: BaseException) -> str:
        return str(getattr(error, "sqlite_errorname", type(error).__name__))

    def backup(self, source: Any, target: Any, pages: int) -> None:
        def progress(status: int, _remaining: int, _total: int) -> None:
            """Without it the module tries for ever."""
            if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise sqlite3.OperationalError("the backup met a lock")

        source.backup(target, pages=pages, sleep=0, progress=progress)

    def persist_wal(self, connection: Any, persist: int) -> None:
        """The module has no way to say it."""


class Newer:
    """apsw, which brings an SQLite of its own."""

    errors: Final = (apsw.Error, OverflowError)

    def connect(self, path: Path) -> apsw.Connection:
        connection = apsw.Connection(str(path))
        connection.create_scalar_function("content", content, 2, deterministic=True)
        return connection

    def execute(self, connection: Any, sql: str) -> list[Any]:
        return list(connection.execute(sql).fetchall())

    def in_transaction(self, connection: Any) -> bool:
        return bool(connection.in_transaction)

    def code(self, error: BaseException) -> str:
        extended = getattr(error, "extendedresult", 0)
        name = apsw.mapping_extended_result_codes.get(extended) or apsw.mapping_result_codes.get(extended & 0xFF)
        return str(name or type(error).__name__)

    def backup(self, source: Any, target: Any, pages: int) -> None:
        with target.backup("main", source, "main") as backup:
            while not backup.done:
                backup.step(pages)

    def persist_wal(self, connection: Any, persist: int) -> None:
        value = ctypes.c_int(persist)
        connection.file_control("main", apsw.SQLITE_FCNTL_PERSIST_WAL, ctypes.addressof(value))


class Worker:
    def __init__(self, library: str, root: str) -> None:
        self.library: Any = Standard() if library == "sqlite3" else Newer()
        self.root = root
        self.open: dict[str, Any] = {}

    def path(self, name: str) -> Path:
        return Path(self.root) / name

    def do_open(self, connection: str, name: str) -> tuple[Any, ...]:
        """SQLite makes the file when it is missing; its directory is made here."""
        path = self.path(name)
        path.parent.mkdir(exist_ok=True)
        self.open[connection] = self.library.connect(path)
        return ("rows", [], False)

    def do_run(self, connection: str, sql: str) -> tuple[Any, ...]:
        found = self.open[connection]
        try:
            rows = self.library.execute(found, sql.replace("%ROOT%", self.root))
        except self.library.errors as error:
            return (*self.failed(error), self.library.in_transaction(found))
        return ("rows", shortened(rows), self.library.in_transaction(found))

    def failed(self, error: BaseException) -> tuple[Any, ...]:
        return ("error", self.library.code(error), str(error))

    def do_transaction(self, connection: str, *statements: str) -> tuple[Any, ...]:
        """Several statements, ended by the first that fails; what is then open is rolled back."""
        found = self.open[connection]
        try:
            for sql in statements:
                self.library.execute(found, sql.replace("%ROOT%", self.root))
        except self.library.errors as error:
            if self.library.in_transaction(found):
                self.library.execute(found, "ROLLBACK")
            return (*self.failed(error), False)
        return ("rows", [], False)

    def do_persist(self, connection: str, persist: str) -> tuple[Any, ...]:
        self.library.persist_wal(self.open[connection], int(persist))
        return ("rows", [], self.library.in_transaction(self.open[connection]))

    def do_close(self, connection: str) -> tuple[Any, ...]:
        self.open.pop(connection).close()
        return ("rows", [], False)

    def do_backup(self, connection: str, name: str, pages: int) -> tuple[Any, ...]:
        """The online backup of a connection's database into another one, which is made or written over."""
        source = self.open[connection]
        target = None
        try:
            target = self.library.connect(self.path(name))
            self.library.backup(source, target, pages)
        except self.library.errors as error:
            return (*self.failed(error), self.library.in_transaction(source))
        finally:
            if target is not None:
                target.close()
        return ("rows", [], self.library.in_transaction(source))

    def do_burst(self, name: str, mode: str, first: int, count: int, most: int, again: bool) -> tuple[Any, ...]:
        """Transactions beside those of other workers, ``most`` commits of them; in the end there are the same rows,
        however they met. ``again``: one of the others is killed, so errors may come once."""
        numbers = random.Random(first)
        connection = self.library.connect(self.path(name))
        try:
            self.library.execute(connection, f"PRAGMA busy_timeout={BURST_BUSY_MS}")
            self.library.execute(connection, f"PRAGMA journal_mode={mode}")
            for key in range(first, first + count):
                ending = "COMMIT" if numbers.random() < 0.9 else "ROLLBACK"
                size, before = numbers.choice((20, 900, 9000, 60_000)), numbers.randint(1, 9)
                if not most:
                    break
                most -= ending == "COMMIT"
                statements = (
                    "BEGIN IMMEDIATE",
                    f"INSERT OR REPLACE INTO t0 VALUES ({key}, content({key}, {size}))",
                    f"UPDATE t0 SET v = content({key}, 50) WHERE id = {key - before}",
                    ending,
                )
                self._try_often(connection, statements, 50 if again else 1)
        except self.library.errors as error:
            return (*self.failed(error), False)
        finally:
            connection.close()
        return ("rows", [], False)

    def _try_often(self, connection: Any, statements: tuple[str, ...], times: int) -> None:
        for left in reversed(range(times)):
            try:
                for sql in statements:
                    self.library.execute(connection, sql)
            except self.library.errors:
                if self.library.in_transaction(connection):
                    self.library.execute(connection, "ROLLBACK")
                if not left:
                    raise
            else:
                return

    def do_remove(self, name: str) -> tuple[Any, ...]:
        for side in SIDES:
            self.path(name + side).unlink(missing_ok=True)
        return ("rows", [], False)

    def do_copy(self, source: str, target: str) -> tuple[Any, ...]:
        done = subprocess.run(
            ["cp", self.path(source), self.path(target)], capture_output=True, text=True, timeout=COPY_S, check=False
        )
        return ("rows", [(done.returncode,)], False)

    def do_list(self) -> tuple[Any, ...]:
        """Names of the files that hold something and are no side files, with their size in bytes."""
        found = [
            (str(path.relative_to(self.root)), path.stat().st_size)
            for path in sorted(Path(self.root).rglob("*"))
            if path.is_file() and not NOT_DATABASES.search(path.name)
        ]
        return ("rows", [each for each in found if each[1]], False)

    def do_digest(self, name: str) -> tuple[Any, ...]:
        """Length and SHA-256 of a file's bytes; nobody in this process may have it open (POSIX locks)."""
        data = self.path(name).read_bytes()
        return ("rows", [(len(data), hashlib.sha256(data).hexdigest())], False)

    def do_dump(self, connection: str) -> tuple[Any, ...]:
        """Everything that a reader can find out about the content of a database."""
        found = self.open[connection]

        def rows(sql: str) -> list[Any]:
            return list(self.library.execute(found, sql))

        # One snapshot for all of it, unless there is a transaction, which has its own.
        own = not self.library.in_transaction(found)
        try:
            if own:
                rows("BEGIN")
            said: list[Any] = [
                (name, rows(f"PRAGMA {name}"))
                for name in ("journal_mode", "page_size", "auto_vacuum", "user_version", "page_count", "freelist_count")
            ]
            schema = rows("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name")
            said.append(("schema", schema))
            for kind, name, *_ in schema:
                if kind == "table":
                    content_of = rows(f"SELECT rowid, * FROM {name} NOT INDEXED ORDER BY rowid")
                    said.append((name, len(content_of), digest(content_of)))
            said.append(("integrity_check", rows("PRAGMA integrity_check")))
            if own:
                rows("COMMIT")
        except self.library.errors as error:
            if own and self.library.in_transaction(found):
                rows("ROLLBACK")
            return (*self.failed(error), self.library.in_transaction(found))
        return ("rows", said, self.library.in_transaction(found))


def digest(rows: list[Any]) -> str:
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:20]


def shortened(rows: list[Any]) -> list[Any]:
    return rows if len(repr(rows)) <= LONG else [(len(rows), digest(rows))]


def main(library: str, root: str) -> None:
    worker = Worker(library, root)
    for line in sys.stdin:
        verb, *arguments = ast.literal_eval(line)
        call: Callable[..., tuple[Any, ...]] = getattr(worker, f"do_{verb}")
        try:
            answer = call(*arguments)
        except (OSError, *worker.library.errors) as error:
            answer = ("error", type(error).__name__, str(error), False)
        sys.stdout.write(f"{answer!r}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
