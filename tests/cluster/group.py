"""A primary and its replicas as real processes, with lines between them that can be made bad, and applications.

Knows the command, the configuration and HTTP as they are documented, and how to leave nothing behind: no process, no
mount, whatever happened to the nodes. Does not know litereplica's code.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import psutil

from tests.cluster.comparing import CAUGHT_UP_S, until
from tests.cluster.line import Line

REPOSITORY: Final = Path(__file__).resolve().parents[2]
APPLICATION: Final = Path(__file__).with_name("application.py")
READY_S: Final = 60.0
STOP_S: Final = 30.0
ASK_S: Final = 20.0
HEARTBEAT_S: Final = 0.5
TIMEOUT_S: Final = 3.0
LAST_LINES: Final = 60


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Node:
    """One node. ``line`` (replicas only) is the way to the primary's replication port."""

    def __init__(self, folder: Path, name: str, http_port: int, configuration: dict[str, object]) -> None:
        self.name = name
        self.mount = folder / "mount"
        self.data = folder / "data"
        self.output = folder / "output"
        self.http_port = http_port
        self.process: subprocess.Popen[bytes] | None = None
        self.line: Line | None = None
        self._configuration = folder / "litereplica.yml"
        self.mount.mkdir(parents=True)
        configuration |= {"node": {"name": name}, "mount": {"dir": str(self.mount)}}
        # Every JSON document is a YAML document.
        self._configuration.write_text(json.dumps(configuration))

    # -- the process

    def start(self, *, ready: bool = True) -> None:
        """Start it, and wait until it is ready unless told not to."""
        assert self.process is None
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "litereplica", "-c", str(self._configuration), "run"],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=REPOSITORY, start_new_session=True,
            )  # fmt: skip
        if ready:
            self.await_ready()

    def await_ready(self) -> None:
        until(self._is_ready, lambda: f"{self.name} is not ready: {self.last_words()}", READY_S)

    def _is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"{self.name} ended by itself: {self.last_words()}"
        return self.ask("/readyz", limit_s=2)[0] == 200

    def stop(self) -> None:
        """SIGTERM, as a service manager would; the exit code must be 0."""
        assert self.process is not None
        self.process.terminate()
        code = self.process.wait(STOP_S)
        self.process = None
        assert code == 0, f"{self.name} ended with {code}: {self.last_words()}"

    def kill(self) -> None:
        """Kill -9; its applier dies with it."""
        assert self.process is not None
        children = self._children()
        self.process.kill()
        self.process.wait(STOP_S)
        self.process = None
        psutil.wait_procs(children, STOP_S)

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def _children(self) -> list[psutil.Process]:
        assert self.process is not None
        try:
            return list(psutil.Process(self.process.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return []

    def kill_applier(self) -> int:
        """Kill -9 the applier, if there is one; how many there were."""
        found = self._children()
        for each in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        return len(found)

    def cpu_s(self) -> float:
        """Processor time that the node and its applier have used."""
        assert self.process is not None
        total = 0.0
        for each in (psutil.Process(self.process.pid), *self._children()):
            times = each.cpu_times()
            total += times.user + times.system
        return total

    def forget_data(self) -> None:
        """Remove its data directory; it is stopped."""
        assert self.process is None
        subprocess.run(["rm", "-rf", "--", self.data], check=True, timeout=STOP_S)

    def destroy(self) -> None:
        """End it and take its mount away, in whatever state both are."""
        self.abort()
        if self.process is not None:
            children = self._children()
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(STOP_S)
            self.process = None
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        while mounted_as(self.mount) is not None:
            subprocess.run(["umount", "-l", self.mount], check=True, timeout=STOP_S)

    def abort(self) -> None:
        """End every request to its mount, so that nobody hangs in one (FUSE's control file system)."""
        device = mounted_as(self.mount)
        if device is not None:
            control = Path(f"/sys/fs/fuse/connections/{device.partition(':')[2]}/abort")
            with contextlib.suppress(OSError):
                control.write_text("1")

    def words(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def last_words(self) -> str:
        return "\n".join([f"--- {self.name}", *self.words().splitlines()[-LAST_LINES:]])

    # -- what it says

    def ask(self, path: str, limit_s: float = ASK_S) -> tuple[int, Any]:
        """Code and JSON of a GET; (0, None) when there is no answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=limit_s) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except (OSError, ValueError):
            return 0, None

    def status(self) -> Any:
        code, body = self.ask("/status")
        assert code == 200, f"{self.name} answers {code}: {self.last_words()}"
        return body

    def positions(self) -> dict[str, str]:
        """TXID/checksum that readers here see, by database."""
        return {
            each["name"]: f"{each['txid']}/{each['checksum']}"
            + ("" if each["applied"] == each["txid"] else f" applied {each['applied']}")
            for each in self.status()["databases"]
        }

    def wait(self, database: str, txid: str, **more: str) -> tuple[int, Any]:
        query = "&".join(f"{key}={value}" for key, value in {"db": database, "txid": txid, **more}.items())
        return self.ask(f"/wait?{query}", limit_s=60)


def mounted_as(path: Path) -> str | None:
    """Major and minor number of what is mounted at a path, without touching it; None when nothing is."""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        fields = line.split()
        if fields[4] == str(path):
            return fields[2]
    return None


class Group:
    """A primary and replicas in ``folder``; ``close`` in any case."""

    def __init__(self, folder: Path, replicas: int = 2, **options: str) -> None:
        """``options``: retention's age and size, of every node."""
        self._folder = folder
        self._options = options
        self._cleanups = contextlib.ExitStack()
        self._replication_port = free_port()
        self._http_port = free_port()
        self.primary = self._make("primary", self._http_port, self._replication_port, self._replication_port)
        self.replicas = [self.add(f"replica{number}") for number in range(1, replicas + 1)]

    def _make(self, name: str, http_port: int, own_port: int, primary_port: int) -> Node:
        folder = self._folder / name
        static = {
            "name": "primary",
            "http": f"http://127.0.0.1:{self._http_port}",
            "replication": f"127.0.0.1:{primary_port}",
        }
        configuration: dict[str, object] = {
            "data": {"dir": str(folder / "data"), "retention": self._options},
            "http": {"listen": f"127.0.0.1:{http_port}"},
            "replication": {
                "listen": f"127.0.0.1:{own_port}", "heartbeat": f"{HEARTBEAT_S}s", "timeout": f"{TIMEOUT_S}s"
            },
            "lease": {"type": "static", "static": {"primary": static}},
        }  # fmt: skip
        node = Node(folder, name, http_port, configuration)
        self._cleanups.callback(node.destroy)
        return node

    def add(self, name: str) -> Node:
        """One more replica, behind a line of its own; not started."""
        line = self._cleanups.enter_context(Line(self._replication_port))
        node = self._make(name, free_port(), free_port(), line.port)
        node.line = line
        return node

    def start(self) -> None:
        self.primary.start(ready=False)
        for each in self.replicas:
            each.start(ready=False)
        for each in self.nodes:
            each.await_ready()

    @property
    def nodes(self) -> list[Node]:
        return [self.primary, *self.replicas]

    def abort(self) -> None:
        for each in self.nodes:
            each.abort()

    def close(self) -> None:
        self._cleanups.close()

    def assert_no_surprise(self) -> None:
        """No node has met a bug of its own."""
        for node in self.nodes:
            words = node.words()
            for surprise in ("Traceback", "internal error", "request_failed", "AssertionError", "applier.misunderstood"):
                assert surprise not in words, f"{surprise} at {node.name}:\n{words[words.index(surprise) - 2000 :][:6000]}"


# ------------------------------------------------------------------------------------------------------- applications
class Client:
    """An application that keeps a connection open, in a process of its own."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, APPLICATION, "serve", path],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        end(self._process)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, *statements: str | tuple[str, Sequence[object]], reopen: bool = False) -> None:
        each = [(one, []) if isinstance(one, str) else one for one in statements]
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"statements": each, "reopen": reopen}) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """{"rows"} of the last statement, or {"error"}."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the application died"
        return json.loads(line)

    def ask(self, *statements: str | tuple[str, Sequence[object]], reopen: bool = False) -> Any:
        self.send(*statements, reopen=reopen)
        return self.answer()

    def run(self, *statements: str | tuple[str, Sequence[object]], reopen: bool = False) -> list[list[Any]]:
        """Rows of the last statement; fails on an error."""
        found = self.ask(*statements, reopen=reopen)
        assert "error" not in found, (statements, found["error"])
        rows: list[list[Any]] = found["rows"]
        return rows


def random_bytes(size: int, seed: int = 1) -> dict[str, int]:
    """A value of a statement: so many bytes, made by the application itself."""
    return {"random_bytes": size, "seed": seed}


class Burst:
    """A writer in a process of its own; ``acknowledged`` is the last number whose COMMIT has succeeded."""

    def __init__(self, path: Path, name: str, *, count: int = 1 << 40, seconds: float = 60, size: int = 100) -> None:
        self.name = name
        self.acknowledged = 0
        self.stopped_by = ""
        self._process = subprocess.Popen(
            [sys.executable, APPLICATION, "write", path, name, str(count), str(seconds), str(size)],
            stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip().isdigit():
                self.acknowledged = int(line)
            else:
                self.stopped_by = line.strip()

    def __enter__(self) -> "Burst":
        return self

    def __exit__(self, *_: object) -> None:
        end(self._process)
        self._reader.join(STOP_S)

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def await_number(self, number: int, limit_s: float = CAUGHT_UP_S) -> None:
        until(
            lambda: self.acknowledged >= number,
            lambda: f"writer {self.name} is at {self.acknowledged}, not at {number} ({self.stopped_by})",
            limit_s,
        )

    def finish(self, limit_s: float = 100.0) -> int:
        """Wait for its end; its last number. It must not have been stopped by an error."""
        self.join(limit_s)
        assert not self.stopped_by, self.stopped_by
        return self.acknowledged

    def join(self, limit_s: float = 100.0) -> None:
        code = self._process.wait(limit_s)
        self._reader.join(STOP_S)
        assert code == 0, f"writer {self.name} ended with {code}"

    def end(self) -> int:
        """End it now, in the middle of whatever it does."""
        self._process.kill()
        self._process.wait(STOP_S)
        self._reader.join(STOP_S)
        return self.acknowledged


class Watcher:
    """A reader in a process of its own that must never see time go backwards."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, APPLICATION, "watch", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> "Watcher":
        return self

    def __exit__(self, *_: object) -> None:
        end(self._process)

    def finish(self) -> dict[str, Any]:
        output, _ = self._process.communicate("\n", timeout=STOP_S)
        found: dict[str, Any] = json.loads(output)
        return found


def end(process: "subprocess.Popen[str]") -> None:
    for pipe in (process.stdin, process.stdout):
        # A reader thread may still be in readline: the pipe's other end goes first.
        if pipe is process.stdin and pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    if process.poll() is None:
        process.kill()
    process.wait(STOP_S)


@contextlib.contextmanager
def writing(path: Path, names: Sequence[str], **options: float) -> Iterator[list[Burst]]:
    """Writers at work on one database; they are ended at the end."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Burst(path, name, **options)) for name in names]  # type: ignore[arg-type]


def prepare(path: Path, page_size: int = 4096) -> None:
    """A WAL database with the tables that writers and watchers use."""
    from tests.cluster import application

    pause = time.monotonic() + 10
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = application.connect(str(path))
    try:
        connection.execute(f"PRAGMA page_size={page_size}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript(application.SCHEMA)
    finally:
        connection.close()
    assert time.monotonic() < pause, "the primary is far too slow"


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
