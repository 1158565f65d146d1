"""What real SQLite writes to a WAL, recorded through a VFS shim, without a mount."""

from pathlib import Path
from typing import Any

import apsw

# What happened (a write or a truncation), its offset or the new size, the bytes of a write.
Recorded = tuple[str, int, bytes]


class _File(apsw.VFSFile):
    def __init__(self, vfs: str, name: Any, flags: list[int], log: list[Recorded] | None) -> None:
        self._log = log
        super().__init__(vfs, name, flags)

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802
        if self._log is not None:
            self._log.append(("write", offset, bytes(data)))
        super().xWrite(data, offset)

    def xTruncate(self, size: int) -> None:  # noqa: N802
        if self._log is not None:
            self._log.append(("truncate", size, b""))
        super().xTruncate(size)


class Recorder(apsw.VFS):
    """A VFS that keeps the writes to every file whose name ends in ``-wal``."""

    def __init__(self, name: str) -> None:
        self.log: list[Recorded] = []
        super().__init__(name, "")

    def xOpen(self, name: Any, flags: list[int]) -> _File:  # noqa: N802
        text = name.filename() if isinstance(name, apsw.URIFilename) else name
        return _File("", name, flags, self.log if text and text.endswith("-wal") else None)


def open_recorded(path: Path, recorder: Recorder, vfs: str, page_size: int) -> apsw.Connection:
    connection = apsw.Connection(str(path), vfs=vfs)
    connection.execute(f"PRAGMA page_size={page_size}; PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL")
    return connection
