"""Messages between daemon and applier survive any split, and nothing but messages comes through."""

import struct

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from litereplica.applier.protocol import (
    RECORD_LIMIT_BYTES,
    Applied,
    Apply,
    Checkpointed,
    CheckpointFailed,
    Close,
    Commit,
    CommitRefused,
    Committed,
    Failed,
    Held,
    Hold,
    HoldRefused,
    Install,
    Lock,
    Locked,
    LockRefused,
    Look,
    Looked,
    Message,
    MessageReader,
    Ready,
    Release,
    Released,
    ReleaseFailed,
    Report,
    Reported,
    Republish,
    Stop,
    Unhold,
    Unlock,
    Warm,
    encode,
)
from litereplica.errors import Corrupt

MESSAGES: list[Message] = [
    Apply("a/b.db", "/data/db/x/0000000000000001.ltx", 0, 2**40, 1, 2**63, 7),
    Install("a.db", "/data/incoming/pages", 65536, 10, 3),
    Close("a.db"),
    Warm("a.db", 32),
    Stop(),
    Ready(1),
    Applied("ä.db", 2**64 - 1, 3),
    Checkpointed("a.db", 5, truncated=True, history=2),
    Failed("a.db", 5, "disk full", retry=False),
    CheckpointFailed("a.db", "disk full"),
    Republish("a.db", 2**32 - 1, 0, 7),
    Release("a.db"),
    Lock("a.db", 250),
    Unlock("a.db"),
    Released("a.db", 2**32 - 1, 1, 4000),
    ReleaseFailed("a.db", "in use"),
    Locked("a.db"),
    LockRefused("a.db", "process 1 (python3)"),
    Commit("a.db", 2**63, "/data/spool/1", 2**40, 500),
    Commit("a.db", 2**63, "", RECORD_LIMIT_BYTES, 500, bytes(RECORD_LIMIT_BYTES)),
    Committed("a.db", 2**63),
    CommitRefused("a.db", 1, "Input/output error", busy=False),
    Hold("a.db", 5, 1000),
    Held("a.db", 5),
    HoldRefused("a.db", 5, "process 1 (python3)"),
    Unhold("a.db"),
    Report("a.db", 1),
    Look("a.db", 1, 2**32 - 1, 0, 7),
    Looked("a.db", 1, shown=True, writes=False),
    Reported("a.db", 1),
]


@given(st.lists(st.integers(1, 50), max_size=80))
def test_every_message_survives_any_split(cuts: list[int]) -> None:
    data = b"".join(map(encode, MESSAGES))
    reader = MessageReader()
    found: list[Message] = []
    for cut in cuts:
        found += reader.feed(data[:cut])
        data = data[cut:]
    found += reader.feed(data)
    assert found == MESSAGES
    assert list(map(type, found)) == list(map(type, MESSAGES))


@given(st.binary(max_size=200))
def test_other_bytes_are_corrupt_or_wait_for_more(data: bytes) -> None:
    reader = MessageReader()
    try:
        for message in reader.feed(data):
            assert encode(message)
    except Corrupt:
        pass


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgpack.packb([]),
        msgpack.packb([99]),
        msgpack.packb([-1, "a"]),
        msgpack.packb(["x"]),
        msgpack.packb([2]),
        msgpack.packb([2, 5]),
        msgpack.packb([2, "a", "b"]),
        msgpack.packb([[2], "a"]),
    ],
)
def test_a_body_of_another_shape_is_corrupt(body: bytes) -> None:
    with pytest.raises(Corrupt):
        MessageReader().feed(struct.pack(">I", len(body)) + body)


def test_a_length_beyond_the_limit_is_refused_before_it_is_awaited() -> None:
    with pytest.raises(Corrupt, match="claims"):
        MessageReader().feed(struct.pack(">I", 2**31))
