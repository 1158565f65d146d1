"""Nodes without the second of a processor that Python needs to import one.

``python -m tests.support.forge DESCRIPTOR`` is a process that has imported what every node imports and has started
nothing of it. It forks for each program that it is asked for; the child runs that program's own ``__main__``, with the
arguments, environment, folder, session and log that it would have had. Knows how a Python program is started and how
its end is told. Does not know what it does. The nodes of tests/cli and tests/http are started as everybody starts one.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
ANSWER_LIMIT_S: Final = 60.0
"""The first answer comes when everything is imported."""
# Others (jepsen's) may change what is imported before they import it.
_MODULES: Final = (
    ["-m", "litereplica"], ["-m", "tests.crash.launcher"], ["-m", "tests.mount.failing_disk"],
)  # fmt: skip
_REQUEST_BYTES: Final = 1 << 20
_ENTER: Final = ("nsenter", "--net=")
_CLONE_NEWNET: Final = 0x40000000
_PREPARED: Final = (
    "litereplica.cli.run", "litereplica.config", "litereplica.lease.consul", "litereplica.logs",
    "litereplica.node.main",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------- in the tests
class Forge:
    """Asks the forge of this process; started with the first question."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channel: socket.socket | None = None

    def start(
        self, arguments: Sequence[str], environment: Mapping[str, str], folder: Path, log: int
    ) -> "subprocess.Popen[bytes] | None":
        """Start a program as subprocess does, its output to ``log``; None when it is none of Python's."""
        words = list(map(str, arguments))
        network = ""
        if words[0] == _ENTER[0] and words[1].startswith(_ENTER[1]) and words[2] == "--":
            network, words = words[1].removeprefix(_ENTER[1]), words[3:]
        if words[0] != sys.executable or not (words[1:3] in _MODULES or words[1].endswith(".py")):
            return None
        request = {"words": words[1:], "environment": dict(environment), "folder": str(folder), "network": network}
        return Forked(self, int(self._ask(request, [log])))

    def status(self, pid: int) -> int:
        """Of a process that has ended; its id may be another's from now on. 0 when the forge has ended before it."""
        if self._channel is None:
            return 0
        return int(self._ask({"ended": pid}, []))

    def _ask(self, request: dict[str, Any], descriptors: list[int]) -> str:
        with self._lock:
            if self._channel is None:
                self._channel = _begin()
            message = json.dumps(request).encode()
            assert len(message) < _REQUEST_BYTES
            socket.send_fds(self._channel, [message], descriptors)
            answer = self._channel.recv(100).decode()
        assert answer, "the forge is gone"
        return answer

    def close(self) -> None:
        """It ends; what it has forked does not."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def _begin() -> socket.socket:
    # Messages stay whole.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        for each in (ours, theirs):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _REQUEST_BYTES)
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.forge", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            cwd="/",
            # No threads of BLAS: they would not come along in a fork.
            env=os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        ).returncode = 0  # nobody waits for it: it ends when its socket does
    ours.settimeout(ANSWER_LIMIT_S)
    return ours


class Forked(subprocess.Popen[bytes]):
    """A process that the forge has made: everything that tests ask of a Popen, but pipes."""

    def __init__(self, forge: Forge, pid: int) -> None:
        # Nothing of the parent's beginning: there is no child of this process.
        self._child_created = False
        self._forge = forge
        self._descriptor = os.pidfd_open(pid)
        self.args: Any = ()
        self.pid = pid
        self.returncode: Any = None
        self.stdin = self.stdout = self.stderr = None

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        found: int | None = self.returncode
        return found

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            poll = select.poll()
            poll.register(self._descriptor, select.POLLIN)
            if not poll.poll(None if timeout is None else timeout * 1000):
                assert timeout is not None
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = os.waitstatus_to_exitcode(self._forge.status(self.pid))
            os.close(self._descriptor)
        return int(self.returncode)


# --------------------------------------------------------------------------------------------------- in the forge
def main(channel: socket.socket) -> None:
    """Serve until the tests are gone. In a child: return from here into the program."""
    for name in _PREPARED:
        importlib.import_module(name)
    # The children's collectors leave alone what they all share.
    gc.collect()
    gc.freeze()
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, _REQUEST_BYTES, 1)
        if not message:
            return
        request = json.loads(message)
        if "ended" in request:
            answer = os.waitpid(request["ended"], 0)[1]
        elif not (answer := os.fork()):
            channel.close()
            _become(request, *descriptors)
            return
        for each in descriptors:
            os.close(each)
        channel.send(str(answer).encode())


def _become(request: dict[str, Any], log: int) -> None:
    os.setsid()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if request["network"]:
        with Path(request["network"]).open("rb") as network:
            if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"there is no network {request['network']}")
    # Otherwise all would put their tasks in the same order.
    import trio._core._run

    trio._core._run._r.seed()
    words = request["words"]
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, request["folder"])
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
