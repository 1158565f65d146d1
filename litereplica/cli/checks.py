"""What `doctor` looks at: the machine, as far as a node depends on it.

Knows what can be in the way and what a person does about it. Changes nothing, and never waits for a mount that does
not answer: it looks at the kernel's list of mounts first, and touches a mount only in a thread that it can leave
behind.
"""

import errno
import fcntl
import importlib
import os
import resource
import shutil
import socket
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import litereplica
from litereplica.config import Address, ConsulSettings, Settings
from litereplica.errors import Misconfigured, Refused
from litereplica.mount.point import real_point, refuse_link, refuse_together
from litereplica.sqlite.version import WAL_RESET_ADVICE, has_wal_reset_bug, version_number
from litereplica.store.store import FORMAT_LINE, FORMAT_VERSION

# A mount on the same machine answers in well under a millisecond.
MOUNT_ANSWER_S: Final = 2.0
# Below this a log segment and a WAL do not fit, and the first commits would already be refused.
LEAST_FREE_BYTES: Final = 64 * 2**20
# Each database needs up to eight descriptors on a node, each replica and each HTTP client one.
WANTED_DESCRIPTORS: Final = 4096
LEAST_DESCRIPTORS: Final = 256
LONGEST_FORMAT_BYTES: Final = 200


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. ``advice`` says what to do, and is empty when nothing is to be done."""

    name: str
    state: Literal["ok", "warning", "failed"]
    found: str
    advice: str = ""


def check_machine() -> Iterator[Check]:
    """Look at what does not depend on a configuration."""
    yield _fuse_device()
    yield _fusermount()
    yield _pyfuse3()
    yield _sqlite(sqlite3.sqlite_version_info)
    yield _clock()
    yield _descriptors()


def check_settings(settings: Settings) -> Iterator[Check]:
    """Look at the directories and ports of a configuration."""
    yield _mount(settings.mount.dir, settings.data.dir)
    yield from _data(settings.data.dir, settings.data.retention.size_bytes)
    yield _port("http port", "http.listen", settings.http.listen)
    yield _port("replication port", "replication.listen", settings.replication.listen)
    if settings.proxy.listen is not None:
        yield _port("proxy port", "proxy.listen", settings.proxy.listen)
    if settings.lease.type == "consul":
        yield _consul(settings.lease.consul)


# ------------------------------------------------------------------------------------------------------ the machine
def _fuse_device(path: str = "/dev/fuse") -> Check:
    name = "fuse device"
    try:
        if not stat.S_ISCHR(Path(path).stat().st_mode):
            return Check(name, "failed", f"{path} is not a device", "remove it and run 'modprobe fuse'")
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        advice = "run 'modprobe fuse', or start the container with --device /dev/fuse --cap-add SYS_ADMIN"
        return Check(name, "failed", f"no {path}", advice)
    except OSError as error:
        advice = "run as root, or give the container --device /dev/fuse --cap-add SYS_ADMIN"
        return Check(name, "failed", f"{path} cannot be opened ({error.strerror})", advice)
    return Check(name, "ok", path)


def _fusermount() -> Check:
    found = shutil.which("fusermount3")
    if found is None:
        return Check("fusermount3", "failed", "not found", "run 'apt-get install fuse3'")
    if os.geteuid() != 0 and not Path(found).stat().st_mode & stat.S_ISUID:
        return Check("fusermount3", "failed", f"{found} is not set-uid", "run as root, or reinstall the package fuse3")
    return Check("fusermount3", "ok", found)


def _pyfuse3() -> Check:
    try:
        # By name: only mount/ may depend on it, and here it is only asked whether it loads.
        module = importlib.import_module("pyfuse3")
    except ImportError as error:
        return Check("pyfuse3", "failed", f"does not load ({error})", "run scripts/setup, and 'apt-get install fuse3'")
    return Check("pyfuse3", "ok", str(module.__version__))


def _sqlite(version: tuple[int, ...]) -> Check:
    text = ".".join(str(part) for part in version[:3])
    if has_wal_reset_bug(version_number(version)):
        advice = f"{WAL_RESET_ADVICE}, above all in your application, which may bring its own"
        return Check("SQLite", "warning", text, advice)
    return Check("SQLite", "ok", text)


def _clock() -> Check:
    now = time.time()
    installed = Path(litereplica.__file__).stat().st_mtime
    shown = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    if now < installed - 1:
        advice = "set it, and keep it right with NTP: records carry its time, and retention goes by it"
        return Check("clock", "failed", f"{shown} is before this program was installed", advice)
    return Check("clock", "ok", shown)


def _descriptors() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    shown = "unlimited" if soft == unlimited else str(soft)
    advice = "run 'ulimit -n 65536' before the start, or set LimitNOFILE=65536 in the service"
    if soft != unlimited and soft < LEAST_DESCRIPTORS:
        return Check("open files", "failed", f"at most {shown} (hard limit {hard})", advice)
    if soft != unlimited and soft < WANTED_DESCRIPTORS:
        return Check("open files", "warning", f"at most {shown}, enough for some {soft // 10} databases", advice)
    return Check("open files", "ok", f"at most {shown}")


# ------------------------------------------------------------------------------------------------------ directories
def mounted_type(directory: Path, mounts: str) -> str | None:
    """File system type of what is mounted at a directory, from the text of /proc/self/mountinfo; None if nothing is."""
    found = None
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) > 4 and _unescaped(fields[4]) == str(directory):
            found = after.split(" ")[0]  # the last one is on top
    return found


def _unescaped(field: str) -> str:
    """Mount points have blanks, tabs, newlines and backslashes as octal (proc(5))."""
    for character in " \t\n\\":
        field = field.replace(f"\\{ord(character):03o}", character)
    return field


def _mount(directory: Path, data: Path) -> Check:
    name = "mount point"
    directory = real_point(directory)
    kind = mounted_type(directory, Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace"))
    if kind is not None and kind.startswith("fuse"):
        # Not stat(): the kernel answers that from what it remembers of a dead daemon.
        state = _in_time(lambda: os.statvfs(directory))
        if isinstance(state, OSError) and state.errno == errno.ENOTCONN:
            # `run` cleans up after a dead daemon itself, so nothing is in the way.
            return Check(name, "warning", f"{directory} is left over from a dead node", "the next 'run' unmounts it")
        silent = " that does not answer" if state is None else ""
        advice = f"stop the node that is running there, or run 'fusermount3 -u {directory}'"
        return Check(name, "failed", f"{directory} is in use by a mount{silent}", advice)
    try:
        refuse_link(directory)
        refuse_together(directory, data)
        entries = next(iter(os.scandir(directory)), None)
    except Refused as refused:
        found, _, advice = refused.message.removeprefix(f"{name} ").partition(": ")
        return Check(name, "failed", found, advice)
    except FileNotFoundError:
        return Check(name, "failed", f"{directory} does not exist", f"run 'mkdir -p {directory}', or set mount.dir")
    except NotADirectoryError:
        return Check(name, "failed", f"{directory} is not a directory", "set mount.dir to an empty directory")
    except OSError as error:
        advice = "run as a user who may use it, or set mount.dir"
        return Check(name, "failed", f"{directory} cannot be read ({error.strerror})", advice)
    if entries is not None:
        advice = "move its content away (databases go in again through the mount), or set mount.dir to an empty one"
        return Check(name, "failed", f"{directory} is not empty (it has '{entries.name}')", advice)
    return Check(name, "ok", f"{directory} is empty")


def _in_time(look: Callable[[], object]) -> object:
    """Return what ``look`` returns, or the OSError that it raises; None when it takes longer than a mount may."""
    answer: list[object] = []

    def ask() -> None:
        try:
            answer.append(look())
        except OSError as error:
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(MOUNT_ANSWER_S)
    return answer[0] if answer else None


def _data(directory: Path, retention_bytes: int) -> Iterator[Check]:
    try:
        existing = next(path for path in (directory, *directory.parents) if path.exists())
    except OSError as error:
        advice = "run as the user of the node, or set data.dir"
        yield Check("data directory", "failed", f"{directory} cannot be looked at ({error.strerror})", advice)
        return
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        what = "cannot be written to" if existing.is_dir() else "is not a directory"
        yield Check(
            "data directory", "failed", f"{existing} {what}", "run as a user who may write there, or set data.dir"
        )
        return
    yield _lock(directory)
    yield _format(directory)
    free = shutil.disk_usage(existing).free
    shown = f"{free // 2**20} MiB free"
    advice = "make room, or set data.dir to a larger disk"
    if free < LEAST_FREE_BYTES:
        yield Check("disk", "failed", shown, advice)
    elif free < retention_bytes:
        wanted = f"less than data.retention.size ({retention_bytes // 2**20} MiB) for even one database"
        yield Check("disk", "warning", f"{shown}, {wanted}", f"{advice}, or lower data.retention.size")
    else:
        yield Check("disk", "ok", shown)


def _lock(directory: Path) -> Check:
    name = "data directory"
    lock = directory / "lock"
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return Check(name, "ok", f"{directory} {'is free' if directory.exists() else 'will be made'}")
    except OSError as error:
        advice = "run as the user of the node, or set data.dir"
        return Check(name, "failed", f"{lock} cannot be opened ({error.strerror})", advice)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 64, 0).decode("ascii", "replace").strip() or "another process"
        return Check(name, "failed", f"{directory} is in use by {owner}", "stop that node, or set another data.dir")
    finally:
        os.close(descriptor)
    return Check(name, "ok", f"{directory} is free")


def _format(directory: Path) -> Check:
    name = "data format"
    path = directory / "format"
    try:
        with path.open("rb") as file:
            text = file.read(LONGEST_FORMAT_BYTES).decode("utf-8", "replace").strip()
    except FileNotFoundError:
        if any((directory / inner).exists() for inner in ("db", "files")):
            advice = "restore the file, or set data.dir to an empty directory"
            return Check(name, "failed", f"{path} is missing", advice)
        return Check(name, "ok", f"nothing yet; this version writes format {FORMAT_VERSION}")
    except OSError as error:
        return Check(name, "failed", f"{path} cannot be read ({error.strerror})", "run as the user of the node")
    number = text.removeprefix(FORMAT_LINE)
    if number == text or not number.isascii() or not number.isdigit():
        return Check(name, "failed", f"{path} is damaged", "restore the file, or set data.dir to an empty directory")
    if int(number) > FORMAT_VERSION:
        return Check(
            name, "failed", f"format {number} is newer than this version's {FORMAT_VERSION}", "update litereplica"
        )
    return Check(name, "ok", f"format {number}")


# ----------------------------------------------------------------------------------------------------------- Consul
def _consul(settings: ConsulSettings) -> Check:
    """Look whether at least one agent does what a node needs. A warning when others do not."""
    # Only here: python-consul2 takes most of a second to import.
    from litereplica.lease.consul import ConsulOptions  # noqa: PLC0415
    from litereplica.lease.consul_probe import probe  # noqa: PLC0415

    try:
        found = probe(ConsulOptions.of(settings))
    except Misconfigured as error:
        return Check("Consul", "failed", error.message, "correct lease.consul.tls")
    wrong = [message for message in found.values() if message]
    if not wrong:
        return Check("Consul", "ok", f"{', '.join(found)}: the token may write '{settings.key}'")
    advice = "start Consul's agent, or correct lease.consul"
    if len(wrong) == len(found):
        return Check("Consul", "failed", wrong[0], advice)
    return Check("Consul", "warning", f"{len(wrong)} of {len(found)} agents: {wrong[0]}", advice)


# ------------------------------------------------------------------------------------------------------------ ports
def _port(name: str, key: str, address: Address) -> Check:
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        return Check(name, "failed", f"{address.host} is not known ({error.strerror})", f"correct {key}")
    family, kind, protocol, _, place = found[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as the node does, so that TIME_WAIT is no obstacle
        try:
            probe.bind(place)
        except OSError as error:
            return Check(name, "failed", f"{address}: {os.strerror(error.errno or 0)}", _port_advice(key, error))
    return Check(name, "ok", f"{address} is free")


def _port_advice(key: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"stop what listens there (see 'ss -ltnp'), or set {key} to another port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"no interface of this machine has that address; correct {key}"
    return f"correct {key}, or run as a user who may listen there"
