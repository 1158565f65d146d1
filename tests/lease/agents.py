"""Agents that misbehave, and what lies between a node and its agent."""

import contextlib
import socket
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def silent() -> Iterator[str]:
    """The URL of something that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


class Proxy:
    """Forwards one request a connection to an agent, and loses the answer while ``loses_answers``."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.loses_answers = False
        self.lost = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._target)) as agent, contextlib.suppress(OSError):
            while request := client.recv(65536):
                agent.sendall(request)
                if b"\r\n\r\n" in request and _expects_more(request):
                    agent.sendall(client.recv(65536))
                answer = agent.recv(65536)
                if self.loses_answers:
                    self.lost += 1
                    return
                client.sendall(answer)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


def _expects_more(request: bytes) -> bool:
    """Whether the body comes in a segment of its own."""
    head, _, body = request.partition(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value) > len(body)
    return False
