"""``litereplica lock``: run a command while this node alone may write a database.

Knows the file ``DB-halt`` as any program sees it, where the mount is, and what becomes of signals and exit codes. Does
not know how the right is had: opening that file for writing waits for it, closing it gives it back.
"""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NoReturn

import click

from litereplica.cli.options import URL_VARIABLE, Options, command, load, node_url
from litereplica.errors import LitereplicaError, Misconfigured, Refused, Unavailable

HALT_SUFFIX: Final = "-halt"
LOOK_S: Final = 1.0
"""How often it is looked whether the lock is lost: a person is told soon enough."""
ANSWER_LIMIT_S: Final = 10.0
"""A node that does not say for so long whether the lock is held does not hold it any more (cluster.halts)."""
LOST: Final = "here lost"
"""A line of DB-halt about a lock of this node that is lost, and whose file is open (docs/writes.md)."""
NOT_HERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
NOT_ALLOWED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
NODE_GONE: Final = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.EIO})
SIGNALS: Final = (
    signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip
SIGNALLED: Final = 128
"""A shell's exit code for a command that a signal has ended is this and its number."""


@command(
    "lock",
    short_help="Run a command while this node alone may write a database.",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("db")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, required=True, metavar="-- COMMAND [ARGUMENTS]...")
@click.option("--timeout", default="30s", show_default=True, metavar="DURATION", help="Give up after this long.")
@click.option("--close", "closes", is_flag=True, help="COMMAND, and what it leaves behind, do not keep the lock.")
def lock(options: Options, db: str, arguments: tuple[str, ...], timeout: str, *, closes: bool) -> NoReturn:
    """Wait for the lock of database DB, run COMMAND, give the lock back, and exit with COMMAND's exit code.

    Until then no application of another node commits to DB; this node has everything that they have committed before.
    DB is a name below the mount, or its absolute path there. Works on every node, also on the primary.

    COMMAND inherits the open lock: it keeps it when this process is killed, and what it leaves running in the
    background keeps it until that ends. With --close it does not.

    Exit code 3 when the lock was not to be had in time, and when it was lost while a COMMAND ran that ended with 0:
    what it has committed stays, but others may have written in between. Exit code 1 when there is no such database.
    """
    from litereplica.config.units import parse_duration  # noqa: PLC0415 - only when it is about to be used

    try:
        timeout_s = parse_duration(timeout)
    except ValueError as error:
        raise Misconfigured(f"--timeout: {error}") from error
    if shutil.which(arguments[0]) is None:
        raise Misconfigured(f"{arguments[0]!r} is not a command that can be run: nothing was locked")
    file = _halt_file(options, db)
    with _locked(file, db, timeout_s) as descriptor:
        code, lost = _run(arguments, file, db, () if closes else (descriptor,))
    if lost and code == 0:
        raise Unavailable(
            f"the lock of {db} was lost while the command ran ({lost}): others may have written meanwhile"
        )
    raise SystemExit(code)


def _halt_file(options: Options, db: str) -> Path:
    """Where DB-halt is. Raises as asking a node does."""
    if Path(db).is_absolute():
        return Path(db + HALT_SUFFIX)
    mount = _mount(options, db)
    if not mount.is_mount():
        raise Unavailable(
            f"nothing is mounted at {mount}: start the node with 'litereplica run', or give DB's whole path"
        )
    return mount / (db + HALT_SUFFIX)


def _mount(options: Options, db: str) -> Path:
    """The mount of the node that is asked, which is one of this machine; of the configuration's otherwise."""
    from litereplica.cli.client import get  # noqa: PLC0415 - only when it is about to be used
    from litereplica.config import find_file  # noqa: PLC0415

    named = options.url or os.environ.get(URL_VARIABLE)
    if not named and find_file(options.config, os.environ) is not None:
        return load(options).mount.dir
    url = node_url(options)
    mount = get(url, "/status").get("mount")
    if not isinstance(mount, str) or not mount:
        raise Unavailable(f"{url} does not say where its mount is: give DB's whole path, such as /litereplica/{db}")
    return Path(mount)


# -- the lock --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(file: Path, db: str, timeout_s: float) -> Iterator[int]:
    """Have the lock in the block, which gets its descriptor. Raises Refused, Unavailable."""
    descriptor = _open(file, db, timeout_s)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class _TimeIsUp(Exception):
    """SIGALRM came."""


def _alarm(_number: int, _frame: object) -> None:
    raise _TimeIsUp


def _open(file: Path, db: str, timeout_s: float) -> int:
    """Open it for writing; a signal ends the waiting, and so does our own."""
    before = signal.signal(signal.SIGALRM, _alarm)
    try:
        # 0 would be: for ever.
        signal.setitimer(signal.ITIMER_REAL, max(timeout_s, 0.001))
        try:
            return os.open(file, os.O_RDWR | os.O_CLOEXEC)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _TimeIsUp:
        held = _holder(file)
        raise Unavailable(f"{db} could not be locked in time{held}: try again, or with a longer --timeout") from None
    except OSError as error:
        raise _explained(error, file, db) from error
    finally:
        signal.signal(signal.SIGALRM, before)


def _explained(error: OSError, file: Path, db: str) -> LitereplicaError:
    if error.errno in NOT_HERE:
        return Refused(f"there is no database {db} in {file.parent}: check the name ('litereplica status' lists them)")
    if error.errno in NOT_ALLOWED:
        return Refused(
            f"{db} cannot be locked here ({os.strerror(error.errno or 0)}): the node's configuration may say "
            f"writes.on_replica: refuse, or the file is not yours"
        )
    reason = next((line for line in _lines(file) if line.startswith(LOST)), "")
    return Unavailable(
        f"{db} could not be locked ({reason or os.strerror(error.errno or 0)}): the node's log says why, try again"
    )


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _holder(file: Path) -> str:
    """Who has it, as far as this node knows, in brackets."""
    held = [line.split() for line in _lines(file) if line.startswith("held ")]
    return f" (node {held[0][1]} has it since {held[0][2]})" if held and len(held[0]) > 2 else ""


def _lost(file: Path) -> str:
    """Why the lock is lost; "" while it is not."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        return "the node has stopped" if error.errno in NODE_GONE | NOT_HERE else ""
    lost = next((line for line in lines if line.startswith(LOST)), "")
    return " ".join(lost.split()[3:]) or lost


# -- the command -----------------------------------------------------------------------------------------------------


class _Watch:
    """Looks whether the lock is lost, in a thread of its own: a node that does not answer holds nobody else up."""

    def __init__(self, file: Path, db: str) -> None:
        self.lost = ""
        self._file = file
        self._db = db
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self.lost and not self._over.wait(LOOK_S):
            self.lost = _lost(self._file)
            if self.lost:
                click.echo(f"litereplica: the lock of {self._db} is lost: {self.lost}", err=True)
        self.lost = self.lost or _lost(self._file)

    def end(self) -> str:
        """Look once more; why it is lost, or ""."""
        self._over.set()
        self._thread.join(ANSWER_LIMIT_S)
        return "the node does not answer" if self._thread.is_alive() else self.lost


def _run(arguments: tuple[str, ...], file: Path, db: str, kept: tuple[int, ...]) -> tuple[int, str]:
    """Run the command: its exit code as a shell has it, and why the lock was lost meanwhile, or "".

    ``kept``: descriptors that it inherits. The lock lasts until the last process that has it open is over, so that a
    command whose parent is killed does not go on beside another holder.
    """
    awaited = {*SIGNALS, signal.SIGCHLD}
    # Who started us may have had it ignored: then the kernel would forget how the command ended, and tell nobody.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    try:
        try:
            # There is no other thread yet, and what runs between fork and exec is one system call.
            child = subprocess.Popen(
                arguments,
                pass_fds=kept,
                preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, before),  # noqa: PLW1509
            )
        except OSError as error:
            raise Misconfigured(f"{arguments[0]!r} cannot be run ({error.strerror}): nothing was done") from error
        watch = _Watch(file, db)
        while (code := child.poll()) is None:
            received = signal.sigwaitinfo(awaited)
            if received.si_signo in SIGNALS and received.si_code <= 0:
                # A terminal's Ctrl-C reaches the command by itself; what somebody sent to this process does not.
                child.send_signal(received.si_signo)
        return (code if code >= 0 else SIGNALLED - code), watch.end()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
