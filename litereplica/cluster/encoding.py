"""Messages from values to bytes: u32 BE length and a msgpack array, its type first.

Knows the order of the fields. Does not check them: what a caller of ours puts in was checked where it came in.
"""

from collections.abc import Callable
from functools import lru_cache
from struct import Struct
from typing import Any, Final

import msgpack

from litereplica.cluster.messages import (
    LENGTH,
    MESSAGE_LIMIT_BYTES,
    PROTOCOL,
    PROTOCOL_NAME,
    SAMPLE,
    TEXT_LIMIT_BYTES,
    Ack,
    Ask,
    Forward,
    ForwardPart,
    Found,
    Goodbye,
    Halt,
    HaltState,
    Heartbeat,
    Hello,
    Kind,
    Message,
    Outcome,
    Pages,
    Promise,
    Records,
    Resume,
    Resync,
    Search,
    Snapshot,
    SnapshotEnd,
    SyncTo,
    Tip,
    Unhalt,
    Welcome,
)
from litereplica.errors import Refused
from litereplica.ltx.position import Point

Fields = tuple[Any, ...]


def _points(databases: dict[str, Point]) -> dict[str, tuple[int, int, int]]:
    return {name: (each.txid, each.checksum, each.record) for name, each in databases.items()}


def _tips(databases: dict[str, Tip]) -> dict[str, tuple[int, int, int]]:
    return {name: (tip.position.txid, tip.position.checksum, tip.timestamp_ms) for name, tip in databases.items()}


def _hello_fields(message: Hello) -> Fields:
    snapshots = {
        name: (each.base.txid, each.base.checksum, each.page_size, each.next_pgno)
        for name, each in message.snapshots.items()
    }
    return (Kind.HELLO, PROTOCOL_NAME, PROTOCOL, message.node, message.epoch, _points(message.databases), snapshots)


def _welcome_fields(message: Welcome) -> Fields:
    # A map, not an array: arrays can then be limited to a few elements when decoding.
    snapshots, diverged = dict.fromkeys(sorted(message.snapshots)), dict.fromkeys(sorted(message.diverged))
    databases = _tips(message.databases)
    return (Kind.WELCOME, PROTOCOL_NAME, PROTOCOL, message.node, message.epoch, databases, snapshots, diverged)


def _goodbye_fields(message: Goodbye) -> Fields:
    code, text = short_text(message.code), short_text(message.message)
    return (Kind.GOODBYE, PROTOCOL_NAME, message.protocol, message.epoch, code, text)


def _snapshot_fields(message: Snapshot) -> Fields:
    base = message.base
    return (
        Kind.SNAPSHOT, message.epoch, message.database, base.txid, base.checksum, message.page_size, message.page_count,
        message.first_pgno, message.record_epoch, message.timestamp_ms,
    )  # fmt: skip


def _snapshot_end_fields(message: SnapshotEnd) -> Fields:
    return (
        Kind.SNAPSHOT_END, message.epoch, message.database, message.position.txid, message.position.checksum,
        message.page_count,
    )  # fmt: skip


def _heartbeat_fields(message: Heartbeat) -> Fields:
    return (Kind.HEARTBEAT, message.epoch, message.timestamp_ms, _tips(message.databases))


def _ack_fields(message: Ack) -> Fields:
    return (Kind.ACK, message.epoch, {name: (each.logged, each.applied) for name, each in message.databases.items()})


def _search_fields(message: Search) -> Fields:
    # One run of bytes, not an array: arrays can then be limited to a few elements when decoding.
    samples = b"".join(SAMPLE.pack(each.txid, each.checksum, each.record) for each in message.samples)
    return (Kind.SEARCH, message.epoch, message.database, samples)


def _resume_fields(message: Resume) -> Fields:
    point = message.point
    return (Kind.RESUME, message.epoch, message.database, point.txid, point.checksum, point.record)


def _forward_fields(message: Forward) -> Fields:
    origin, base = message.origin, message.base
    return (
        Kind.FORWARD, message.epoch, message.number, message.database, origin.node, origin.id, base.txid, base.checksum,
        message.token, message.durable, message.length, message.data,
    )  # fmt: skip


def _outcome_fields(message: Outcome) -> Fields:
    position = message.position
    return (
        Kind.OUTCOME, message.epoch, message.number, short_text(message.code), position.txid, position.checksum,
        short_text(message.message),
    )  # fmt: skip


def _halt_state_fields(message: HaltState) -> Fields:
    position = message.position
    return (
        Kind.HALT_STATE, message.epoch, message.database, message.token, short_text(message.state), position.txid,
        position.checksum, message.limit_ms, short_text(message.message),
    )  # fmt: skip


_FIELDS: Final[dict[type[Any], Callable[[Any], Fields]]] = {
    Hello: _hello_fields,
    Welcome: _welcome_fields,
    Goodbye: _goodbye_fields,
    Records: lambda message: (Kind.RECORDS, message.epoch, message.database, message.data),
    Snapshot: _snapshot_fields,
    Pages: lambda message: (Kind.PAGES, message.epoch, message.database, message.first_pgno, message.data),
    SnapshotEnd: _snapshot_end_fields,
    Heartbeat: _heartbeat_fields,
    Ack: _ack_fields,
    Resync: lambda message: (Kind.RESYNC, message.epoch, message.database, short_text(message.reason)),
    Search: _search_fields,
    Found: lambda message: (Kind.FOUND, message.epoch, message.database, message.txid),
    Resume: _resume_fields,
    Ask: lambda message: (Kind.ASK, message.epoch, message.number, message.hold_ms),
    Promise: lambda message: (Kind.PROMISE, message.epoch, message.number, message.promised),
    Forward: _forward_fields,
    ForwardPart: lambda message: (Kind.FORWARD_PART, message.epoch, message.number, message.data),
    Outcome: _outcome_fields,
    SyncTo: lambda message: (Kind.SYNC_TO, message.epoch, message.number, message.database, message.txid),
    Halt: lambda message: (Kind.HALT, message.epoch, message.database, message.token, message.limit_ms),
    Unhalt: lambda message: (Kind.UNHALT, message.epoch, message.database, message.token),
    HaltState: _halt_state_fields,
}


def short_text(text: str) -> str:
    """``text`` as it may stand in a message: at most TEXT_LIMIT_BYTES of UTF-8."""
    return text.encode("utf-8", "replace")[:TEXT_LIMIT_BYTES].decode("utf-8", "ignore")


def encode(message: Message) -> bytes:
    """Length and body. Raises Refused when it would be longer than MESSAGE_LIMIT_BYTES (too many databases)."""
    body: bytes = msgpack.packb(_FIELDS[type(message)](message))
    if len(body) > MESSAGE_LIMIT_BYTES:
        raise Refused(
            f"a {type(message).__name__} of {len(body)} bytes is longer than a replication message may be "
            f"({MESSAGE_LIMIT_BYTES}): this node has too many databases for one replication stream"
        )
    return LENGTH.pack(len(body)) + body


_BIN_32 = Struct(">BI")
_BIN_32_CODE = 0xC6


@lru_cache(maxsize=1024)
def _records_prefix(epoch: int, database: str) -> bytes:
    return bytes(msgpack.packb((Kind.RECORDS, epoch, database, b""))[:-2])


def records_head(epoch: int, database: str, size_bytes: int) -> bytes:
    """Everything of a Records before its data, so that the data is never copied behind it."""
    prefix = _records_prefix(epoch, database)
    return LENGTH.pack(len(prefix) + _BIN_32.size + size_bytes) + prefix + _BIN_32.pack(_BIN_32_CODE, size_bytes)


def pages_head(epoch: int, database: str, first_pgno: int, size_bytes: int) -> bytes:
    """Everything of a Pages before its data."""
    prefix = msgpack.packb((Kind.PAGES, epoch, database, first_pgno, b""))[:-2]
    return bytes(LENGTH.pack(len(prefix) + _BIN_32.size + size_bytes) + prefix + _BIN_32.pack(_BIN_32_CODE, size_bytes))
