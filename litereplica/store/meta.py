"""The small file that says what is certain about one database's files.

Knows its bytes: msgpack array [format version, database, page size, base TXID, base checksum, pages at base, epoch,
clean TXID, clean checksum, file size at the clean stop], then xxh3_64 of that (8 bytes, LE). Does not know when it is
written.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgpack
import xxhash

from litereplica.errors import Corrupt, Refused
from litereplica.ltx.position import Position
from litereplica.store.disk import Disk

META_NAME: Final = "meta"
META_VERSION: Final = 1
_FIELDS: Final = 10


@dataclass(frozen=True, slots=True)
class Meta:
    """``base`` is a position whose pages are all in the database file, durably; redo begins after it.

    ``clean`` is the last position when the node stopped cleanly: the file has exactly ``file_bytes`` and all pages.
    """

    database: str
    page_size: int
    base: Position
    base_pages: int
    epoch: int
    clean: Position | None = None
    file_bytes: int = 0

    def encode(self) -> bytes:
        clean = self.clean or Position.ZERO
        body = msgpack.packb(
            (META_VERSION, self.database, self.page_size, self.base.txid, self.base.checksum, self.base_pages,
             self.epoch, clean.txid, clean.checksum, self.file_bytes if self.clean else -1)
        )
        assert isinstance(body, bytes)
        return body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")

    def dirty(self) -> "Meta":
        return replace(self, clean=None, file_bytes=0)


def decode_meta(data: bytes, path: Path) -> Meta:
    """Raises Corrupt for damaged bytes, Refused for a newer version."""
    advice = f"restore {path} from a backup, or move its folder aside and let this node take a snapshot"
    body = data[:-8]
    if len(data) < 8 + 2 or xxhash.xxh3_64_intdigest(body).to_bytes(8, "little") != data[-8:]:
        message = f"{path} is damaged (its checksum is wrong); {advice}"
        raise Corrupt(message)
    try:
        fields = msgpack.unpackb(body, max_array_len=64, max_str_len=4096)
    except (ValueError, msgpack.UnpackException) as error:
        message = f"{path} is damaged ({error}); {advice}"
        raise Corrupt(message) from None
    if not isinstance(fields, list) or not fields or not isinstance(fields[0], int):
        message = f"{path} is damaged (not the fields that it should have); {advice}"
        raise Corrupt(message)
    if fields[0] != META_VERSION:
        message = f"{path} was written by a newer version (format {fields[0]}, this one reads {META_VERSION}): run the newer litereplica"
        raise Refused(message)
    kinds = (int, str, *(int,) * 8)
    if len(fields) != _FIELDS or not all(isinstance(field, kind) for field, kind in zip(fields, kinds, strict=True)):
        message = f"{path} is damaged (not the fields that it should have); {advice}"
        raise Corrupt(message)
    _, name, page_size, txid, checksum, pages, epoch, clean_txid, clean_checksum, file_bytes = fields
    clean = Position(clean_txid, clean_checksum) if file_bytes >= 0 else None
    return Meta(name, page_size, Position(txid, checksum), pages, epoch, clean, max(file_bytes, 0))


def load_meta(directory: Path) -> Meta:
    path = directory / META_NAME
    return decode_meta(path.read_bytes(), path)


def save_meta(disk: Disk, directory: Path, meta: Meta) -> None:
    disk.write_file(directory / META_NAME, meta.encode())
