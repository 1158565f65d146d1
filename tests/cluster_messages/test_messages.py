"""Every message there and back; anything else is Corrupt."""

import contextlib
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from litereplica.cluster.decoding import decode
from litereplica.cluster.encoding import encode, pages_head, records_head, short_text
from litereplica.cluster.messages import (
    DATABASES_LIMIT,
    FORWARD_LIMIT_BYTES,
    LENGTH,
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
from litereplica.ltx.format import Origin
from litereplica.ltx.position import Point, Position

u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(1, 2**32 - 2)
part = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda text: text not in {".", ".."}
)
names = st.lists(part, min_size=1, max_size=3).map("/".join)
page_sizes = st.sampled_from([512, 1024, 4096, 65536])
positions = st.builds(Position, u64, u64)
points = st.builds(Point, u64, u64, u64)
tips = st.builds(Tip, positions, u64)


def by_name(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(names, values, max_size=5)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    page_count = draw(u32)
    first = draw(st.integers(1, page_count + 1))
    return Snapshot(
        draw(u64), draw(names), draw(positions), draw(page_sizes), page_count, first, draw(u64), draw(u64)
    )  # fmt: skip


@st.composite
def searches(draw: st.DrawFn) -> Search:
    txids = sorted(draw(st.sets(st.integers(1, 2**64 - 1), min_size=1, max_size=SAMPLES_LIMIT)))
    return Search(draw(u64), draw(names), tuple(Point(txid, draw(u64), draw(u64)) for txid in txids))


@st.composite
def forwards(draw: st.DrawFn) -> Forward:
    data = draw(st.binary(min_size=1, max_size=300))
    return Forward(
        draw(u64), draw(u64), draw(names), Origin(draw(part), draw(u64)), draw(positions), draw(u64),
        draw(st.booleans()), draw(st.integers(len(data), 2**64 - 1)), data,
    )  # fmt: skip


messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Hello, part, u64, by_name(points), by_name(st.builds(SnapshotProgress, positions, page_sizes, u32))),
    st.builds(Welcome, part, u64, by_name(tips), st.frozensets(names, max_size=5), st.frozensets(names, max_size=5)),
    st.builds(Goodbye, st.text(max_size=20), st.text(max_size=200), u64, st.integers(0, 2**32)),
    st.builds(Records, u64, names, st.binary(min_size=1, max_size=300)),
    snapshots(),
    st.builds(Pages, u64, names, u32, st.binary(min_size=1, max_size=300)),
    st.builds(SnapshotEnd, u64, names, positions, u32),
    st.builds(Heartbeat, u64, u64, by_name(tips)),
    st.builds(Ack, u64, by_name(st.builds(Acknowledged, u64, u64))),
    st.builds(Resync, u64, names, st.text(max_size=200)),
    searches(),
    st.builds(Found, u64, names, u64),
    st.builds(Resume, u64, names, points),
    st.builds(Ask, u64, u64, st.integers(0, 2**32 - 1)),
    st.builds(Promise, u64, u64, st.booleans()),
    forwards(),
    st.builds(ForwardPart, u64, u64, st.binary(min_size=1, max_size=300)),
    st.builds(Outcome, u64, u64, st.text(max_size=20), positions, st.text(max_size=200)),
    st.builds(SyncTo, u64, u64, names, u64),
    st.builds(Halt, u64, names, u64, st.integers(0, 2**32 - 1)),
    st.builds(Unhalt, u64, names, u64),
    st.builds(
        HaltState, u64, names, u64, st.text(max_size=20), positions, st.integers(0, 2**32 - 1), st.text(max_size=200)
    ),
)


@given(messages)
def test_a_message_is_the_same_after_encoding_and_decoding(message: Message) -> None:
    data = encode(message)
    assert LENGTH.unpack(data[:4])[0] == len(data) - 4
    assert decode(data[4:]) == message


@given(names, u64, st.binary(min_size=1, max_size=RECORDS_LIMIT_BYTES))
def test_records_may_be_sent_as_head_and_data(name: str, epoch: int, data: bytes) -> None:
    sent = records_head(epoch, name, len(data)) + data
    assert LENGTH.unpack(sent[:4])[0] == len(sent) - 4
    assert decode(sent[4:]) == Records(epoch, name, data)


@given(names, u64, u32, st.binary(min_size=1, max_size=5000))
def test_pages_may_be_sent_as_head_and_data(name: str, epoch: int, pgno: int, data: bytes) -> None:
    sent = pages_head(epoch, name, pgno, len(data)) + data
    assert LENGTH.unpack(sent[:4])[0] == len(sent) - 4
    assert decode(sent[4:]) == Pages(epoch, name, pgno, data)


@given(messages, st.data())
def test_a_damaged_byte_gives_a_message_or_the_documented_error(message: Message, data: st.DataObject) -> None:
    body = bytearray(encode(message)[4:])
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(Corrupt, Refused):
        decode(bytes(body))


@given(messages, st.data())
def test_a_message_cut_short_or_with_more_behind_it_is_corrupt(message: Message, data: st.DataObject) -> None:
    body = encode(message)[4:]
    for wrong in (body[: data.draw(st.integers(0, len(body) - 1))], body + b"\0"):
        with pytest.raises(Corrupt):
            decode(wrong)


msgpack_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=10) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=30,
)


@given(st.integers(0, 24), st.lists(msgpack_values, max_size=12))
@example(1, [PROTOCOL_NAME, PROTOCOL])
@example(2, [PROTOCOL_NAME, True, "a", 1, {}, {}])
@example(4, [1, "app.db", "text"])
@example(11, [1, "app.db", b"short"])
@example(2, [PROTOCOL_NAME, PROTOCOL, "a", 1, {}, {}, {"x": 1}])
@example(16, [1, 1, "app.db", "", 1, 1, 1, 0, False, 1, b"x"])
@example(22, [1, "app.db", 1, "granted", 1, 1, 2**32, ""])
def test_any_msgpack_gives_a_message_or_the_documented_error(kind: int, values: list[Any]) -> None:
    with contextlib.suppress(Corrupt, Refused):
        decode(msgpack.packb([kind, *values]))


@given(st.binary(max_size=200))
def test_any_bytes_give_a_message_or_the_documented_error(body: bytes) -> None:
    with contextlib.suppress(Corrupt, Refused):
        decode(body)


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a\0b", "x" * 1025])
def test_a_name_that_leads_elsewhere_is_corrupt(name: str) -> None:
    for body in (
        msgpack.packb((4, 1, name, b"x")),
        msgpack.packb((9, 1, {name: (1, 1)})),
        msgpack.packb((1, PROTOCOL_NAME, PROTOCOL, "b", 1, {name: (1, 1, 1)}, {})),
        msgpack.packb((16, 1, 1, name, "b", 1, 1, 1, 0, False, 1, b"x")),
        msgpack.packb((20, 1, name, 1, 1)),
    ):
        with pytest.raises(Corrupt):
            decode(body)


@pytest.mark.parametrize(
    "fields",
    [
        (4, 1, "a", b""),
        (4, 1, "a", bytes(RECORDS_LIMIT_BYTES + 1)),
        (6, 1, "a", 1, bytes(PAGES_LIMIT_BYTES + 1)),
        (6, 1, "a", 0, b"x"),
        (5, 1, "a", 1, 1, 1000, 10, 1, 1, 1),
        (5, 1, "a", 1, 1, 4096, 10, 12, 1, 1),
        (5, 1, "a", 1, 1, 0, 10, 1, 1, 1),
        (9, -1, {}),
        (9, 1, {"a": (1,)}),
        (9, 1, {"a": (1, -1)}),
        (9, 1, {"a": (True, 1)}),
        (9, 1, []),
        (10, 1, "a", 5),
        (11, 1),
        (11, 1, "a", b""),
        (11, 1, "a", SAMPLE.pack(1, 1, 1)[:-1]),
        (11, 1, "a", SAMPLE.pack(0, 1, 1)),
        (11, 1, "a", SAMPLE.pack(2, 1, 1) + SAMPLE.pack(2, 1, 1)),
        (11, 1, "a", SAMPLE.pack(2, 1, 1) + SAMPLE.pack(1, 1, 1)),
        (11, 1, "a", b"".join(SAMPLE.pack(txid, 1, 1) for txid in range(1, SAMPLES_LIMIT + 2))),
        (12, 1, "a", -1),
        (13, 1, "a", 1),
        (13, 1, "a", 1, True, 1),
        (13, 1, "a", 1, 1, True),
        (14, 1, 1, 2**32),
        (15, 1, 1, 1),
        (15, 1, 1, None),
        (16, 1, 1, "a", "b", 1, 1, 1, 0, False, 1, b""),
        (16, 1, 1, "a", "b", 1, 1, 1, 0, False, 1, b"xx"),
        (16, 1, 1, "a", "b", 1, 1, 1, 0, 0, 1, b"x"),
        (16, 1, 1, "../a", "b", 1, 1, 1, 0, False, 1, b"x"),
        (16, 1, 1, "a", "b", 1, -1, 1, 0, False, 1, b"x"),
        (16, 1, 1, "a", "b", 1, 1, 1, 0, False, 2**30, bytes(FORWARD_LIMIT_BYTES + 1)),
        (17, 1, 1, b""),
        (17, 1, 1, bytes(FORWARD_LIMIT_BYTES + 1)),
        (18, 1, 1, 5, 1, 1, ""),
        (18, 1, 1, "stale", 1, 1, None),
        (19, 1, 1, "", 1),
        (20, 1, "a", 1, 2**32),
        (21, 1, "a", -1),
        (22, 1, "a", 1, "granted", 1, 1, 2**32, ""),
        (23, 1),
        (True, 1),
        ("a",),
        (),
    ],
)
def test_a_field_outside_its_limits_is_corrupt(fields: tuple[Any, ...]) -> None:
    with pytest.raises(Corrupt):
        decode(msgpack.packb(fields))


def test_limits_hold_at_their_ends() -> None:
    assert isinstance(decode(msgpack.packb((4, 1, "a", bytes(RECORDS_LIMIT_BYTES)))), Records)
    assert isinstance(decode(msgpack.packb((6, 1, "a", 1, bytes(PAGES_LIMIT_BYTES)))), Pages)
    forward = (16, 1, 1, "a", "b", 1, 1, 1, 0, False, FORWARD_LIMIT_BYTES, bytes(FORWARD_LIMIT_BYTES))
    assert isinstance(decode(msgpack.packb(forward)), Forward)
    assert isinstance(decode(msgpack.packb((17, 1, 1, bytes(FORWARD_LIMIT_BYTES)))), ForwardPart)
    assert isinstance(decode(msgpack.packb((5, 1, "a", 5, 0, 0, 0, 1, 1, 1))), Snapshot)


@pytest.mark.parametrize("kind", [1, 2])
@pytest.mark.parametrize("protocol", [0, PROTOCOL + 1, 2**40])
def test_a_greeting_of_another_version_is_refused_with_both_versions(kind: int, protocol: int) -> None:
    with pytest.raises(Refused, match=rf"protocol {protocol}, this one speaks {PROTOCOL}"):
        decode(msgpack.packb((kind, PROTOCOL_NAME, protocol, "whatever", "comes")))


def test_a_goodbye_of_another_version_is_understood() -> None:
    assert decode(encode(Goodbye("protocol", "why", 3, 9))[4:]) == Goodbye("protocol", "why", 3, 9)


def test_a_greeting_of_another_program_is_corrupt() -> None:
    with pytest.raises(Corrupt, match="greeting"):
        decode(msgpack.packb((1, "memcached", PROTOCOL, "b", 1, {}, {})))


def test_nested_lengths_are_never_allocated() -> None:
    # Each array claims 2^32 - 1 elements; each level would be 32 GiB.
    for wrong in (
        b"\xdd\xff\xff\xff\xff" * 900,
        b"\xdf\xff\xff\xff\xff" * 900,
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
    ):
        with pytest.raises(Corrupt):
            decode(wrong)


def test_a_hello_of_as_many_databases_as_fit() -> None:
    databases = {f"{number:05}.db": Point(2**64 - 1, 2**64 - 1, 2**64 - 1) for number in range(DATABASES_LIMIT)}
    data = encode(Hello("b", 1, databases))
    assert len(data) <= MESSAGE_LIMIT_BYTES
    assert decode(data[4:]) == Hello("b", 1, databases)


def test_more_than_fits_is_refused() -> None:
    databases = {f"{number:0200}.db": Point(1, 1, 1) for number in range(30_000)}
    with pytest.raises(Refused, match="too many databases"):
        encode(Hello("b", 1, databases))


@given(st.text(max_size=2000))
def test_a_long_reason_is_cut_to_whole_characters(text: str) -> None:
    short = short_text(text)
    assert len(short.encode()) <= TEXT_LIMIT_BYTES
    assert isinstance(decode(encode(Goodbye("code", text, 1))[4:]), Goodbye)
