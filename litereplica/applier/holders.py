"""Who holds a lock that somebody waits for, in words for people.

Knows how to ask the kernel for the process and its name. Does not wait, and takes no lock.
"""

import os
from pathlib import Path
from typing import Final

from litereplica.applier import locks
from litereplica.sqlite.shm import WRITE_LOCK

UNKNOWN: Final = "an unknown process"
"""It is gone by now, of another PID namespace, or holds an OFD lock."""

_DATABASE_LOCKS: Final = (
    (locks.RESERVED_BYTE_OFFSET, 1),
    (locks.PENDING_BYTE_OFFSET, 1),
    (locks.SHARED_BYTES_OFFSET, locks.SHARED_BYTES),
)


def write_lock_holder(shm: int) -> str:
    """Return who keeps others from writing in WAL mode; ``shm`` is a descriptor of the -shm."""
    return _name(locks.holder(shm, WRITE_LOCK))


def user(file: int) -> str:
    """Return who uses the database file behind ``file`` in any way."""
    return _first(file, shared=False)


def writer(path: str) -> str:
    """Return who keeps others from writing to the database at ``path``, in whatever mode it is.

    To be called while this process has no connection to it, whose locks the closes here would drop.
    """
    for name, find in ((f"{path}-shm", write_lock_holder), (path, _writer_of_file)):
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            found = find(descriptor)
        finally:
            locks.close(descriptor)
        if found != UNKNOWN:
            return found
    return UNKNOWN


def _writer_of_file(file: int) -> str:
    if (pid := locks.holder(file, locks.RESERVED_BYTE_OFFSET)) is not None:
        return _name(pid)
    return _first(file, shared=True)


def _first(file: int, *, shared: bool) -> str:
    for offset, length in _DATABASE_LOCKS:
        if (pid := locks.holder(file, offset, length, shared=shared)) is not None:
            return _name(pid)
    return UNKNOWN


def _name(pid: int | None) -> str:
    if not pid:
        return UNKNOWN
    try:
        command = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return f"process {pid}"
    return f"process {pid} ({command})"
