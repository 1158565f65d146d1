"""A wire of so many milliseconds: a TCP relay that delivers everything late by half the round trip, in order, whole.

``python -m benchmarks.harness.relay PORT TARGET_PORT ROUND_TRIP_MS`` accepts on 127.0.0.1. Knows bytes, and nothing of
what they say. Threads and not an event loop: epoll rounds its timeouts up to whole milliseconds, a sleep does not.
"""

import contextlib
import queue
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness.processes import daemon, wait_until

PIECE_BYTES = 64 * 1024
# What may be under way in one direction, so that a receiver that stands still does not fill the memory: 256 MiB.
PIECES_UNDER_WAY = 4096
START_LIMIT_S = 20.0
STOP_LIMIT_S = 5.0
CONNECT_LIMIT_S = 5.0

Piece = tuple[float, bytes]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def relay(target_port: int, round_trip_ms: float, log: Path) -> Iterator[int]:
    """The port of a wire to `target_port`, in a process of its own. BenchmarkError: it did not start."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.harness.relay", str(port), str(target_port), str(round_trip_ms)]
    with daemon(command, log, STOP_LIMIT_S) as process:
        wait_until(lambda: _accepts(port), START_LIMIT_S, "the relay accepts connections", process)
        yield port


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), CONNECT_LIMIT_S):
            return True
    except OSError:
        return False


def trips_ms(round_trip_ms: float, count: int, log: Path) -> list[float]:
    """What a wire really takes, there and back: so many echoes of a few bytes through a relay of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_echo, args=(listener,), daemon=True).start()
        with relay(listener.getsockname()[1], round_trip_ms, log) as port, _connection(port) as wire:
            found = []
            for _ in range(count):
                begin = time.monotonic_ns()
                wire.sendall(b"there and back")
                received = b""
                while len(received) < 14:
                    received += wire.recv(64)
                found.append((time.monotonic_ns() - begin) / 1e6)
            return found


def _echo(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := connection.recv(64):
                connection.sendall(data)
            connection.close()


def _connection(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), CONNECT_LIMIT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _take(source: socket.socket, under_way: "queue.Queue[Piece]", delay_s: float) -> None:
    """Notes when each piece is to arrive; an empty one is the end."""
    with contextlib.suppress(OSError):
        while data := source.recv(PIECE_BYTES):
            under_way.put((time.monotonic() + delay_s, data))
    under_way.put((time.monotonic() + delay_s, b""))


def _deliver(sink: socket.socket, under_way: "queue.Queue[Piece]") -> None:
    while True:
        due, data = under_way.get()
        wait_s = due - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)
        try:
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            sink.sendall(data)
        except OSError:
            # The other end is gone: what comes is taken and thrown away, so that its sender does not hang.
            while data:
                _, data = under_way.get()
            return


def _join(near: socket.socket, target_port: int, delay_s: float) -> None:
    """Both directions of one connection, until both have ended."""
    with near:
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            far = _connection(target_port)
        except OSError:
            return
        far.settimeout(None)
        with far:
            threads = []
            for source, sink in ((near, far), (far, near)):
                under_way: queue.Queue[Piece] = queue.Queue(PIECES_UNDER_WAY)
                threads.append(threading.Thread(target=_take, args=(source, under_way, delay_s), daemon=True))
                threads.append(threading.Thread(target=_deliver, args=(sink, under_way), daemon=True))
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()


def main() -> None:
    port, target_port, round_trip_ms = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    delay_s = round_trip_ms / 2 / 1000
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            near, _ = listener.accept()
            threading.Thread(target=_join, args=(near, target_port, delay_s), daemon=True).start()


if __name__ == "__main__":
    main()
