"""What the daemon and its applier say to each other over a socket pair.

Knows the messages, their byte form (u32 big-endian length, then a msgpack array whose first element is the message's
kind) and its limits. Does not know what is done about them.

Both ends are one program, started together: there is no version. Bytes that make no message are Corrupt all the same,
because a half-written message of a killed child must not become a wrong one.
"""

from collections.abc import Callable
from struct import Struct
from typing import Any, NamedTuple

import msgpack

from litereplica.errors import Corrupt

MESSAGE_LIMIT_BYTES = 64 << 10
"""Two paths of 4 KiB and a reason for people fit ten times; more can only be damage."""

RECORD_LIMIT_BYTES = 32 << 10
"""A record up to here may be in a Commit: nearly every transaction is shorter, and a file would cost more than it."""

REASON_LIMIT = 2000
"""Characters of a reason for people."""

_LENGTH = Struct(">I")


class Apply(NamedTuple):
    """Apply the whole records ``first_txid`` … ``last_txid``: bytes ``offset`` … ``offset + length`` of ``path``.

    ``path``: a segment file outside the mount. ``redo_until``: publish nothing before this TXID is in (0: no such
    bound); the link sets it after a failure, see wal_writer.py on why. ``applied``: the daemon knows that everything up
    to this TXID is in the database: what an application of this node committed is never sent.
    """

    database: str
    path: str
    offset: int
    length: int
    first_txid: int
    last_txid: int
    redo_until: int = 0
    applied: int = 0


class Install(NamedTuple):
    """Replace all content of the database by one transaction: page i is at ``(i - 1) * page_size`` of ``path``.

    It makes the database's state that of ``txid``, whatever was applied before.
    """

    database: str
    path: str
    page_size: int
    page_count: int
    txid: int


class Close(NamedTuple):
    """Forget the database: it was, or is about to be, dropped. What is queued for it is dropped too.

    ``number``: comes back with ``Closed``.
    """

    database: str
    number: int = 0


class Warm(NamedTuple):
    """Ask the kernel to read the first ``length`` bytes of the -wal, so that its cached pages are up to date."""

    database: str
    length: int


class Republish(NamedTuple):
    """See to it that the wal-index shows ``frames`` frames of the WAL with these salts (or newer ones): all are logged.

    A writer is gone, or this node is no longer the primary. Nothing that comes after it is applied over less.
    """

    database: str
    salt1: int
    salt2: int
    frames: int


class Release(NamedTuple):
    """Finish what is queued for the database, say what is committed in its -wal, and let go of it; see ``Released``.

    What was handed out for ``Lock`` and ``Hold`` is given back as well, and each Commit that has not reached its commit
    point is refused: after the answer no frame of one is written, in whatever role the node is then. ``number``: comes
    back with the answer, which may come when whoever asked has given up, and asks again.
    """

    database: str
    number: int = 0


class Lock(NamedTuple):
    """Take SQLite's write lock, as a writer would, within ``limit_ms``; the answer is Locked or LockRefused.

    Until ``Unlock`` no application is in a write transaction or begins one, and nothing is applied.
    """

    database: str
    limit_ms: int


class Unlock(NamedTuple):
    """Give SQLite's write lock back, or wait for it no longer; no answer. What was queued behind it goes on."""

    database: str


class Commit(NamedTuple):
    """Commit a record as an application of the primary: ``record``, or (then empty) the file ``path`` of ``length``.

    The mount captures it as it captures every commit, and may refuse it at its commit point. ``limit_ms``: for all
    locks together. ``number``: comes back with Committed or CommitRefused. The file is outside the mount.
    """

    database: str
    number: int
    path: str
    length: int
    limit_ms: int
    record: bytes = b""


class Hold(NamedTuple):
    """Take SQLite's write lock within ``limit_ms`` and keep it for another node; the answer is Held or HoldRefused.

    Until ``Unhold`` (or Release, Lock, Close) no application is in a write transaction; ``Commit`` goes through. If it
    cannot be kept: ``HoldLost``.
    """

    database: str
    number: int
    limit_ms: int


class Unhold(NamedTuple):
    """Give the lock of ``Hold`` back, or wait for it no longer; no answer."""

    database: str


class Report(NamedTuple):
    """Answer ``Reported`` at once: what was published by then has been told before.

    The daemon asks before it refuses what an application has made: who waits for SQLite's write lock is awake then.
    """

    database: str
    number: int


class Look(NamedTuple):
    """Answer ``Looked`` at once: whether readers that begin now see ``frames`` frames of the WAL with these salts."""

    database: str
    number: int
    salt1: int
    salt2: int
    frames: int


class Stop(NamedTuple):
    """Finish what is queued, fold what can be folded into the database files, and end."""


class Ready(NamedTuple):
    """The child is up."""

    pid: int


class Applied(NamedTuple):
    """Every reader that begins now sees the database at ``txid`` or later.

    ``history``: another number after each Install, and each time that the database is opened anew: which TXIDs these
    are.
    """

    database: str
    txid: int
    history: int


class Checkpointed(NamedTuple):
    """Everything up to ``txid`` is in the database file, as far as the daemon has it: nothing was synced.

    ``truncated``: the -wal was cut to 0 bytes as well (no reader was in the way), or begins again from its start.
    ``history``: as in Applied. The checkpoint thread may say so when an Install has replaced what it has folded.
    """

    database: str
    txid: int
    truncated: bool
    history: int


class Failed(NamedTuple):
    """The records from ``txid`` on were not applied; readers see the state before them.

    ``reason``: for people. ``retry``: sending them again may succeed. What was queued for the database is dropped.
    """

    database: str
    txid: int
    reason: str
    retry: bool


class Closed(NamedTuple):
    """The answer to ``Close``: nothing that was sent before it is done to any file of that name any more."""

    database: str
    number: int = 0


class Released(NamedTuple):
    """The answer to ``Release``: nothing of the child touches the database until something is asked for it again.

    ``frames`` of the -wal with these salts were committed, as the wal-index says; 0 and zero salts when it has none.
    """

    database: str
    salt1: int
    salt2: int
    frames: int
    number: int = 0


class ReleaseFailed(NamedTuple):
    """The other answer to ``Release``: what is committed could not be learned in time. To be asked again."""

    database: str
    reason: str
    number: int = 0


class Locked(NamedTuple):
    """The answer to ``Lock``: no application writes, or can begin to, until ``Unlock``."""

    database: str


class LockRefused(NamedTuple):
    """The other answer to ``Lock``. ``holder``: who would not yield, for people ("process 123 (python3)")."""

    database: str
    holder: str


class Committed(NamedTuple):
    """The answer to ``Commit``: it is the database's next transaction, and whoever begins to read now sees it."""

    database: str
    number: int


class CommitRefused(NamedTuple):
    """The other answer to ``Commit``: nothing of it was published, and its locks are given back.

    ``reason``: for people. ``busy``: others kept the locks for ``limit_ms``; else the mount refused it, or it cannot
    be committed.
    """

    database: str
    number: int
    reason: str
    busy: bool


class Held(NamedTuple):
    """The answer to ``Hold``: no application writes, or can begin to."""

    database: str
    number: int


class HoldRefused(NamedTuple):
    """The other answer to ``Hold``: what an earlier one held is given back as well.

    ``holder``: who would not yield, or why it cannot be held, for people.
    """

    database: str
    number: int
    holder: str


class HoldLost(NamedTuple):
    """What ``Held`` said is over, and nobody asked for that: applications may have written since.

    Each Commit from here on is refused, until ``Unhold`` (or another Hold, Release, Lock, Close) says that the daemon
    has heard it. ``reason``: for people.
    """

    database: str
    number: int
    reason: str


class Reported(NamedTuple):
    """The answer to ``Report``."""

    database: str
    number: int


class Looked(NamedTuple):
    """The answer to ``Look``. ``shown``: they do. Else ``writes``: somebody is writing, who may be about to show them.

    Neither when their writer is gone: nobody will, until a Republish. ``writes`` too when it is not to be seen now.
    """

    database: str
    number: int
    shown: bool
    writes: bool


class CheckpointFailed(NamedTuple):
    """A checkpoint failed for a reason other than a reader in its way. Nothing is lost; it is tried again later."""

    database: str
    reason: str


class Invalidated(NamedTuple):
    """The wal-index did not show all that was committed; the next user of the database rebuilds it."""

    database: str


ToChild = (
    Apply | Install | Close | Warm | Republish | Release | Lock | Unlock | Commit | Hold | Unhold | Report | Look
    | Stop
)  # fmt: skip
ToDaemon = (
    Ready | Applied | Checkpointed | Failed | CheckpointFailed | Invalidated | Closed | Released | ReleaseFailed
    | Locked | LockRefused | Committed | CommitRefused | Held | HoldRefused | HoldLost | Reported | Looked
)  # fmt: skip
Message = ToChild | ToDaemon

_KINDS: tuple[type[Message], ...] = (
    Apply, Install, Close, Warm, Republish, Release, Lock, Unlock, Commit, Hold, Unhold, Report, Look,
    Stop,
    Ready, Applied, Checkpointed, Failed, CheckpointFailed, Invalidated, Closed, Released, ReleaseFailed,
    Locked, LockRefused, Committed, CommitRefused, Held, HoldRefused, HoldLost, Reported, Looked,
)  # fmt: skip
_NUMBERS = {kind: number for number, kind in enumerate(_KINDS)}
_FIELD_TYPES: tuple[tuple[type, ...], ...] = tuple(tuple(kind.__annotations__.values()) for kind in _KINDS)


def encode(message: Message) -> bytes:
    """The message with its length in front."""
    body: bytes = msgpack.packb((_NUMBERS[type(message)], *message))
    assert len(body) <= MESSAGE_LIMIT_BYTES, type(message)
    return _LENGTH.pack(len(body)) + body


class MessageReader:
    """Messages out of a byte stream, in pieces of any size."""

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that ``data``, the next bytes, completes; raises Corrupt, after which nothing is to be fed."""
        pending = self._pending
        pending += data
        messages: list[Message] = []
        position = 0
        while len(pending) - position >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(pending, position)
            if length > MESSAGE_LIMIT_BYTES:
                raise Corrupt(f"a message between daemon and applier claims {length} bytes")
            end = position + _LENGTH.size + length
            if end > len(pending):
                break
            messages.append(_decode(bytes(pending[position + _LENGTH.size : end])))
            position = end
        del pending[:position]
        return messages


def _decode(body: bytes) -> Message:
    try:
        values: Any = msgpack.unpackb(body)
        number, *fields = values
        kind: Callable[..., Message] = _KINDS[number]
        types = _FIELD_TYPES[number]
    except (ValueError, TypeError, IndexError, msgpack.UnpackException) as error:
        raise Corrupt(f"bytes between daemon and applier are no message: {error}") from None
    if number < 0 or tuple(map(type, fields)) != types:
        raise Corrupt(f"message {number} between daemon and applier has the wrong fields")
    return kind(*fields)
