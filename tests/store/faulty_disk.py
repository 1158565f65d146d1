"""The disk's twin with faults: it counts steps, stops after one (kill -9), refuses, and loses what was not durable.

A power loss keeps every directory change up to some point not before the last directory fsync, in order, as a
journalling file system does; of each file it keeps what the last fdatasync covered, and of the rest nothing, all, or
any 4 KiB blocks.
"""

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

from litereplica.store.disk import OPEN_FLAGS, Disk

BLOCK = 4096


class Stopped(BaseException):
    """The process is gone: nothing may catch this and go on."""


class FaultyDisk(Disk):
    __slots__ = (
        "_boot", "_durable", "_graveyard", "_journal", "_paths", "calls", "fail", "grave_number", "room_bytes", "root",
        "steps", "stop_after", "stopped",
    )  # fmt: skip

    def __init__(self, root: Path, graveyard: Path) -> None:
        self.root = root
        self._graveyard = graveyard
        graveyard.mkdir(exist_ok=True)
        self.grave_number = 0
        self._boot = 1
        self.revive()
        self._durable: dict[int, bytes] = {}
        self._journal: list[Callable[[], None]] = []
        self._paths: dict[int, Path] = {}

    def revive(self) -> None:
        """A new process on the same machine."""
        self.steps = 0
        self.stop_after: int | None = None
        self.stopped = False
        self.room_bytes: int | None = None
        # Operation -> (how many calls still succeed, errno).
        self.fail: dict[str, tuple[int, int]] = {}
        self.calls: dict[str, int] = {}

    def _step(self, operation: str) -> None:
        if self.stopped:
            raise Stopped
        self.calls[operation] = self.calls.get(operation, 0) + 1
        self.steps += 1
        if self.stop_after is not None and self.steps > self.stop_after:
            self.stopped = True
            raise Stopped
        if operation in self.fail:
            left, code = self.fail[operation]
            if left <= 0:
                raise OSError(code, os.strerror(code))
            self.fail[operation] = (left - 1, code)

    def _take_room(self, wanted: int) -> int:
        if self.room_bytes is None:
            return wanted
        if wanted and not self.room_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        given = min(wanted, self.room_bytes)
        self.room_bytes -= given
        return given

    # -- files -----------------------------------------------------------------------------------------------------

    def open(self, path: Path, flags: int = OPEN_FLAGS, mode: int = 0o644) -> int:
        made = bool(flags & os.O_CREAT) and not path.exists()
        if made or flags & os.O_TRUNC:
            self._step("open")
        elif self.stopped:
            raise Stopped
        descriptor = super().open(path, flags, mode)
        number = os.fstat(descriptor).st_ino
        self._paths[number] = path
        if made:
            # An inode number may come again: what an older file of that number had is not this one's.
            self._durable[number] = b""
            self._journal.append(lambda: path.unlink(missing_ok=True))
        return descriptor

    def pwrite(self, descriptor: int, data: bytes | memoryview, offset: int) -> int:
        self._step("pwrite")
        size = len(data)
        end = os.fstat(descriptor).st_size
        grown = max(0, offset + size - end)
        given = self._take_room(grown)
        if given < grown:
            # A short write, then the refusal.
            super().pwrite(descriptor, memoryview(data)[: size - grown + given], offset)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().pwrite(descriptor, data, offset)

    def allocate(self, descriptor: int, offset: int, size: int) -> None:
        self._step("allocate")
        grown = max(0, offset + size - os.fstat(descriptor).st_size)
        if self.room_bytes is not None and grown > self.room_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._take_room(grown)
        super().allocate(descriptor, offset, size)

    def truncate(self, descriptor: int, size: int) -> None:
        self._step("truncate")
        super().truncate(descriptor, size)

    def fdatasync(self, descriptor: int) -> None:
        self._step("fdatasync")
        status = os.fstat(descriptor)
        self._durable[status.st_ino] = os.pread(descriptor, status.st_size, 0)

    # -- names -----------------------------------------------------------------------------------------------------

    def _bury(self, path: Path) -> Path:
        self.grave_number += 1
        grave = self._graveyard / str(self.grave_number)
        grave.hardlink_to(path)
        return grave

    def rename(self, source: Path, target: Path) -> None:
        self._step("rename")
        old = self._bury(target) if target.exists() else None
        moved = self._bury(source)
        source.rename(target)

        def undo() -> None:
            target.unlink()
            source.hardlink_to(moved)
            if old is not None:
                target.hardlink_to(old)

        self._journal.append(undo)

    def link(self, source: Path, target: Path) -> None:
        self._step("link")
        super().link(source, target)
        self._journal.append(target.unlink)

    def unlink(self, path: Path) -> None:
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        self._step("unlink")
        grave = self._bury(path)
        path.unlink()
        self._journal.append(lambda: path.hardlink_to(grave))

    def mkdir(self, path: Path) -> None:
        self._step("mkdir")
        super().mkdir(path)
        self._journal.append(path.rmdir)

    def rmdir(self, path: Path) -> None:
        self._step("rmdir")
        super().rmdir(path)
        self._journal.append(path.mkdir)

    def fsync_directory(self, path: Path) -> None:
        self._step("fsync_directory")
        assert path.is_dir()
        self._journal.clear()

    def boot_id(self) -> bytes:
        return self._boot.to_bytes(16, "little")

    # -- power -----------------------------------------------------------------------------------------------------

    def lose_power(self, keep: str, seed: int = 0) -> None:
        """``keep``: what happens to all that was not made durable: "nothing", "everything" or "random"."""
        chance = random.Random(seed)
        undone = {"nothing": len(self._journal), "everything": 0}.get(keep, chance.randint(0, len(self._journal)))
        for undo in reversed(self._journal[len(self._journal) - undone :]):
            undo()
        self._journal.clear()
        for path in self.root.rglob("*"):
            if path.is_file() and keep != "everything":
                durable = self._durable.get(path.stat().st_ino)
                if durable is not None:
                    self._revert(path, durable, keep, chance)
        self._boot += 1
        self.revive()

    def _revert(self, path: Path, durable: bytes, keep: str, chance: random.Random) -> None:
        current = path.read_bytes()
        if current == durable:
            return
        if keep == "nothing":
            left = durable
        else:
            size = chance.choice([len(durable), len(current), chance.randint(*sorted((len(durable), len(current))))])
            pieces = []
            for at in range(0, size, BLOCK):
                source = chance.choice([durable, current])[at : at + BLOCK]
                pieces.append(source.ljust(min(BLOCK, size - at), b"\0")[: size - at])
            left = b"".join(pieces)
        with path.open("r+b") as file:
            file.write(left)
            file.truncate(len(left))
