"""Messages in a stream of bytes that arrives in pieces of any size.

Knows lengths, the one buffer that a connection needs, and what foreign speakers send first. Does not know what a
message says (messages.py) or where the bytes come from.
"""

from typing import Final

from litereplica.cluster.decoding import decode
from litereplica.cluster.messages import LENGTH, MESSAGE_LIMIT_BYTES, Message
from litereplica.errors import Corrupt

BUFFER_BYTES: Final = 320 * 1024
"""Of a connection that receives data: one Records with its head, and part of the next one behind it."""

_FOREIGN: Final = (
    (b"HTTP", "the other end answers in HTTP: this is an HTTP port, not a replication port"),
    (b"\x16\x03", "the other end speaks TLS, this port does not"),
    (b"SSH-", "the other end speaks SSH: this is not a replication port"),
    (b"SQLi", "the other end sends an SQLite file: this is not a replication port"),
)
_HTTP_METHODS: Final = (b"GET ", b"POST", b"PUT ", b"HEAD", b"DELE", b"OPTI", b"PATC", b"CONN", b"TRAC", b"PRI ")


class HttpSpoken(Corrupt):
    """An HTTP client has taken the replication port for the HTTP interface."""


class MessageReader:
    """Put bytes into ``room()``, say how many with ``received()``, take messages with ``next()`` until it has none.

    Memory: ``buffer_bytes``, and for longer messages as much again as the longest of them, until a shorter one comes.
    """

    __slots__ = ("_buffer", "_end", "_normal", "_spare", "_start", "_stop", "_view", "started")

    def __init__(self, buffer_bytes: int = BUFFER_BYTES) -> None:
        assert buffer_bytes >= 64
        self._normal = bytearray(buffer_bytes)
        self._buffer = self._normal
        # For long messages: fresh memory for each one would cost as much as receiving it.
        self._spare = bytearray()
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        # Nothing may be received beyond: the end of a long message.
        self._stop = buffer_bytes
        self.started = False
        """One message was understood: whatever is wrong later, the other end is no stranger."""

    def room(self) -> memoryview:
        """Where the next bytes belong; never empty once ``next()`` has answered None."""
        return self._view[self._end : self._stop]

    def received(self, count: int) -> None:
        """``count`` bytes were put into ``room()``."""
        self._end += count

    def next(self) -> Message | None:
        """The next message, None when more bytes are needed. Raises Corrupt or Refused (see decoding.decode)."""
        start = self._start
        have = self._end - start
        if have < LENGTH.size:
            self._make_room(LENGTH.size)
            return None
        (size,) = LENGTH.unpack_from(self._buffer, start)
        if not 1 <= size <= MESSAGE_LIMIT_BYTES:
            raise self._no_message(bytes(self._view[start : start + LENGTH.size]), size)
        if have < LENGTH.size + size:
            self._make_room(LENGTH.size + size)
            return None
        stop = start + LENGTH.size + size
        message = decode(self._view[start + LENGTH.size : stop])
        self.started = True
        self._start = stop
        if self._buffer is not self._normal:
            # A long message has a buffer to itself.
            assert stop == self._end
            self._use(self._normal, 0)
            return message
        if self._spare:
            self._spare = bytearray()
        if stop == self._end:
            self._start = self._end = 0
        return message

    @property
    def inside(self) -> bool:
        """True when the stream would end inside a message."""
        return self._end > self._start

    def _make_room(self, total: int) -> None:
        """The message that begins at ``_start`` needs ``total`` bytes from there."""
        if self._start + total <= self._stop:
            return
        have = self._end - self._start
        target = self._normal
        if total > len(target):
            if total > len(self._spare):
                self._spare = bytearray(total)
            target = self._spare
        target[:have] = self._buffer[self._start : self._end]
        self._use(target, have)
        if target is self._spare:
            self._stop = total

    def _use(self, buffer: bytearray, have: int) -> None:
        self._buffer = buffer
        self._view = memoryview(buffer)
        self._start, self._end, self._stop = 0, have, len(buffer)

    def _no_message(self, start: bytes, size: int) -> Corrupt:
        if not self.started:
            if start in _HTTP_METHODS:
                return HttpSpoken("an HTTP request came to the replication port: the HTTP interface is another port")
            for prefix, explanation in _FOREIGN:
                if start.startswith(prefix):
                    return Corrupt(explanation)
        return Corrupt(
            f"a replication message claims {size} bytes, allowed are 1 to {MESSAGE_LIMIT_BYTES}: "
            f"the other end is no litereplica node, or the stream is damaged"
        )
