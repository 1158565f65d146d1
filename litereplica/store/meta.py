"""The small file that says what is certain about one database's files.

Knows its bytes (docs/formats.md, "Data directory"): a msgpack array of eleven, then xxh3_64 of that (8 bytes, LE).
Does not know when it is written.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgpack
import xxhash

from litereplica.errors import Corrupt, Refused
from litereplica.ltx.position import Position
from litereplica.sqlite.pages import is_page_size
from litereplica.store.disk import Disk

META_NAME: Final = "meta"
META_VERSION: Final = 1
NOT_CLEAN: Final = -1
_KINDS: Final = (int, str, *(int,) * 9)


@dataclass(frozen=True, slots=True)
class Meta:
    """``base`` is a position whose pages are all in the database file, durably; redo begins after it.

    ``base_pages``: page count at ``base``. ``file_bytes``: the node stopped cleanly, the database is at ``base`` and
    its file has this size and was last changed at ``file_changed_ns``; nothing needs to be read. NOT_CLEAN otherwise.
    ``installing``: segments in the folder belong to the history that a snapshot has replaced (store.install).
    """

    database: str
    page_size: int
    base: Position
    base_pages: int
    epoch: int
    timestamp_ms: int = 0
    file_bytes: int = NOT_CLEAN
    file_changed_ns: int = 0
    installing: bool = False

    @property
    def clean(self) -> bool:
        """Whether the files are as a clean stop left them."""
        return self.file_bytes != NOT_CLEAN

    def encode(self) -> bytes:
        """Return the file's bytes."""
        body: bytes = msgpack.packb(
            (
                META_VERSION, self.database, self.page_size, self.base.txid, self.base.checksum, self.base_pages,
                self.epoch, self.timestamp_ms, self.file_bytes, self.file_changed_ns, int(self.installing),
            )
        )  # fmt: skip
        return body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")


def decode_meta(data: bytes, path: Path) -> Meta:
    """Read a meta file's bytes. Raises Corrupt for damage, Refused for a newer version."""
    body = data[:-8]
    if len(data) < 8 + 2 or xxhash.xxh3_64_intdigest(body).to_bytes(8, "little") != data[-8:]:
        raise _damaged(path, "its checksum is wrong")
    try:
        fields = msgpack.unpackb(body, max_array_len=64, max_str_len=4096)
    except (ValueError, msgpack.UnpackException) as error:
        raise _damaged(path, str(error)) from None
    if type(fields) is not list or not fields or type(fields[0]) is not int:
        raise _damaged(path, "not the fields that it should have")
    if fields[0] != META_VERSION:
        raise Refused(
            f"{path} was written by a newer version (format {fields[0]}, this one reads {META_VERSION}): "
            f"run the newer litereplica"
        )
    if tuple(map(type, fields)) != _KINDS:
        raise _damaged(path, "not the fields that it should have")
    _, name, page_size, txid, checksum, pages, epoch, timestamp_ms, file_bytes, changed_ns, installing = fields
    if (page_size and not is_page_size(page_size)) or min(txid, checksum, pages, epoch) < 0:
        raise _damaged(path, "a number in it cannot be")
    base = Position(txid, checksum)
    return Meta(name, page_size, base, pages, epoch, timestamp_ms, file_bytes, changed_ns, bool(installing))


def _damaged(path: Path, why: str) -> Corrupt:
    return Corrupt(
        f"{path} is damaged ({why}): restore it from a backup, or move its folder aside and let this node take a "
        f"snapshot"
    )


def meta_missing(directory: Path) -> Corrupt:
    """What is said of a folder with a database's history in it and no meta file: no crash leaves one."""
    return Corrupt(
        f"{directory} holds the log of a database and no {META_NAME} file: restore that from a backup, or move the "
        f"folder and the database's file aside and let this node take a snapshot"
    )


def load_meta(directory: Path) -> Meta:
    """Read a database folder's meta file; raises as decode_meta does."""
    path = directory / META_NAME
    return decode_meta(path.read_bytes(), path)


def save_meta(disk: Disk, directory: Path, meta: Meta) -> None:
    """Replace a database folder's meta file, durably."""
    disk.write_file(directory / META_NAME, meta.encode())
