"""What a workload is: which calls clients make, how each is done with SQLite, and what is asked at the end.

The first half of a workload (``ask``, ``hear``, ``last``) lives where the history is recorded, the second (``prepare``,
``perform``) in the processes of clients: they share nothing but the workload's name and its tag, by which a run names
its databases. Does not know processes, histories or nemeses.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from jepsen.session import TABLES, Session

Where = Literal["primary", "home", "any"]
PAYLOAD_BYTES: Final = (0, 40, 40, 300, 300, 6000)
"""Of rows: some pages are shared by many, some rows have pages of their own."""


@dataclass(frozen=True, slots=True)
class Request:
    """A call to be made. ``where``: at the primary, at the client's own node, or at any; ``node`` overrides it.

    ``how``: what the history does not say, such as: under the lock.
    """

    f: str
    value: object
    database: str
    where: Where = "primary"
    how: str = ""
    node: str = ""


@dataclass(frozen=True, slots=True)
class Order:
    """The same for a client: ``node`` is where it is done, ``primary`` who was primary just now."""

    index: int
    f: str
    value: object
    database: str
    node: str
    primary: str
    how: str = ""


class Workload(ABC):
    """``tag``: unique to a run, so that several runs on one cluster have databases of their own."""

    name: ClassVar[str]
    stale_reads: ClassVar[bool] = False
    """Whether reads are answered by replicas that waited for nothing."""
    on_replica: ClassVar[str] = "refuse"
    """What nodes do with writes at replicas."""
    proxied: ClassVar[tuple[str, ...]] = ()
    """Databases that clients also reach by the proxies of the nodes, whose configuration names them."""
    total: ClassVar[int] = 0
    accounts: ClassVar[tuple[str, ...]] = ()

    def __init__(self, tag: str) -> None:
        self.tag = tag

    @property
    def databases(self) -> tuple[str, ...]:
        """The names of all, those made meanwhile too; most workloads have one."""
        return (f"{self.tag}.db",)

    @property
    @abstractmethod
    def schema(self) -> str:
        """SQL that makes the tables of every database, besides those that all have."""

    def mode(self, database: str) -> str:  # noqa: ARG002  most have one mode for all
        """The journal mode of a database."""
        return "wal"

    # -- where the history is recorded -----------------------------------------------------------------------------

    @abstractmethod
    def ask(self, numbers: random.Random) -> Request:
        """The next call."""

    def hear(self, request: Request, answer: object) -> None:  # noqa: B027  most need not hear
        """A call was acknowledged."""

    @abstractmethod
    def last(self, nodes: Sequence[str]) -> list[Request]:
        """What is read when all is healed and nobody writes any more."""

    # -- in a client -----------------------------------------------------------------------------------------------

    def prepare(self, session: Session, node: str) -> None:
        """Make the databases on a node."""
        for database in self.databases:
            make(session, node, database, self.schema, self.mode(database))

    @abstractmethod
    def perform(self, session: Session, order: Order, numbers: random.Random) -> object:
        """Do a call; what it answers. Raises sqlite3.Error, OSError, or Undone when it has no effect."""


def make(session: Session, node: str, database: str, schema: str, mode: str, call: int | None = None) -> None:
    """A new database with its tables, in a journal mode; of a call, its index."""
    connection = session.make(node, database)
    connection.execute(f"PRAGMA journal_mode={mode}")
    statements = [each for each in f"{TABLES}{schema}".split(";") if each.strip()]
    with session.on(connection, "BEGIN IMMEDIATE"):
        for each in statements:
            connection.execute(each)
        if call is not None:
            connection.execute("INSERT INTO calls VALUES (?)", (call,))
        session.writes = True
    session.close(node, database)


def is_read(numbers: random.Random, often: int, written: int) -> bool:
    """Whether the next call reads: a quarter of them do at first, and fewer the more there is to be read."""
    return numbers.random() < often / (4 * often + written)


def read_each(nodes: Sequence[str], databases: Sequence[str]) -> list[Request]:
    """Read each of several databases on each node."""
    return [Request("read", {"database": name}, name, "home", node=each) for each in nodes for name in databases]


def payload(numbers: random.Random) -> bytes:
    """What fills a row, of some length."""
    return numbers.randbytes(numbers.choice(PAYLOAD_BYTES))


class Counting:
    """Whole numbers, each once."""

    def __init__(self) -> None:
        self._last = 0

    def next(self) -> int:
        self._last += 1
        return self._last

    @property
    def count(self) -> int:
        return self._last
