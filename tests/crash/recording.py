"""The disk's twin that writes down every change of the data directory, in order.

Knows which system call changes what, and that stores to a mapping pass no call: they are found by comparing, before
each step. Does not know what a crash would leave of it (tests.crash.model).

A step is a msgpack array, its first element the kind. Paths are relative to the data directory, files have numbers:

    start BOOT [[path, file, xxh3 of its bytes, mtime]…] [directory…]   a process begins
    create PATH FILE MTIME · write FILE OFFSET BYTES MTIME · zero FILE OFFSET COUNT MTIME
    truncate FILE SIZE MTIME · allocate FILE SIZE MTIME · stores FILE [[offset, 8 bytes]…]
    rename OLD NEW · link OLD NEW · unlink PATH · mkdir PATH · rmdir PATH
    sync TOKEN FILE · synced TOKEN · dirsync TOKEN PATH · dirsynced TOKEN
    content PATH BYTES MTIME                                           SQLite itself has settled this file at a start
    mapped PATH BYTES                                                  the page checksums as a process finds them
    die                                                                the process is killed here

and what applications append to the same file (tests.crash.program): ``ack``, ``note``.
"""

import contextlib
import errno
import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgpack
import numpy as np
import xxhash

from litereplica.store.disk import OPEN_FLAGS, Disk

Step = list[Any]
ENTRY_BYTES: Final = 8
KILLED: Final = 137
SINGLE_STORES: Final = 12


class Trace:
    """A file that several processes append steps to, each in one write."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def __call__(self, step: Step) -> None:
        data = msgpack.packb(step, use_bin_type=True)
        assert os.write(self._descriptor, data) == len(data)

    def close(self) -> None:
        os.close(self._descriptor)


def load_trace(path: Path) -> list[Step]:
    with path.open("rb") as file:
        return list(msgpack.Unpacker(file, max_buffer_size=1 << 30, strict_map_key=False))


class _Watched:
    """A mapping of the program, and the bytes that were last written down."""

    def __init__(self, number: int, descriptor: int, size: int) -> None:
        self.number = number
        self.map = mmap.mmap(descriptor, size, prot=mmap.PROT_READ)
        self.seen = self.map[:]

    def changes(self) -> list[tuple[int, bytes]]:
        now = self.map[:]
        if now == self.seen:
            return []
        whole = len(now) - len(now) % ENTRY_BYTES
        differ = np.frombuffer(now[:whole], np.uint64) != np.frombuffer(self.seen[:whole], np.uint64)
        found = [int(at) * ENTRY_BYTES for at in np.flatnonzero(differ)]
        self.seen = now
        return [(at, now[at : at + ENTRY_BYTES]) for at in found]


class RecordingDisk(Disk):
    """Does what Disk does, and tells ``record`` each step after it was done (for a sync: before and after).

    ``die_after``: the process ends, as by kill -9, once so many steps were recorded. ``refuse_every``: one in so many
    writes that make a segment or a file of the mount longer finds the disk full after half of it.
    """

    __slots__ = (
        "_boot", "_die_after", "_files", "_lock", "_numbers", "_record", "_refusable", "_root",
        "_steps", "_token", "_unlinked", "_watched", "_writes", "refuse_every",
    )  # fmt: skip

    def __init__(
        self,
        root: Path,
        record: Callable[[Step], None],
        *,
        boot: bytes | None = None,
        die_after: int | None = None,
    ) -> None:
        self._root = root
        self._record = record
        self._boot = boot
        self._die_after = die_after
        self.refuse_every: int | None = None
        self._steps = self._writes = 0
        # Of the millions of beginnings no two processes of a trace take the same.
        self._token = (1 + int.from_bytes(os.urandom(3), "little")) << 36
        self._lock = threading.RLock()
        # Descriptor -> number of the file; inode -> number. A number is never used twice in a trace.
        self._files: dict[int, int] = {}
        self._numbers: dict[int, int] = {}
        self._watched: dict[int, _Watched] = {}
        self._refusable: set[int | None] = set()
        self._unlinked: set[str] = set()
        self._begin()

    def _begin(self) -> None:
        files, directories = [], []
        for path in sorted(self._root.rglob("*")):
            name = str(path.relative_to(self._root))
            if path.is_dir():
                directories.append(name)
            elif name != "lock":
                status = path.stat()
                number = self._numbers.setdefault(status.st_ino, self._next_number())
                if path.name == "checksums":
                    self._record(["mapped", name, path.read_bytes()])
                digest = xxhash.xxh3_64_intdigest(path.read_bytes())
                files.append([name, number, digest, status.st_mtime_ns])
        self._record(["start", self.boot_id(), files, directories])

    def _next_number(self) -> int:
        self._token += 1
        return self._token

    def _note(self, *step: Any) -> None:
        """Write a step down; ``_lock`` is held."""
        self._note_stores()
        self._record(list(step))
        self._steps += 1
        if self._die_after is not None and self._steps >= self._die_after:
            self._record(["die"])
            os._exit(KILLED)

    def _note_stores(self) -> None:
        for watched in self._watched.values():
            found = watched.changes()
            # A process can be killed between two stores; many of them are one step all the same.
            for each in [found] if len(found) > SINGLE_STORES else [[one] for one in found]:
                if each:
                    self._record(["stores", watched.number, each])

    def _name(self, path: Path) -> str | None:
        with contextlib.suppress(ValueError):
            return str(path.relative_to(self._root))
        return None

    def boot_id(self) -> bytes:
        return self._boot if self._boot is not None else super().boot_id()

    def note_foreign(self, before: set[str], is_known: Callable[[str], bool]) -> None:
        """After a start: what SQLite itself did to database files that no log knows (store.foreign).

        ``before``: the names in ``files`` before the start; ``is_known``: a log knows this name.
        """
        files = self._root / "files"
        with self._lock:
            for name in sorted(before):
                path = files / name
                if not path.exists():
                    if self._gone_unseen(name):
                        self._note("unlink", f"files/{name}")
                elif path.is_file() and not is_known(name):
                    self._note("content", f"files/{name}", path.read_bytes(), path.stat().st_mtime_ns)

    def _gone_unseen(self, name: str) -> bool:
        return f"files/{name}" not in self._unlinked

    # -- files -----------------------------------------------------------------------------------------------------

    def open(self, path: Path, flags: int = OPEN_FLAGS, mode: int = 0o644) -> int:
        name = self._name(path)
        with self._lock:
            self._note_stores()
            is_new = bool(flags & os.O_CREAT) and not path.exists()
            descriptor = super().open(path, flags, mode)
            if name is None:
                return descriptor
            status = os.fstat(descriptor)
            if is_new:
                number = self._numbers[status.st_ino] = self._next_number()
                self._note("create", name, number, status.st_mtime_ns)
            else:
                assert status.st_ino in self._numbers, f"{name} was made behind the disk's back"
                number = self._numbers[status.st_ino]
                if flags & os.O_TRUNC:
                    self._note("truncate", number, 0, status.st_mtime_ns)
            self._files[descriptor] = number
            if name.startswith("files/") or name.endswith(".ltx"):
                self._refusable.add(number)
            return descriptor

    def close(self, descriptor: int) -> None:
        with self._lock:
            self._files.pop(descriptor, None)
            super().close(descriptor)

    def pwrite(self, descriptor: int, data: bytes | memoryview, offset: int) -> int:
        with self._lock:
            self._note_stores()
            number = self._files.get(descriptor)
            if number in self._refusable and self._is_refused(descriptor, offset + len(data)):
                self._write_down(descriptor, number, bytes(data)[: len(data) // 2], offset)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self._write_down(descriptor, number, data, offset)

    def _write_down(self, descriptor: int, number: int | None, data: bytes | memoryview, offset: int) -> int:
        done = super().pwrite(descriptor, data, offset)
        if number is not None:
            whole = bytes(data)
            changed = os.fstat(descriptor).st_mtime_ns
            if len(whole) > 64 and whole.count(0) == len(whole):
                self._note("zero", number, offset, len(whole), changed)
            else:
                self._note("write", number, offset, whole, changed)
        return done

    def _is_refused(self, descriptor: int, end: int) -> bool:
        if self.refuse_every is None or end <= os.fstat(descriptor).st_size:
            return False
        self._writes += 1
        return self._writes % self.refuse_every == 0

    def allocate(self, descriptor: int, offset: int, size: int) -> None:
        with self._lock:
            self._note_stores()
            super().allocate(descriptor, offset, size)
            number = self._files.get(descriptor)
            if number is not None:
                status = os.fstat(descriptor)
                self._note("allocate", number, status.st_size, status.st_mtime_ns)

    def map(self, descriptor: int, size: int) -> mmap.mmap:
        with self._lock:
            self._note_stores()
            found = super().map(descriptor, size)
            number = self._files.get(descriptor)
            if number is not None:
                self._watched[number] = _Watched(number, descriptor, size)
            return found

    def truncate(self, descriptor: int, size: int) -> None:
        with self._lock:
            self._note_stores()
            super().truncate(descriptor, size)
            number = self._files.get(descriptor)
            if number is not None:
                self._note("truncate", number, size, os.fstat(descriptor).st_mtime_ns)

    def fdatasync(self, descriptor: int) -> None:
        with self._lock:
            number = self._files.get(descriptor)
            token = self._next_number()
            if number is not None:
                self._note("sync", token, number)
        super().fdatasync(descriptor)
        with self._lock:
            if number is not None:
                self._note("synced", token)

    # -- names -----------------------------------------------------------------------------------------------------

    def rename(self, source: Path, target: Path) -> None:
        self._change(lambda: super(RecordingDisk, self).rename(source, target), "rename", source, target)

    def link(self, source: Path, target: Path) -> None:
        self._change(lambda: super(RecordingDisk, self).link(source, target), "link", source, target)

    def unlink(self, path: Path) -> None:
        self._change(lambda: super(RecordingDisk, self).unlink(path), "unlink", path)

    def mkdir(self, path: Path) -> None:
        self._change(lambda: super(RecordingDisk, self).mkdir(path), "mkdir", path)

    def rmdir(self, path: Path) -> None:
        self._change(lambda: super(RecordingDisk, self).rmdir(path), "rmdir", path)

    def _change(self, call: Callable[[], None], kind: str, *paths: Path) -> None:
        with self._lock:
            self._note_stores()
            call()
            names = [self._name(path) for path in paths]
            if kind == "unlink":
                self._unlinked.add(str(names[0]))
            if names[0] not in (None, "."):
                self._note(kind, *names)

    def fsync_directory(self, path: Path) -> None:
        name = self._name(path)
        with self._lock:
            token = self._next_number()
            if name is not None:
                self._note("dirsync", token, name)
        super().fsync_directory(path)
        with self._lock:
            if name is not None:
                self._note("dirsynced", token)
