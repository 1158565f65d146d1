"""Random programs: from a seed and from what the plain side answered so far, the next operation.

Knows what makes sense in which state. What a statement looks like is in statements. Answers of the plain side follow
from the program, so the seed decides all of it, except where a kill in the middle of a transaction met it.
"""

import random
from collections.abc import Callable, Iterator
from typing import Final

from tests.differential.operations import Operation
from tests.differential.state import LIBRARIES, State
from tests.differential.statements import MODES, TABLES, Statements

FEATURES: Final = frozenset(
    {
        "rollback",  # journal modes DELETE, TRUNCATE and PERSIST, and changes between all modes
        "attach",
        "vacuum",
        "into",  # VACUUM INTO a file in the mount
        "backup",
        "copy",  # cp into the mount
        "kill",  # of applications, between statements and inside transactions
        "killing",  # of applications, at any moment of a transaction
        "crash",  # of the primary's daemon, between statements
        "crashing",  # of the primary's daemon, at any moment of a transaction
        "restart",
        "stop",  # of the node, while applications have files open
        "fault",  # of replicas and appliers
        "large",  # transactions of several megabytes
        "reader",  # transactions of readers on replicas
        "burst",  # several applications write at the same time
        "exclusive",
        "savepoint",
        "spill",
        "remove",
        "mmap",
        "resize",  # another page size by VACUUM (only outside WAL mode)
    }
)
DATABASES: Final = ("a.db", "b.db", "folder/c.db")
COPIES: Final = ("into.db", "copy.db")
MOST_CONNECTIONS: Final = 6
PAGE_SIZES: Final = (512, 1024, 4096, 4096, 4096, 8192, 65536)


class Generator:
    def __init__(self, seed: int, features: frozenset[str] = FEATURES) -> None:
        self.features = features
        self.random = random.Random(f"differential {seed}")
        self.statements = Statements(self.random, features)
        self._numbers = iter(range(1, 1 << 30))
        self._next: list[Operation] = []
        self._current = ""

    def program(self, state: State, steps: int) -> Iterator[Operation]:
        """``steps`` operations, chosen by what ``state`` says when each is asked for; a comparison at the end."""
        for _ in range(steps):
            yield self._operation(state)
        yield Operation("compare")

    def _operation(self, state: State) -> Operation:
        while self._next:
            found = self._next.pop(0)
            if state.is_possible(found):
                return found
        if len(state.connections) < 2:
            return self._open(state)
        weights: dict[Callable[[State], Operation | None], float] = {
            self._run: 100,
            self._open: 5,
            self._close: 4,
            self._dump: 3,
            self._compare: 0.6,
        }
        for name, weight in {
            "backup": 1.0,
            "copy": 0.7,
            "remove": 0.7,
            "kill": 1.5,
            "killing": 1.2,
            "crash": 0.4,
            "crashing": 0.8,
            "restart": 0.3,
            "stop": 0.3,
            "fault": 0.6,
            "reader": 2.0,
            "burst": 0.5,
        }.items():
            if name in self.features:
                weights[getattr(self, f"_{name}")] = weight
        while True:
            found_one = self.random.choices(list(weights), list(weights.values()))[0](state)
            if found_one is not None:
                return found_one

    # -- connections -----------------------------------------------------------------------------------------------

    def _open(self, state: State) -> Operation:
        if len(state.connections) >= MOST_CONNECTIONS:
            return self._run(state)
        name = f"c{next(self._numbers)}"
        copies = [each for each in COPIES if each in state.databases]
        database = self.random.choice(DATABASES * 2 + tuple(copies))
        worker = self.random.choice(list(LIBRARIES))
        self._next = [Operation("run", (name, sql)) for sql in self._first_statements(state, worker, database)]
        if LIBRARIES[worker] == "apsw" and self.random.random() < 0.1:
            self._next.append(Operation("persist", (name, "1")))
        return Operation("open", (name, worker, database))

    def _first_statements(self, state: State, worker: str, database: str) -> list[str]:
        found = []
        if "exclusive" in self.features and self.random.random() < 0.07:
            # Before the first access: in WAL mode there is no -shm then.
            found.append("PRAGMA locking_mode=EXCLUSIVE")
        if database not in state.databases:
            found.append(f"PRAGMA page_size={self.random.choice(PAGE_SIZES)}")
            found.append(f"PRAGMA auto_vacuum={self.random.choice((0, 0, 1, 2))}")
        if "rollback" not in self.features:
            found.append("PRAGMA journal_mode=WAL")
        elif self.random.random() < 0.5 or database not in state.databases:
            found.append(f"PRAGMA journal_mode={self.random.choice(('WAL', 'DELETE', 'TRUNCATE', 'PERSIST'))}")
        if self._may_spill(worker) and self.random.random() < 0.4:
            found.append(f"PRAGMA cache_size={self.random.choice((1, 5, 20))}")
        elif not self._may_spill(worker):
            found.append("PRAGMA cache_spill=OFF")
        found += self.statements.pragmas(self.random.randint(0, 4), spill=self._may_spill(worker))
        tables = range(TABLES) if database not in state.databases else (0, self.random.randrange(TABLES))
        return [*found, *(self.statements.create(each) for each in tables)]

    def _may_spill(self, worker: str) -> bool:
        """SQLite 3.40 (that of the module here) writes commits that no recovery finds when a savepoint that had spilled
        is rolled back in WAL mode; litereplica refuses those. So its connections use savepoints, and never spill."""
        return "spill" in self.features and LIBRARIES[worker] == "apsw"

    def _close(self, state: State) -> Operation | None:
        return Operation("close", (self.random.choice(list(state.connections)),))

    def _dump(self, state: State) -> Operation | None:
        return Operation("dump", (self.random.choice(list(state.connections)),))

    def _compare(self, _state: State) -> Operation | None:
        return Operation("compare")

    def _run(self, state: State) -> Operation:
        """Mostly the connection that was used last, if it is in a transaction: the others wait for it anyhow."""
        connection = state.connections.get(self._current)
        if connection is None or not connection.in_transaction or self.random.random() < 0.3:
            connection = self.random.choice(list(state.connections.values()))
        self._current = connection.name
        first, *rest = self.statements.next(state, connection)
        self._next = [Operation("run", (connection.name, each)) for each in rest]
        return Operation("run", (connection.name, first))

    # -- files -----------------------------------------------------------------------------------------------------

    def _backup(self, state: State) -> Operation | None:
        connection = self.random.choice(list(state.connections.values()))
        target = self.random.choice([*COPIES, *DATABASES])
        if connection.in_transaction or target in (connection.database, connection.attached):
            return None
        # A process that closes a database drops its other locks on it only in the POSIX sense: SQLite sees to that.
        return Operation("backup", (connection.name, target, str(self.random.choice((-1, 1, 7)))))

    def _unused(self, state: State) -> list[str]:
        return [each for each in sorted(state.databases) if not state.uses(each)]

    def _remove(self, state: State) -> Operation | None:
        unused = self._unused(state)
        if not unused:
            connection = self.random.choice(list(state.connections.values()))
            name = connection.database
            self._next = [Operation("close", (each.name,)) for each in state.uses(name)] + [
                Operation("remove", (name,))
            ]
            return self._next.pop(0)
        return Operation("remove", (self.random.choice(unused),))

    def _copy(self, state: State) -> Operation | None:
        unused = self._unused(state)
        target = self.random.choice(COPIES)
        if not unused or target in state.databases:
            return None
        return Operation("copy", (self.random.choice(unused), target))

    # -- ends ------------------------------------------------------------------------------------------------------

    def _kill(self, state: State) -> Operation | None:
        return Operation("kill", (self.random.choice(sorted({each.worker for each in state.connections.values()})),))

    def _interrupted(self, state: State, verb: str) -> Operation | None:
        fit = [each for each in state.connections.values() if not each.in_transaction]
        if not fit:
            return None
        attached = [each for each in fit if each.attached]
        connection = self.random.choice(attached if attached and self.random.random() < 0.5 else fit)
        if self.random.random() < 0.25:
            return Operation(verb, (connection.name, str(int(10 ** self.random.uniform(2.5, 5))), self._alone()))
        large = "large" in self.features and self.random.random() < 0.2
        delay_us = int(10 ** self.random.uniform(*((4, 5.5) if large else (2, 4.3))))
        change = self.statements.large_change if large else self.statements.change
        changes = " ;; ".join(change(schema) for schema in (("main", "other") if connection.attached else ("main",)))
        return Operation(verb, (connection.name, str(delay_us), changes))

    def _alone(self) -> str:
        """Something that is no transaction, or one of its own."""
        found = [f"PRAGMA main.wal_checkpoint({self.random.choice(('FULL', 'TRUNCATE'))})"]
        if "vacuum" in self.features:
            found += ["VACUUM"] * 2
        if "rollback" in self.features:
            # Of one database: without its name SQLite switches all that are attached, each by itself.
            found.append(f"PRAGMA main.journal_mode={self.random.choice(MODES)}")
        return self.random.choice(found)

    def _killing(self, state: State) -> Operation | None:
        return self._interrupted(state, "killing")

    def _crashing(self, state: State) -> Operation | None:
        return self._interrupted(state, "crashing")

    def _crash(self, _state: State) -> Operation | None:
        return Operation("crash")

    def _restart(self, _state: State) -> Operation | None:
        return Operation("restart")

    def _stop(self, _state: State) -> Operation | None:
        return Operation("stop")

    def _fault(self, _state: State) -> Operation | None:
        node = self.random.choice((0, 1, 1, 2))
        return Operation("fault", (str(node), "applier" if node == 0 else self.random.choice(("node", "applier"))))

    def _reader(self, state: State) -> Operation | None:
        if not state.databases:
            return None
        worker = self.random.choice(list(LIBRARIES))
        database = self.random.choice(sorted(state.databases))
        return Operation("reader", (str(self.random.randint(1, 2)), worker, database))

    def _burst(self, _state: State) -> Operation | None:
        mode = self.random.choice(MODES) if "rollback" in self.features else "WAL"
        count = self.random.randint(5, 40)
        delay_us = self.random.choice((0, int(10 ** self.random.uniform(4, 5.7))))
        return Operation("burst", (mode, str(count), str(next(self._numbers)), str(delay_us)))
