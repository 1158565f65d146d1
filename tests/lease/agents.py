"""Agents that misbehave, and what lies between a node and its agent."""

import contextlib
import http.client
import http.server
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


class Front:
    """Something like nginx in front of an agent: passes requests on, or answers them itself while it has an answer."""

    def __init__(self, port: int) -> None:
        self.answer: tuple[int, dict[str, str], bytes] | None = None
        """(code, headers, body)."""
        front = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                if front.answer is None:
                    self._pass_on(body)
                else:
                    self._say(*front.answer)

            do_PUT = do_DELETE = do_GET  # noqa: N815  the names of the interface

            def _pass_on(self, body: bytes) -> None:
                agent = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                try:
                    agent.request(self.command, self.path, body)
                    found = agent.getresponse()
                    content = found.read()
                except (OSError, http.client.HTTPException):
                    self._say(502, {"content-type": "text/html"}, b"<html>Bad Gateway</html>")
                else:
                    passed = {name: value for name, value in found.getheaders() if name.lower() not in _OF_ONE_STRETCH}
                    self._say(found.status, passed, content)
                finally:
                    agent.close()

            def _say(self, code: int, headers: dict[str, str], body: bytes) -> None:
                with contextlib.suppress(OSError):
                    self.send_response_only(code)
                    for name, value in (headers | {"content-length": str(len(body))}).items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.socket.close()
        self._thread.join(5)


_OF_ONE_STRETCH = {"connection", "content-length", "transfer-encoding", "date"}
