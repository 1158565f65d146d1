"""What a program has open at some point, as the plain side answered.

Knows which connections there are and what they are in the middle of. The generator decides by it, and the runner leaves
out what a shortened program no longer has.
"""

from dataclasses import dataclass, field
from typing import Final

from tests.differential.operations import Operation
from tests.differential.sides import Answer

LIBRARIES: Final = {"w0": "sqlite3", "w1": "sqlite3", "w2": "apsw", "w3": "apsw"}


def victim_of(seed: int) -> str:
    """The worker that is killed in a burst with this seed."""
    return list(LIBRARIES)[seed % len(LIBRARIES)]


def burst_key(worker: str, seed: int) -> int:
    """The first id of the rows that a worker makes in a burst; it makes less than a thousand."""
    return (1 + list(LIBRARIES).index(worker)) * 100_000_000 + seed * 1000


@dataclass(slots=True)
class Connection:
    name: str
    worker: str
    database: str
    in_transaction: bool = False
    exclusive: bool = False
    attached: str = ""
    journal_mode: str = ""
    statements: int = 0

    @property
    def newer(self) -> bool:
        """Has the newer of the two SQLites."""
        return LIBRARIES[self.worker] == "apsw"


@dataclass(slots=True)
class State:
    connections: dict[str, Connection] = field(default_factory=dict)
    databases: set[str] = field(default_factory=set)
    last_mode: dict[str, str] = field(default_factory=dict)

    def uses(self, database: str) -> list[Connection]:
        return [each for each in self.connections.values() if database in (each.database, each.attached)]

    def is_possible(self, operation: Operation) -> bool:
        """Whether what the operation needs is there; a shortened program may have lost it."""
        verb, words = operation.verb, operation.words
        if verb == "open":
            return words[0] not in self.connections
        if verb in ("remove", "copy"):
            return words[0] in self.databases and not self.uses(words[0]) and not self.uses(words[-1])
        if verb in ("run", "close", "backup", "dump", "persist", "killing", "crashing"):
            return words[0] in self.connections
        return True

    def after(self, operation: Operation, answer: Answer) -> None:
        """``answer`` is the plain side's; operations on whole sides have none that matters."""
        verb, words = operation.verb, operation.words
        if verb == "open" and not answer.error:
            self.connections[words[0]] = Connection(words[0], words[1], words[2])
            self.databases.add(words[2])
        elif verb in ("run", "dump", "backup", "persist"):
            connection = self.connections[words[0]]
            connection.in_transaction = answer.in_transaction
            connection.statements += 1
            if verb == "run" and not answer.error:
                self._after_statement(connection, words[1], answer)
            elif verb == "backup" and not answer.error:
                self.databases.add(words[1])
        elif verb == "close":
            self.connections.pop(words[0], None)
        elif verb == "remove":
            self.databases.discard(words[0])
            self.last_mode.pop(words[0], None)
        elif verb == "copy":
            self.databases.add(words[1])
        elif verb in ("kill", "killing") or (verb == "burst" and int(words[3])):
            worker = words[0]
            if verb == "killing":
                worker = self.connections[words[0]].worker
            elif verb == "burst":
                worker = victim_of(int(words[2]))
            self.connections = {name: each for name, each in self.connections.items() if each.worker != worker}
        elif verb in ("restart", "stop", "crash", "crashing", "compare"):
            self.connections.clear()

    def _after_statement(self, connection: Connection, sql: str, answer: Answer) -> None:
        if sql.startswith("PRAGMA locking_mode"):
            connection.exclusive = sql.endswith("EXCLUSIVE")
        elif sql.startswith("ATTACH"):
            connection.attached = sql.partition("%ROOT%/")[2].partition("'")[0]
            self.databases.add(connection.attached)
        elif sql.startswith("DETACH"):
            connection.attached = ""
        elif sql.startswith("VACUUM INTO"):
            self.databases.add(sql.partition("%ROOT%/")[2].partition("'")[0])
        elif sql.startswith("PRAGMA journal_mode") and answer.rows:
            connection.journal_mode = self.last_mode[connection.database] = str(answer.rows[0][0])
