"""The applier's child as a process: its start, its end, and the bytes that come from it.

Knows how it is started so that it ends with the daemon, and how its messages are read. Does not know what they mean
(link.py).
"""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

import structlog
import trio

from litereplica.applier.protocol import Message, MessageReader
from litereplica.errors import Corrupt, Unavailable

KILL_WAIT_S: Final = 5.0
"""After SIGKILL: until a call on a mount that does not answer was torn down."""

RECEIVE_BYTES: Final = 64 << 10

MODULE: Final = "litereplica.applier"
"""What the child runs."""

_log = structlog.get_logger(__name__)


def spawn(mount_dir: str) -> tuple[subprocess.Popen[bytes], int, socket.socket]:
    """Start a child; it, its pidfd, our end. Raises Unavailable.

    On the event loop's own thread: the child's PR_SET_PDEATHSIG watches the thread that made it. It blocks until exec,
    about a millisecond; what it reads is on the plain disk.
    """
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        raise _cannot(error) from error
    ours.setblocking(False)  # noqa: FBT003 (the method's only parameter)
    # -P: never from the working directory, which may be the mount.
    command = (sys.executable, "-P", "-m", MODULE)
    packages = Path(__file__).resolve().parents[2]
    environment = {
        **os.environ,
        "OPENBLAS_NUM_THREADS": "1",
        # One arena for both threads: the second would keep its own free memory.
        "MALLOC_ARENA_MAX": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(packages), os.environ.get("PYTHONPATH")))),
    }
    try:
        with theirs:
            descriptor = theirs.fileno()
            process = subprocess.Popen(
                (*command, str(descriptor), mount_dir, str(os.getpid())),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(descriptor,),
                env=environment,
                cwd="/",
            )
    except OSError as error:
        ours.close()
        raise _cannot(error) from error
    try:
        return process, os.pidfd_open(process.pid), ours
    except OSError as error:
        ours.close()
        process.kill()
        # It has opened nothing on the mount yet: it ends at once.
        process.wait()
        raise _cannot(error) from error


def _cannot(error: OSError) -> Unavailable:
    return Unavailable(f"the applier cannot be started: {error}")


async def receive(channel: socket.socket, reader: MessageReader) -> list[Message]:
    """The next messages; none at the end of the child."""
    while True:
        await trio.lowlevel.wait_readable(channel)
        try:
            data = channel.recv(RECEIVE_BYTES)
            if not data:
                return []
            if messages := reader.feed(data):
                return messages
        except BlockingIOError:
            continue
        except OSError:
            return []
        except Corrupt as error:
            _log.error("applier.misunderstood", error=error.message)
            return []


async def reap(process: subprocess.Popen[bytes], pidfd: int) -> None:
    """Wait for the end of a child that was killed or is ending by itself, also when we are cancelled."""
    try:
        with trio.CancelScope(shield=True):
            while process.poll() is None:
                with trio.move_on_after(KILL_WAIT_S):
                    await trio.lowlevel.wait_readable(pidfd)
                    continue
                # It is held in a call on the mount; a second applier beside it would wait for its lock in vain.
                _log.error("applier.unkillable", pid=process.pid)
                process.kill()
    finally:
        os.close(pidfd)
