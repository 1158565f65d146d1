"""Messages out of any pieces of a stream."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litereplica.cluster.encoding import encode
from litereplica.cluster.framing import HttpSpoken, MessageReader
from litereplica.cluster.messages import LENGTH, MESSAGE_LIMIT_BYTES, Heartbeat, Message, Pages, Records
from litereplica.errors import Corrupt

messages = st.one_of(
    st.builds(Heartbeat, st.integers(0, 9), st.integers(0, 2**60)),
    st.builds(Records, st.integers(0, 9), st.just("app.db"), st.binary(min_size=1, max_size=50)),
    st.builds(Pages, st.integers(0, 9), st.just("app.db"), st.just(1), st.sampled_from([b"x" * 64, b"y" * 700])),
)


def read(reader: MessageReader, data: bytes, step: int) -> list[Message]:
    """Feed at most ``step`` bytes at a time, never more than there is room for."""
    found = []
    position = 0
    while position < len(data):
        room = reader.room()
        assert len(room) > 0
        piece = data[position : position + min(step, len(room))]
        room[: len(piece)] = piece
        reader.received(len(piece))
        position += len(piece)
        while (message := reader.next()) is not None:
            found.append(message)
    return found


@given(st.lists(messages, max_size=12), st.integers(1, 300), st.sampled_from([64, 100, 4096]))
def test_pieces_of_any_size_give_the_same_messages(sent: list[Message], step: int, buffer_bytes: int) -> None:
    reader = MessageReader(buffer_bytes)
    assert read(reader, b"".join(map(encode, sent)), step) == sent
    assert not reader.inside


@given(st.lists(messages, min_size=1, max_size=4))
def test_byte_by_byte(sent: list[Message]) -> None:
    assert read(MessageReader(64), b"".join(map(encode, sent)), 1) == sent


def test_the_longest_message_has_a_buffer_only_while_it_comes() -> None:
    reader = MessageReader(4096)
    message = Pages(1, "app.db", 1, bytes(1024 * 1024))
    data = encode(message)
    assert read(reader, data + encode(Heartbeat(1, 1)), 65536) == [message, Heartbeat(1, 1)]
    assert len(reader._buffer) == 4096
    assert len(reader._spare) == 0


def test_long_messages_in_a_row_share_one_buffer() -> None:
    reader = MessageReader(4096)
    sent: list[Message] = [
        Pages(1, "app.db", 1, bytes([number]) * size) for number, size in enumerate([9000, 8000, 9500])
    ]
    assert read(reader, b"".join(map(encode, sent)), 1000) == sent


def test_what_was_received_may_be_overwritten_once_a_message_is_taken() -> None:
    reader = MessageReader(4096)
    (first,) = read(reader, encode(Records(1, "app.db", b"first")), 4096)
    read(reader, encode(Records(1, "app.db", b"other")), 4096)
    assert first == Records(1, "app.db", b"first")


@pytest.mark.parametrize("size", [0, MESSAGE_LIMIT_BYTES + 1, 2**32 - 1])
def test_a_length_outside_the_limits_is_corrupt_before_anything_is_allocated(size: int) -> None:
    reader = MessageReader(64)
    with pytest.raises(Corrupt, match=str(MESSAGE_LIMIT_BYTES)):
        read(reader, LENGTH.pack(size), 4)
    assert len(reader._buffer) == 64


@pytest.mark.parametrize("request_line", [b"GET / HTTP/1.1\r\n", b"POST /x HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n\r\n"])
def test_an_http_request_is_named(request_line: bytes) -> None:
    with pytest.raises(HttpSpoken, match="HTTP interface is another port"):
        read(MessageReader(), request_line, 100)


@pytest.mark.parametrize(
    ("start", "word"), [(b"HTTP/1.1 400", "HTTP"), (b"\x16\x03\x01\x02", "TLS"), (b"SSH-2.0-x", "SSH")]
)
def test_other_speakers_are_named(start: bytes, word: str) -> None:
    with pytest.raises(Corrupt, match=word):
        read(MessageReader(), start, 100)


def test_after_a_message_of_ours_nothing_is_taken_for_http() -> None:
    reader = MessageReader()
    with pytest.raises(Corrupt, match="claims") as caught:
        read(reader, encode(Heartbeat(1, 1)) + b"GET / HTTP", 4096)
    assert not isinstance(caught.value, HttpSpoken)
