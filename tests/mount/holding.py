"""A mount with the program's own session and wait, whose files hold each write until ``release`` is made.

Run as a process: ``python holding.py MOUNT``. What is tested is how many requests may be held at once (mount.wait).
"""

import errno
import stat
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyfuse3
import trio

from litereplica.mount.session import Session
from litereplica.mount.wait import AdaptiveWait

_FREE = "free"
_RELEASE = "release"


class Holding(pyfuse3.Operations):
    """Files ``held-N``, ``free`` and ``release``: their inode numbers are 2 and up."""

    enable_writeback_cache = False

    def __init__(self) -> None:
        super().__init__()
        self.tree = SimpleNamespace(close=lambda: None)
        self._names: list[bytes] = []
        self._released = trio.Event()

    async def getattr(self, inode: int, _ctx: Any = None) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = stat.S_IFDIR | 0o755 if inode == pyfuse3.ROOT_INODE else stat.S_IFREG | 0o644
        entry.st_nlink = 1
        return entry

    async def lookup(self, _parent: int, name: bytes, _ctx: Any = None) -> pyfuse3.EntryAttributes:
        if name not in self._names:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(2 + self._names.index(name))

    async def create(self, _parent: int, name: bytes, *_rest: Any) -> Any:
        self._names.append(name)
        inode = 1 + len(self._names)
        return pyfuse3.FileInfo(fh=cast("Any", inode)), await self.getattr(inode)

    async def setattr(self, inode: int, *_rest: Any) -> pyfuse3.EntryAttributes:
        return await self.getattr(inode)

    async def write(self, fh: int, _offset: int, buf: bytes) -> int:
        name = self._names[fh - 2].decode()
        if name == _RELEASE:
            self._released.set()
        elif name != _FREE:
            await self._released.wait()
        return len(buf)


async def serve(mount: Path) -> None:
    session = Session(cast("Any", Holding()), AdaptiveWait())
    session.open(mount, allow_other=False)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.serve)
            sys.stdout.write("up\n")
            sys.stdout.flush()
            await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
            nursery.cancel_scope.cancel()
    finally:
        session.close()


if __name__ == "__main__":
    trio.run(serve, Path(sys.argv[1]))
