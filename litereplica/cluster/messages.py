"""The messages of a replication stream as values.

Knows every message and its limits (docs/formats.md, "Replication protocol", has the tables). Does not know bytes
(encoding.py, decoding.py, framing.py) or who may send what when (replication/).
"""

from dataclasses import dataclass, field
from enum import IntEnum
from struct import Struct
from typing import Final

from litereplica.ltx.format import Origin
from litereplica.ltx.position import Point, Position

PROTOCOL: Final = 4
PROTOCOL_NAME: Final = "litereplica"
"""Second field of each greeting: an accidental msgpack speaker is told apart from another version of ours."""

LENGTH: Final = Struct(">I")
SAMPLE: Final = Struct(">QQQ")
"""One point of a Search: TXID, checksum, record checksum."""
MESSAGE_LIMIT_BYTES: Final = 4 * 1024 * 1024
"""Longest message; a Hello or Welcome of some 60,000 databases fits, and an end never holds more than one."""
RECORDS_LIMIT_BYTES: Final = 256 * 1024
"""Log bytes in one Records: what one database may send before the next one gets its turn."""
PAGES_LIMIT_BYTES: Final = 1024 * 1024
"""Page bytes in one Pages: the memory that a snapshot costs each end; at least 16 pages."""
DATABASES_LIMIT: Final = 65_536
"""Databases named in one message."""
TEXT_LIMIT_BYTES: Final = 1024
"""Longest reason in a Goodbye or Resync, and the longest string anywhere in a message."""
SAMPLES_LIMIT: Final = 64
"""Positions in one Search: three rounds are enough for 65 ** 3 = 274,625 records, and each costs the primary a look."""

FORWARD_LIMIT_BYTES: Final = 256 * 1024
"""Record bytes in one Forward or ForwardPart: acknowledgements and heartbeats have their turn between two of them."""

# Codes of a Goodbye. An unknown one is taken as it is: a later version may have more.
GOODBYE_PROTOCOL: Final = "protocol"
GOODBYE_NOT_PRIMARY: Final = "not_primary"
GOODBYE_EPOCH: Final = "epoch"
GOODBYE_NAME: Final = "name"
GOODBYE_REPLACED: Final = "replaced"
GOODBYE_LIMIT: Final = "limit"
GOODBYE_MALFORMED: Final = "malformed"

# Codes of an Outcome. An unknown one is taken as unknown: a later version may have more.
OUTCOME_COMMITTED: Final = "committed"
OUTCOME_STALE: Final = "stale"
OUTCOME_BUSY: Final = "busy"
OUTCOME_REFUSED: Final = "refused"
OUTCOME_NOT_PRIMARY: Final = "not_primary"
OUTCOME_UNKNOWN: Final = "unknown"

# States of a HaltState.
HALT_GRANTED: Final = "granted"
HALT_WAITING: Final = "waiting"
HALT_REFUSED: Final = "refused"
HALT_LOST: Final = "lost"


@dataclass(frozen=True, slots=True)
class SnapshotProgress:
    """How far a replica got with a snapshot before it was cut: it has the pages below ``next_pgno``."""

    base: Position
    page_size: int
    next_pgno: int


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of a replica: who it is, what it has logged, which snapshots it has begun."""

    node: str
    epoch: int
    databases: dict[str, Point]
    snapshots: dict[str, SnapshotProgress] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tip:
    """The newest transaction of a database: position and timestamp (ms since 1970, the clock of its writer)."""

    position: Position
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class Welcome:
    """First message of a primary: what it has, and what follows for databases that do not just get records.

    ``snapshots``: every page. ``diverged``: nothing before the replica has searched the last common position, because
    the one that it has is not in the primary's history.
    """

    node: str
    epoch: int
    databases: dict[str, Tip]
    snapshots: frozenset[str] = frozenset()
    diverged: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Goodbye:
    """Why the sender closes; the layout is the same in every protocol version. ``code``: one of GOODBYE_*."""

    code: str
    message: str
    epoch: int
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class Records:
    """The next bytes of a database's log, verbatim, at most RECORDS_LIMIT_BYTES; may begin and end inside a record."""

    epoch: int
    database: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot of ``database`` begins: pages from ``first_pgno``, then the records after ``base``.

    ``page_count`` pages are in the file now (fewer may come if it shrinks); ``record_epoch`` and ``timestamp_ms`` are
    those of the newest transaction, for a database whose log holds no record after ``base``.
    """

    epoch: int
    database: str
    base: Position
    page_size: int
    page_count: int
    first_pgno: int
    record_epoch: int
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class Pages:
    """Pages of a snapshot, in order, whole, at most PAGES_LIMIT_BYTES."""

    epoch: int
    database: str
    first_pgno: int
    data: bytes


@dataclass(frozen=True, slots=True)
class SnapshotEnd:
    """With the records sent until here the snapshot is exact, at ``position``; further Records follow on it.

    ``page_count``: pages of the database there; 0 when it was dropped.
    """

    epoch: int
    database: str
    position: Position
    page_count: int


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The sender is alive. From a primary with the tips of databases that changed and are sent completely."""

    epoch: int
    timestamp_ms: int
    databases: dict[str, Tip] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """TXIDs that a replica has ``logged`` and that its readers see (``applied``)."""

    logged: int
    applied: int


@dataclass(frozen=True, slots=True)
class Ack:
    """What a replica has, for the databases where it changed."""

    epoch: int
    databases: dict[str, Acknowledged]


@dataclass(frozen=True, slots=True)
class Resync:
    """A replica cannot use what it is sent for ``database`` and asks for a snapshot; the others go on."""

    epoch: int
    database: str
    reason: str


@dataclass(frozen=True, slots=True)
class Search:
    """A replica asks which of these points of its own log are in the primary's history.

    ``samples``: ascending by TXID, from 1, at most SAMPLES_LIMIT.
    """

    epoch: int
    database: str
    samples: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to a Search: TXID of the newest sample that is in the primary's history, 0 for none."""

    epoch: int
    database: str
    txid: int


@dataclass(frozen=True, slots=True)
class Resume:
    """A replica has gone back to ``point``, which the primary had found, and wants the records after it."""

    epoch: int
    database: str
    point: Point


@dataclass(frozen=True, slots=True)
class Ask:
    """The primary cannot reach its lease, and asks the replica not to become primary for ``hold_ms`` from now on."""

    epoch: int
    number: int
    hold_ms: int


@dataclass(frozen=True, slots=True)
class Promise:
    """The answer to the Ask of this number. ``promised``: it knows of no other primary, and will."""

    epoch: int
    number: int
    promised: bool


@dataclass(frozen=True, slots=True)
class Forward:
    """A transaction that an application of a replica has made upon ``base``: to be committed as the next one.

    ``data`` is the beginning of its record (at most FORWARD_LIMIT_BYTES), which has ``length`` bytes; the rest follows
    in ForwardPart of the same ``number``, which is the replica's and answered by an Outcome. Sent again with the same
    ``origin`` it is the same transaction. ``token``: of the database's lock that the replica holds, 0 for none.
    ``durable``: answered when it is on the primary's disk.
    """

    epoch: int
    number: int
    database: str
    origin: Origin
    base: Position
    token: int
    durable: bool
    length: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ForwardPart:
    """The next bytes of the record of the Forward of this number."""

    epoch: int
    number: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the Forward, or the SyncTo, of this number; ``code``: one of OUTCOME_*.

    ``position``: of the database on the primary. ``message``: for people, "" when it is committed.
    """

    epoch: int
    number: int
    code: str
    position: Position
    message: str


@dataclass(frozen=True, slots=True)
class SyncTo:
    """A replica wants to know that the database is on the primary's disk up to ``txid``; an Outcome answers."""

    epoch: int
    number: int
    database: str
    txid: int


@dataclass(frozen=True, slots=True)
class Halt:
    """A replica wants to be the only writer of a database, or to stay it, for ``limit_ms`` from now on.

    ``token``: the replica's name for this wish, the same in each renewal; 0: the write lease of one transaction.
    """

    epoch: int
    database: str
    token: int
    limit_ms: int


@dataclass(frozen=True, slots=True)
class Unhalt:
    """It gives the database back, or wants it no longer."""

    epoch: int
    database: str
    token: int


@dataclass(frozen=True, slots=True)
class HaltState:
    """What became of a Halt; ``state``: one of HALT_*.

    Granted: nobody else writes for ``limit_ms`` from when the Halt was sent, and ``position`` is what the replica has
    to reach first. ``message``: for people.
    """

    epoch: int
    database: str
    token: int
    state: str
    position: Position
    limit_ms: int
    message: str


Message = (
    Hello
    | Welcome
    | Goodbye
    | Records
    | Snapshot
    | Pages
    | SnapshotEnd
    | Heartbeat
    | Ack
    | Resync
    | Search
    | Found
    | Resume
    | Ask
    | Promise
    | Forward
    | ForwardPart
    | Outcome
    | SyncTo
    | Halt
    | Unhalt
    | HaltState
)


class Kind(IntEnum):
    """First field of each message."""

    HELLO = 1
    WELCOME = 2
    GOODBYE = 3
    RECORDS = 4
    SNAPSHOT = 5
    PAGES = 6
    SNAPSHOT_END = 7
    HEARTBEAT = 8
    ACK = 9
    RESYNC = 10
    SEARCH = 11
    FOUND = 12
    RESUME = 13
    ASK = 14
    PROMISE = 15
    FORWARD = 16
    FORWARD_PART = 17
    OUTCOME = 18
    SYNC_TO = 19
    HALT = 20
    UNHALT = 21
    HALT_STATE = 22
