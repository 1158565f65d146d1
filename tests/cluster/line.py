"""A network line between a replica and its primary that can be made bad: cut, silent, slow, late.

Knows TCP bytes. Does not know the messages in them, so that it cuts wherever a record happens to be.
"""

import contextlib
import socket
import threading
import time
from types import TracebackType
from typing import Final, Self

PIECE_BYTES: Final = 16 * 1024
STEP_S: Final = 0.01


class Line:
    """Accepts on ``port`` and passes bytes on to 127.0.0.1:``target``; use it as a context.

    ``delay_s``: each piece is held so long. ``rate_bytes_s``: at most so many bytes a second towards the replica, 0 for
    no limit. Both may change at any time.
    """

    def __init__(self, target: int) -> None:
        self.delay_s = 0.0
        self.rate_bytes_s = 0
        self.connections = 0
        self.passed_bytes = 0
        """Towards the replica, over all connections."""
        self._target = target
        self._cut_at: int | None = None
        self._open = threading.Event()
        self._open.set()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._open.set()
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """End every connection; both ends are told."""
        with self._lock:
            found, self._sockets = self._sockets, set()
        for each in found:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def cut_after(self, size_bytes: int) -> None:
        """Cut once so many more bytes have gone towards the replica: not one byte more of them arrives."""
        self._cut_at = self.passed_bytes + size_bytes

    @property
    def is_cut_pending(self) -> bool:
        return self._cut_at is not None

    def stall(self) -> None:
        """Pass nothing more, in neither direction, and tell nobody."""
        self._open.clear()

    def go_on(self) -> None:
        """Pass what was held back, and what comes."""
        self._open.set()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target), timeout=5)
                far.settimeout(None)
            except OSError:
                near.close()
                continue
            self.connections += 1
            with self._lock:
                self._sockets |= {near, far}
            for source, sink, counted in ((near, far, False), (far, near, True)):
                threading.Thread(target=self._pump, args=(source, sink, counted), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE_BYTES):
                self._open.wait()
                if self.delay_s:
                    time.sleep(self.delay_s)
                if not counted:
                    sink.sendall(data)
                    continue
                cut_at = self._cut_at
                if cut_at is not None and self.passed_bytes + len(data) >= cut_at:
                    sink.sendall(data[: cut_at - self.passed_bytes])
                    self.passed_bytes = cut_at
                    self._cut_at = None
                    self.cut()
                    break
                sink.sendall(data)
                self.passed_bytes += len(data)
                if self.rate_bytes_s:
                    time.sleep(len(data) / self.rate_bytes_s)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            with self._lock:
                self._sockets.discard(each)
            each.close()
