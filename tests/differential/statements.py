"""The statements of random programs.

Knows SQL and SQLite's pragmas. Does not know processes, files or nodes.
"""

import random
from collections.abc import Callable
from typing import Final

from tests.differential.state import Connection, State

TABLES: Final = 4
KEYS: Final = 300
LARGE: Final = 0.03
MODES: Final = ("WAL", "DELETE", "TRUNCATE", "PERSIST")


class Statements:
    def __init__(self, numbers: random.Random, features: frozenset[str]) -> None:
        self.random = numbers
        self._features = features
        self._seeds = iter(range(1, 1 << 30))

    def next(self, state: State, connection: Connection) -> list[str]:
        """What this connection does now: one statement, or several that belong together."""
        if connection.in_transaction:
            return [self._inside(connection)]
        if connection.exclusive and self.random.random() < 0.15:
            # The lock is given back at the next access.
            return ["PRAGMA locking_mode=NORMAL", "SELECT count(*) FROM sqlite_schema"]
        return self._outside(state, connection)

    def _inside(self, connection: Connection) -> str:
        schema = self._schema(connection)
        choices: list[tuple[float, Callable[[], str]]] = [
            (60.0, lambda: self.change(schema)),
            (8.0, lambda: self.read(schema)),
            (17.0, lambda: "COMMIT"),
            (5.0, lambda: "ROLLBACK"),
        ]
        if "savepoint" in self._features:
            name = self.random.choice("sst")
            choices += [
                (8.0, lambda: f"SAVEPOINT {name}"),
                (6.0, lambda: f"ROLLBACK TO {name}"),
                (5.0, lambda: f"RELEASE {name}"),
            ]
        return self.random.choices([each for _, each in choices], [weight for weight, _ in choices])[0]()

    def _outside(self, state: State, connection: Connection) -> list[str]:
        schema = self._schema(connection)
        choices: list[tuple[float, Callable[[], list[str]]]] = [
            (18.0, lambda: [self.random.choice(("BEGIN", "BEGIN IMMEDIATE", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"))]),
            (40.0, lambda: [self.change(schema)]),
            (8.0, lambda: [self.read(schema)]),
            (7.0, lambda: self.pragmas(1, spill="spill" in self._features and connection.newer)),
            (7.0, lambda: [self.checkpoint(connection)]),
            (1.5, lambda: [f"PRAGMA {schema}.incremental_vacuum({self.random.randint(0, 30)})"]),
            (1.0, lambda: ["SAVEPOINT s"] if "savepoint" in self._features else [self.read(schema)]),
        ]
        if "rollback" in self._features:
            choices.append((5.0, lambda: [f"PRAGMA journal_mode={self.random.choice(MODES)}"]))
        if "vacuum" in self._features:
            choices.append((4.0, lambda: self.vacuum(connection)))
        if "into" in self._features and "into.db" not in state.databases:
            choices.append((1.0, lambda: ["VACUUM INTO '%ROOT%/into.db'"]))
        if "attach" in self._features:
            choices.append((5.0, lambda: self.attach(state, connection)))
        if "exclusive" in self._features:
            choices.append((0.5, lambda: ["PRAGMA locking_mode=EXCLUSIVE"]))
        return self.random.choices([each for _, each in choices], [weight for weight, _ in choices])[0]()

    def _schema(self, connection: Connection) -> str:
        return self.random.choice(("main", "other")) if connection.attached else "main"

    # -- content ---------------------------------------------------------------------------------------------------

    def create(self, table: int, schema: str = "main") -> str:
        return f"CREATE TABLE IF NOT EXISTS {schema}.t{table} (id INTEGER PRIMARY KEY, v BLOB)"

    def _value(self) -> str:
        """One value, or one for each row: up to some hundred kilobytes, mostly small."""
        most = self.random.choice((10, 10, 300, 300, 5_000, 5_000, 60_000, 400_000))
        return f"content({next(self._seeds)}, {self.random.randint(0, most)})"

    def large_change(self, schema: str) -> str:
        """Several megabytes: more than a page cache holds, and than litereplica holds back in rollback mode."""
        key, count, seed = self.random.randint(0, KEYS), self.random.randint(300, 800), next(self._seeds)
        rows = f"WITH RECURSIVE n(i) AS (SELECT {key} UNION ALL SELECT i + 1 FROM n WHERE i < {key + count})"
        return self.random.choice(
            (
                f"{rows} INSERT OR REPLACE INTO {schema}.t1 (id, v) SELECT i, content(i + {seed}, 9000) FROM n",
                f"UPDATE {schema}.t1 SET v = content(id + {seed}, length(v) + 500)",
                f"INSERT OR REPLACE INTO {schema}.t1 (id, v) VALUES ({key}, content({seed}, {count * 10_000}))",
            )
        )

    def change(self, schema: str) -> str:
        if "large" in self._features and self.random.random() < LARGE:
            return self.large_change(schema)
        table, key = self.random.choice((0, 0, *range(TABLES))), self.random.randint(0, KEYS)
        kinds = (self._insert, self._fill, self._update, self._delete, self._shape)
        return self.random.choices(kinds, (35, 20, 18, 15, 8))[0](schema, table, key)

    def _insert(self, schema: str, table: int, key: int) -> str:
        # Plain INSERT of one row may fail, which both sides must do alike.
        how = self.random.choice(("INSERT OR REPLACE", "INSERT OR REPLACE", "INSERT", "INSERT OR IGNORE"))
        return f"{how} INTO {schema}.t{table} (id, v) VALUES ({key}, {self._value()})"

    def _fill(self, schema: str, table: int, key: int) -> str:
        count, most = self.random.choice(((5, 5_000), (40, 300), (40, 3_000), (150, 1_500), (300, 20)))
        size, seed = self.random.randint(0, most), next(self._seeds)
        return (
            f"WITH RECURSIVE n(i) AS (SELECT {key} UNION ALL SELECT i + 1 FROM n WHERE i < {key + count}) "
            f"INSERT OR REPLACE INTO {schema}.t{table} (id, v) SELECT i, content(i + {seed}, {size}) FROM n"
        )

    def _update(self, schema: str, table: int, key: int) -> str:
        width = self.random.choice((0, 5, 60))
        value = self.random.choice((self._value(), "substr(v, 3)", "CAST(v || x'0102' AS BLOB)", f"content(id, {key})"))
        return f"UPDATE {schema}.t{table} SET v = {value} WHERE id BETWEEN {key} AND {key + width}"

    def _delete(self, schema: str, table: int, key: int) -> str:
        width = self.random.choice((0, 20, 200, 5 * KEYS))
        return f"DELETE FROM {schema}.t{table} WHERE id BETWEEN {key} AND {key + width}"

    def _shape(self, schema: str, table: int, key: int) -> str:
        return self.random.choice(
            (
                self.create(table, schema),
                self.create(table, schema),
                f"CREATE INDEX IF NOT EXISTS {schema}.i{table} ON t{table} (substr(v, 1, 20))",
                f"DROP INDEX IF EXISTS {schema}.i{table}",
                f"DROP TABLE IF EXISTS {schema}.t{table}" if table else f"DELETE FROM {schema}.t0",
                f"ALTER TABLE {schema}.t{table} ADD COLUMN c{next(self._seeds)} DEFAULT {key}",
                f"ALTER TABLE {schema}.t{table} RENAME COLUMN v TO v{key}" if key < 10 else f"ANALYZE {schema}",
                f"REINDEX {schema}.t{table}",
                f"PRAGMA {schema}.user_version={next(self._seeds)}",
            )
        )

    def read(self, schema: str) -> str:
        table = f"{schema}.t{self.random.randrange(TABLES)}"
        key = self.random.randint(0, KEYS)
        return self.random.choice(
            (
                f"SELECT count(*), sum(length(v)), sum(id) FROM {table}",
                f"SELECT id, hex(substr(v, 1, 8)) FROM {table} WHERE id BETWEEN {key} AND {key + 30} ORDER BY id",
                f"SELECT * FROM {table} ORDER BY id",
                f"SELECT type, name, sql FROM {schema}.sqlite_schema ORDER BY name",
            )
        )

    # -- everything else -------------------------------------------------------------------------------------------

    def pragmas(self, count: int, *, spill: bool) -> list[str]:
        choices: list[tuple[str, tuple[int | str, ...]]] = [
            ("synchronous", ("OFF", "NORMAL", "FULL", "EXTRA")),
            ("wal_autocheckpoint", (0, 1, 10, 1000)),
            ("journal_size_limit", (-1, 0, 10_000, 1_000_000)),
            ("secure_delete", ("OFF", "ON", "FAST")),
            ("auto_vacuum", (0, 1, 2)),
            ("temp_store", (0, 2)),
            ("fullfsync", (0, 1)),
            ("cell_size_check", (0, 1)),
        ]
        if spill:
            choices += [("cache_size", (1, 5, 50, -2000)), ("cache_spill", ("OFF", "ON", 3))]
        if "mmap" in self._features:
            choices.append(("mmap_size", (0, 100_000, 1 << 28)))
        found = []
        for _ in range(count):
            name, values = self.random.choice(choices)
            found.append(f"PRAGMA {name}={self.random.choice(values)}")
        return found

    def checkpoint(self, connection: Connection) -> str:
        schema = self._schema(connection)
        return f"PRAGMA {schema}.wal_checkpoint({self.random.choice(('PASSIVE', 'FULL', 'RESTART', 'TRUNCATE'))})"

    def vacuum(self, connection: Connection) -> list[str]:
        if "resize" in self._features and self.random.random() < 0.4:
            sizes = (512, 1024, 4096, 16384, 65536)
            return [f"PRAGMA {self._schema(connection)}.page_size={self.random.choice(sizes)}", "VACUUM"]
        return [self.random.choice(("VACUUM", "VACUUM", f"VACUUM {self._schema(connection)}"))]

    def attach(self, state: State, connection: Connection) -> list[str]:
        if connection.attached:
            return ["DETACH other"]
        others = [each for each in sorted(state.databases) if each != connection.database]
        if "rollback" not in self._features:
            others = [each for each in others if state.last_mode.get(each) == "wal"]
        if not others:
            return [self.read("main")]
        return [f"ATTACH '%ROOT%/{self.random.choice(others)}' AS other"]
