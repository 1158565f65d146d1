"""Bytes to a proxy and back, for what no client library sends."""

import contextlib
import socket
from collections.abc import Iterator
from typing import Final

LIMIT_S: Final = 15.0


class Connection:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), LIMIT_S)
        self.stream = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def head(self) -> tuple[int, dict[str, str]]:
        """The status and headers of the next answer (the last of equal names); (0, {}) at the end."""
        line = self.stream.readline()
        if not line:
            return 0, {}
        headers = {}
        while (field := self.stream.readline().strip()) != b"":
            name, _, value = field.partition(b":")
            headers[name.decode().lower()] = value.strip().decode()
        return int(line.split()[1]), headers

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """An answer with Content-Length."""
        status, headers = self.head()
        return status, headers, self.stream.read(int(headers.get("content-length", 0)))

    def rest(self) -> bytes:
        """Everything until the other end closes; b"" after what came before a reset."""
        found = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := self.stream.read1(65536):
                found += piece
        return found

    def is_closed(self) -> bool:
        try:
            return self.stream.read(1) == b""
        except ConnectionResetError:
            return True


@contextlib.contextmanager
def connected(port: int) -> Iterator[Connection]:
    connection = Connection(port)
    try:
        yield connection
    finally:
        connection.stream.close()
        connection.socket.close()
