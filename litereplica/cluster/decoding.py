"""Messages from bytes to values, checked as outside input.

Knows what each field may be. Whatever comes from the network raises Corrupt when it breaks the format, Refused when it
is a greeting of another protocol version, nothing else; no length in it is allocated before it was compared.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final

import msgpack

from litereplica.cluster.messages import (
    DATABASES_LIMIT,
    FORWARD_LIMIT_BYTES,
    MESSAGE_LIMIT_BYTES,
    PAGES_LIMIT_BYTES,
    PROTOCOL,
    PROTOCOL_NAME,
    RECORDS_LIMIT_BYTES,
    SAMPLE,
    SAMPLES_LIMIT,
    TEXT_LIMIT_BYTES,
    Ack,
    Acknowledged,
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
    SnapshotProgress,
    SyncTo,
    Tip,
    Unhalt,
    Welcome,
)
from litereplica.errors import Corrupt, Refused
from litereplica.ltx.format import (
    DATABASE_NAME_LIMIT_BYTES,
    U64_LIMIT,
    Origin,
    database_name_problem,
    node_name_problem,
)
from litereplica.ltx.position import Point, Position
from litereplica.sqlite.pages import is_page_size

_ARRAY_LIMIT: Final = 16
"""Elements of any array; maps need no memory before their entries come, arrays do."""
_U32_LIMIT: Final = 2**32 - 1


def _broken(what: str) -> Corrupt:
    return Corrupt(f"a replication message is damaged: {what}; both ends must be litereplica nodes")


def _uint(value: object, limit: int = U64_LIMIT) -> int:
    if type(value) is not int or not 0 <= value <= limit:
        raise _broken(f"{value!r:.40} is not an unsigned number up to {limit}")
    return value


def _name(value: object) -> str:
    if type(value) is not str:
        raise _broken(f"{value!r:.40} is not a database name")
    if (problem := database_name_problem(value)) is not None:
        raise _broken(f"a database name is not usable, {problem}")
    return value


def _node(value: object) -> str:
    if type(value) is not str:
        raise _broken(f"{value!r:.40} is not a node name")
    if (problem := node_name_problem(value)) is not None:
        raise _broken(f"a node name is not usable, {problem}")
    return value


def _text(value: object) -> str:
    if type(value) is not str:
        raise _broken(f"{value!r:.40} is not text")
    return value


def _flag(value: object) -> bool:
    if type(value) is not bool:
        raise _broken(f"{value!r:.40} is neither true nor false")
    return value


def _data(value: object, limit: int) -> bytes:
    if type(value) is not bytes or not 1 <= len(value) <= limit:
        raise _broken(f"data of 1 to {limit} bytes expected")
    return value


def _map(value: object, width: int) -> dict[str, list[Any]]:
    """A map of database names to arrays of ``width`` unsigned numbers."""
    if type(value) is not dict:
        raise _broken("a map of databases expected")
    for name, entry in value.items():
        _name(name)
        if type(entry) is not list or len(entry) != width:
            raise _broken(f"{width} numbers expected for database {name!r:.60}")
        for number in entry:
            _uint(number)
    return value


def _position(txid: object, checksum: object) -> Position:
    return Position(_uint(txid), _uint(checksum))


def _page_size(value: object, page_count: int = 1) -> int:
    """A page size; 0 too for a database that never had a page."""
    size = _uint(value)
    if not (is_page_size(size) or (size == 0 and page_count == 0)):
        raise _broken(f"{size} is not a page size")
    return size


def _read_tips(value: object) -> dict[str, Tip]:
    return {name: Tip(Position(entry[0], entry[1]), entry[2]) for name, entry in _map(value, 3).items()}


def _read_names(value: object) -> frozenset[str]:
    if type(value) is not dict or any(each is not None for each in value.values()):
        raise _broken("a map of database names to nil expected")
    return frozenset(map(_name, value))


def _read_hello(fields: list[Any]) -> Hello:
    _, _, protocol, node, epoch, databases, snapshots = fields
    assert protocol == PROTOCOL
    progress = {}
    for name, (txid, checksum, page_size, next_pgno) in _map(snapshots, 4).items():
        progress[name] = SnapshotProgress(Position(txid, checksum), _page_size(page_size), _uint(next_pgno, _U32_LIMIT))
    points = {name: Point(*entry) for name, entry in _map(databases, 3).items()}
    return Hello(_node(node), _uint(epoch), points, progress)


def _read_welcome(fields: list[Any]) -> Welcome:
    _, _, protocol, node, epoch, databases, snapshots, diverged = fields
    assert protocol == PROTOCOL
    return Welcome(_node(node), _uint(epoch), _read_tips(databases), _read_names(snapshots), _read_names(diverged))


def _read_goodbye(fields: list[Any]) -> Goodbye:
    _, _, protocol, epoch, code, message = fields
    return Goodbye(_text(code), _text(message), _uint(epoch), _uint(protocol))


def _read_records(fields: list[Any]) -> Records:
    _, epoch, database, data = fields
    return Records(_uint(epoch), _name(database), _data(data, RECORDS_LIMIT_BYTES))


def _read_snapshot(fields: list[Any]) -> Snapshot:
    _, epoch, database, txid, checksum, page_size, page_count, first_pgno, record_epoch, timestamp_ms = fields
    count = _uint(page_count, _U32_LIMIT)
    base = _position(txid, checksum)
    first = _uint(first_pgno, _U32_LIMIT)
    if not 1 <= first <= count + 1:
        raise _broken(f"a snapshot of {count} pages cannot begin at page {first}")
    return Snapshot(
        _uint(epoch), _name(database), base, _page_size(page_size, count), count, first,
        _uint(record_epoch), _uint(timestamp_ms),
    )  # fmt: skip


def _read_pages(fields: list[Any]) -> Pages:
    _, epoch, database, first_pgno, data = fields
    first = _uint(first_pgno, _U32_LIMIT)
    if first == 0:
        raise _broken("pages are counted from 1")
    return Pages(_uint(epoch), _name(database), first, _data(data, PAGES_LIMIT_BYTES))


def _read_snapshot_end(fields: list[Any]) -> SnapshotEnd:
    _, epoch, database, txid, checksum, page_count = fields
    return SnapshotEnd(_uint(epoch), _name(database), _position(txid, checksum), _uint(page_count, _U32_LIMIT))


def _read_heartbeat(fields: list[Any]) -> Heartbeat:
    _, epoch, timestamp_ms, databases = fields
    return Heartbeat(_uint(epoch), _uint(timestamp_ms), _read_tips(databases))


def _read_ack(fields: list[Any]) -> Ack:
    _, epoch, databases = fields
    return Ack(_uint(epoch), {name: Acknowledged(*entry) for name, entry in _map(databases, 2).items()})


def _read_resync(fields: list[Any]) -> Resync:
    _, epoch, database, reason = fields
    return Resync(_uint(epoch), _name(database), _text(reason))


def _read_search(fields: list[Any]) -> Search:
    _, epoch, database, data = fields
    packed = _data(data, SAMPLES_LIMIT * SAMPLE.size)
    if len(packed) % SAMPLE.size:
        raise _broken(f"samples of {SAMPLE.size} bytes expected")
    samples = tuple(Point(*each) for each in SAMPLE.iter_unpack(packed))
    txids = [0, *(each.txid for each in samples)]
    if any(after <= before for before, after in pairwise(txids)):
        raise _broken("the samples of a search do not rise from 1")
    return Search(_uint(epoch), _name(database), samples)


def _read_found(fields: list[Any]) -> Found:
    _, epoch, database, txid = fields
    return Found(_uint(epoch), _name(database), _uint(txid))


def _read_resume(fields: list[Any]) -> Resume:
    _, epoch, database, txid, checksum, record = fields
    return Resume(_uint(epoch), _name(database), Point(_uint(txid), _uint(checksum), _uint(record)))


def _read_ask(fields: list[Any]) -> Ask:
    _, epoch, number, hold_ms = fields
    return Ask(_uint(epoch), _uint(number), _uint(hold_ms, _U32_LIMIT))


def _read_promise(fields: list[Any]) -> Promise:
    _, epoch, number, promised = fields
    return Promise(_uint(epoch), _uint(number), _flag(promised))


def _read_forward(fields: list[Any]) -> Forward:
    _, epoch, number, database, node, identity, txid, checksum, token, durable, length, data = fields
    first = _data(data, FORWARD_LIMIT_BYTES)
    if _uint(length) < len(first):
        raise _broken(f"{len(first)} bytes of a record that has {length}")
    return Forward(
        _uint(epoch), _uint(number), _name(database), Origin(_node(node), _uint(identity)), _position(txid, checksum),
        _uint(token), _flag(durable), length, first,
    )  # fmt: skip


def _read_forward_part(fields: list[Any]) -> ForwardPart:
    _, epoch, number, data = fields
    return ForwardPart(_uint(epoch), _uint(number), _data(data, FORWARD_LIMIT_BYTES))


def _read_outcome(fields: list[Any]) -> Outcome:
    _, epoch, number, code, txid, checksum, message = fields
    return Outcome(_uint(epoch), _uint(number), _text(code), _position(txid, checksum), _text(message))


def _read_sync_to(fields: list[Any]) -> SyncTo:
    _, epoch, number, database, txid = fields
    return SyncTo(_uint(epoch), _uint(number), _name(database), _uint(txid))


def _read_halt(fields: list[Any]) -> Halt:
    _, epoch, database, token, limit_ms = fields
    return Halt(_uint(epoch), _name(database), _uint(token), _uint(limit_ms, _U32_LIMIT))


def _read_unhalt(fields: list[Any]) -> Unhalt:
    _, epoch, database, token = fields
    return Unhalt(_uint(epoch), _name(database), _uint(token))


def _read_halt_state(fields: list[Any]) -> HaltState:
    _, epoch, database, token, state, txid, checksum, limit_ms, message = fields
    return HaltState(
        _uint(epoch), _name(database), _uint(token), _text(state), _position(txid, checksum),
        _uint(limit_ms, _U32_LIMIT), _text(message),
    )  # fmt: skip


_READERS: Final[dict[int, tuple[int, Callable[[list[Any]], Message]]]] = {
    Kind.HELLO: (7, _read_hello),
    Kind.WELCOME: (8, _read_welcome),
    Kind.GOODBYE: (6, _read_goodbye),
    Kind.RECORDS: (4, _read_records),
    Kind.SNAPSHOT: (10, _read_snapshot),
    Kind.PAGES: (5, _read_pages),
    Kind.SNAPSHOT_END: (6, _read_snapshot_end),
    Kind.HEARTBEAT: (4, _read_heartbeat),
    Kind.ACK: (3, _read_ack),
    Kind.RESYNC: (4, _read_resync),
    Kind.SEARCH: (4, _read_search),
    Kind.FOUND: (4, _read_found),
    Kind.RESUME: (6, _read_resume),
    Kind.ASK: (4, _read_ask),
    Kind.PROMISE: (4, _read_promise),
    Kind.FORWARD: (12, _read_forward),
    Kind.FORWARD_PART: (4, _read_forward_part),
    Kind.OUTCOME: (7, _read_outcome),
    Kind.SYNC_TO: (5, _read_sync_to),
    Kind.HALT: (5, _read_halt),
    Kind.UNHALT: (4, _read_unhalt),
    Kind.HALT_STATE: (9, _read_halt_state),
}
_GREETINGS: Final = (Kind.HELLO, Kind.WELCOME, Kind.GOODBYE)


def decode(body: bytes | bytearray | memoryview) -> Message:
    """The message whose bytes after the length are ``body``. Raises Corrupt, Refused (see the module)."""
    if len(body) > MESSAGE_LIMIT_BYTES:
        raise _broken(f"it has {len(body)} bytes, allowed are {MESSAGE_LIMIT_BYTES}")
    try:
        fields = msgpack.unpackb(
            body,
            max_array_len=_ARRAY_LIMIT,
            max_map_len=DATABASES_LIMIT,
            max_str_len=max(DATABASE_NAME_LIMIT_BYTES, TEXT_LIMIT_BYTES),
            max_bin_len=PAGES_LIMIT_BYTES,
            max_ext_len=0,
            strict_map_key=True,
        )
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise _broken(f"it is not the msgpack it should be ({error})") from None
    if type(fields) is not list or not fields or type(fields[0]) is not int:
        raise _broken("it does not begin with its type")
    kind = fields[0]
    if kind in _GREETINGS:
        _check_greeting(fields)
    if kind not in _READERS:
        raise _broken(f"there is no message type {kind}")
    width, read = _READERS[kind]
    if len(fields) != width:
        raise _broken(f"message type {kind} has {len(fields)} fields instead of {width}")
    return read(fields)


def _check_greeting(fields: list[Any]) -> None:
    if len(fields) < 3 or fields[1] != PROTOCOL_NAME or type(fields[2]) is not int:
        raise _broken("its greeting is not one of litereplica's")
    if fields[2] != PROTOCOL and fields[0] != Kind.GOODBYE:
        raise Refused(
            f"the other node speaks replication protocol {fields[2]}, this one speaks {PROTOCOL}: "
            f"run the same version of litereplica on both"
        )
