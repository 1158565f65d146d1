"""Transactions that this node had and its cluster does not: kept in ``diverged/``, listed, exported, dropped.

Knows the layout of an entry (docs/formats.md, "diverged/"). Does not know how the last common position was found,
how an entry comes about (keep.py), or how a database goes back (rewind.py).

An entry counts as whole once its description has its name, which is the last step: everything else is durable by then.
A folder that has segments and no description is a whole log that was set aside (install.py), by this version or an
earlier one.
"""

import contextlib
import json
import os
from array import array
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import structlog

from litereplica.errors import Corrupt, Refused
from litereplica.ltx.decode import RecordSummary, scan_record
from litereplica.ltx.format import U64_LIMIT
from litereplica.ltx.position import Position
from litereplica.sqlite.pages import is_page_size, lock_page
from litereplica.store.database import Database
from litereplica.store.disk import Disk
from litereplica.store.install import new_folder
from litereplica.store.judge import page_checksums
from litereplica.store.page_checksums import xor_of
from litereplica.store.reopen import segment_files
from litereplica.store.scan import FirstBytes, scan
from litereplica.store.segment import INDEX_SUFFIX
from litereplica.store.store import Store, folder_name

log = structlog.get_logger()

FORMAT: Final = 1
ENTRY_NAME: Final = "entry.json"
RECORDS_NAME: Final = "records"
DATABASE_NAME: Final = "database"
CHECKSUMS_NAME: Final = "checksums"
_PARTS: Final = (f"{ENTRY_NAME}.new", RECORDS_NAME, DATABASE_NAME, CHECKSUMS_NAME)
DESCRIPTION_LIMIT_BYTES: Final = 1024 * 1024
TIME_LIMIT_MS: Final = 253_402_300_799_999
"""The end of the year 9999; later ones are seen in damage only, and no calendar has them."""
EXPORT_BYTES: Final = 1024 * 1024
"""Read and compared at a time."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What is kept of one database.

    ``base``: the position after which the records come; ``common``: the cluster has it too (else nothing that this
    node's log still had was common). ``end``: what the node had. ``records``: how many, ``record_bytes`` long.
    ``pages`` of ``page_size`` bytes at the end, 0 when it was dropped; ``whole``: the database file is kept as well.
    ``log_only``: nothing but segments. Times are ms since 1970. ``reason``: why, ``primary``: who did not have it.
    """

    id: str
    database: str
    base: Position
    end: Position
    records: int
    record_bytes: int
    page_size: int
    pages: int
    first_epoch: int
    last_epoch: int
    first_ms: int
    last_ms: int
    node: str = ""
    primary: str = ""
    primary_epoch: int = 0
    kept_ms: int = 0
    reason: str = ""
    common: bool = False
    whole: bool = False
    log_only: bool = False

    def has_all_of(self, other: "Entry") -> bool:
        """Whether the other's transactions are here too, and its database; retention may have trimmed the log since.

        (An earlier version kept the records alone where there was no room for both.)
        """
        has_them = self.ends_like(other) and self.base.txid <= other.base.txid
        return has_them and (self.whole or not other.pages)

    def ends_like(self, other: "Entry") -> bool:
        """Whether both end with the same record: another history may have come to the same position."""
        return (self.database, self.end, self.last_epoch, self.last_ms) == (
            other.database, other.end, other.last_epoch, other.last_ms,
        )  # fmt: skip


def encode_entry(entry: Entry) -> bytes:
    """The description's bytes: JSON, for people too."""
    fields = asdict(entry) | {"base": str(entry.base), "end": str(entry.end), "format": FORMAT}
    del fields["log_only"]
    return (json.dumps(fields, indent=1, ensure_ascii=False) + "\n").encode()


def decode_entry(data: bytes, path: Path) -> Entry:
    """Read a description. Raises Corrupt for damage, Refused for a newer version."""
    damaged = Corrupt(f"{path} is damaged: look at what lies beside it, then move that folder away")
    try:
        fields: dict[str, Any] = json.loads(data)
        if fields.pop("format") != FORMAT:
            raise Refused(f"{path} was written by a newer version: use the newer litereplica")
        fields |= {"base": Position.parse(fields["base"]), "end": Position.parse(fields["end"])}
        entry = Entry(**fields)
    except (ValueError, TypeError, KeyError, AttributeError, Corrupt):
        raise damaged from None
    for name, kind in Entry.__annotations__.items():
        value = getattr(entry, name)
        if type(value) is not kind or (kind is int and not 0 <= value <= U64_LIMIT):
            raise damaged
    if (entry.pages and not is_page_size(entry.page_size)) or max(entry.first_ms, entry.last_ms) > TIME_LIMIT_MS:
        raise damaged
    return replace(entry, id=path.parent.name)


# ---------------------------------------------------------------------------------------------------------- reading
def entries(diverged: Path) -> Iterator[Entry | Corrupt | Refused]:
    """Everything that is kept, by id; in place of an entry that cannot be read, why. Raises OSError.

    Half-kept entries and foreign files are passed over.
    """
    if not diverged.is_dir():
        return
    for folder in sorted(diverged.iterdir()):
        if folder.is_dir():
            try:
                found = read_entry(folder)
            except (Corrupt, Refused) as error:
                yield error
            else:
                if found is not None:
                    yield found


def read_entry(folder: Path) -> Entry | None:
    """One entry; None when nothing in the folder says that it is one.

    Raises Corrupt for a damaged description or log, Refused for one of a newer version, OSError.
    """
    path = folder / ENTRY_NAME
    if path.exists():
        with path.open("rb") as file:
            return decode_entry(file.read(DESCRIPTION_LIMIT_BYTES), path)
    files = segment_files(folder)
    if not files:
        return None
    disk = Disk()
    first = _first_record(disk, files[0][1])
    last, segment_records = _last_record(disk, files[-1][1], files[-1][0])
    if first is None or last is None:
        raise Corrupt(f"the log in {folder} is damaged: look at it, then move that folder away")
    header, end = first.header, last.header
    return Entry(
        folder.name, header.database, Position(header.min_txid - 1, header.pre_checksum),
        Position(end.max_txid, last.trailer.post_checksum), files[-1][0] - files[0][0] + segment_records,
        sum(path.stat().st_size for _, path in files), end.page_size, end.commit, header.epoch, end.epoch,
        min(header.timestamp_ms, TIME_LIMIT_MS), min(end.timestamp_ms, TIME_LIMIT_MS), log_only=True,
    )  # fmt: skip


def _first_record(disk: Disk, path: Path) -> RecordSummary | None:
    descriptor = disk.open(path, os.O_RDONLY)
    try:
        return scan_record(FirstBytes(disk, descriptor), 0)
    except (Corrupt, Refused):
        return None
    finally:
        disk.close(descriptor)


def _last_record(disk: Disk, path: Path, first_txid: int) -> tuple[RecordSummary | None, int]:
    descriptor = disk.open(path, os.O_RDONLY)
    try:
        found = scan(disk, descriptor, first_txid, None)
    except (Corrupt, Refused):
        return None, 0
    finally:
        disk.close(descriptor)
    return found.last, len(found.starts)


def find_entry(diverged: Path, identifier: str) -> Entry:
    """The entry of this id. Raises Refused when there is none, and as ``read_entry`` does."""
    folder = diverged / identifier
    usable = identifier not in {"", ".", ".."} and "/" not in identifier and "\0" not in identifier
    found = read_entry(folder) if usable and folder.is_dir() else None
    if found is None:
        raise Refused(f"there is no entry {identifier!r} in {diverged}: litereplica diverged list shows them")
    return found


def page_checksums_of(folder: Path, entry: Entry) -> "array[int]":
    """The checksum of each page of the kept database; 0 for one that was never written. Raises Corrupt, OSError."""
    data = (folder / CHECKSUMS_NAME).read_bytes()
    table = array("Q")
    if len(data) == 8 * entry.pages:
        table.frombytes(data)
    if len(table) != entry.pages or xor_of(table) != entry.end.checksum:
        raise Corrupt(f"{folder / CHECKSUMS_NAME} is damaged: it does not add up to {entry.end}")
    return table


def export_entry(
    diverged: Path, entry: Entry, target: Path, progress: Callable[[int, int], None] = lambda _, __: None
) -> None:
    """Make ``target`` the database as this node had it, every page compared with its checksum. Blocking.

    ``progress`` is told (pages done, pages in all). Raises Refused (only records are kept, it was dropped, or
    ``target`` is there), Corrupt (then there is no ``target``), OSError.
    """
    if not entry.pages and not entry.log_only:
        raise Refused(f"{entry.database} had been dropped at {entry.end}: there is nothing to export")
    if not entry.whole:
        raise Refused(f"of {entry.id} only the log is kept, which does not make a database: its folder is {diverged}")
    if target.exists():
        raise Refused(f"{target} exists: choose another name, or move it away")
    disk, folder = Disk(), diverged / entry.id
    table = page_checksums_of(folder, entry)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.new")
    source = disk.open(folder / DATABASE_NAME, os.O_RDONLY)
    try:
        copy = disk.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            for done in _export_pages(disk, source, copy, entry, table):
                progress(done, entry.pages)
            disk.fdatasync(copy)
            # Unlike a rename, a link never takes the place of what came meanwhile.
            disk.link(temporary, target)
        except FileExistsError:
            raise Refused(f"{target} exists: choose another name, or move it away") from None
        finally:
            disk.close(copy)
            disk.unlink(temporary)
            disk.fsync_directory(target.parent)
    finally:
        disk.close(source)


def _export_pages(disk: Disk, source: int, target: int, entry: Entry, table: "array[int]") -> Iterator[int]:
    size, locked = entry.page_size, lock_page(entry.page_size)
    step = EXPORT_BYTES // size
    for first in range(1, entry.pages + 1, step):
        count = min(step, entry.pages - first + 1)
        data = disk.pread(source, count * size, (first - 1) * size)
        found = page_checksums(data, first, size, locked)
        if len(data) != count * size or any(
            known and known != each for known, each in zip(table[first - 1 : first - 1 + count], found, strict=True)
        ):
            raise Corrupt(
                f"{entry.id} is damaged: pages {first} to {first + count - 1} are not as they were kept; its records "
                f"may still be whole"
            )
        disk.pwrite(target, data, (first - 1) * size)
        yield first + count - 1


# --------------------------------------------------------------------------------------------------------- removing
def drop_entry(disk: Disk, diverged: Path, entry: Entry) -> None:
    """Remove an entry and nothing else. Raises Refused when something unknown lies in its folder, OSError."""
    folder = diverged / entry.id
    if entry.log_only:
        known = {each.name for _, path in segment_files(folder) for each in (path, path.with_suffix(INDEX_SUFFIX))}
    else:
        known = {ENTRY_NAME, *_PARTS}
    unknown = sorted({each.name for each in folder.iterdir()} - known)
    if unknown:
        raise Refused(f"{folder} holds {unknown[0]!r}, which is not ours: look at it, and move it away")
    if entry.log_only:
        forget_log(disk, folder)
        return
    # The description first: without it the rest is no entry.
    disk.unlink(folder / ENTRY_NAME)
    disk.fsync_directory(folder)
    _remove_parts(disk, folder)


def _remove_parts(disk: Disk, folder: Path) -> None:
    """Remove what makes a half-kept entry; the folder too if nothing else is in it."""
    for name in _PARTS:
        with contextlib.suppress(FileNotFoundError):
            disk.unlink(folder / name)
    if not any(folder.iterdir()):
        disk.rmdir(folder)
    disk.fsync_directory(folder.parent)


def logs_set_aside(store: Store, database: str) -> set[Path]:
    """Folders of logs that were set aside, of one database."""
    start = f"{folder_name(database)}@"
    folders = {each for each in store.diverged.iterdir() if each.name.startswith(start) and each.is_dir()}
    return {each for each in folders if not (each / ENTRY_NAME).exists() and segment_files(each)}


def forget_log(disk: Disk, folder: Path) -> None:
    """Remove a log that was set aside although all of it is elsewhere; the newest first. Raises OSError."""
    for _, path in reversed(segment_files(folder)):
        with contextlib.suppress(FileNotFoundError):
            disk.unlink(path.with_suffix(INDEX_SUFFIX))
        disk.unlink(path)
    if not any(folder.iterdir()):
        disk.rmdir(folder)
    disk.fsync_directory(folder.parent)
    log.info("log_set_aside_removed", path=str(folder), reason="nothing in it is missing in the cluster or in diverged")


def forget_kept_logs(store: Store) -> None:
    """Remove logs that were set aside by installs that something cut short, if an entry has all that was lost of them.

    No install may be under way. Raises OSError.
    """
    found = [each for each in entries(store.diverged) if isinstance(each, Entry)]
    for entry in found:
        kept = next((each for each in found if entry.log_only and _has_lost_part(each, entry)), None)
        if kept is not None:
            make_name_durable(store, kept)
            forget_log(store.disk, store.diverged / entry.id)


def make_name_durable(store: Store, entry: Entry) -> None:
    """Before anything is given up for an entry: who kept it may have failed at that, or been killed. Raises OSError."""
    store.disk.fsync_directory(store.diverged / entry.id)
    store.disk.fsync_directory(store.diverged)


def _has_lost_part(kept: Entry, whole_log: Entry) -> bool:
    """Whether all of a log is either in an entry or common history."""
    return not kept.log_only and kept.ends_like(whole_log) and (kept.common or kept.base.txid <= whole_log.base.txid)


def remove_half_kept(store: Store, database: str) -> None:
    """Remove what crashes have left of entries that were never whole. Raises OSError."""
    start = f"{folder_name(database)}@"
    for folder in sorted(store.diverged.iterdir()):
        if not folder.name.startswith(start) or not folder.is_dir() or (folder / ENTRY_NAME).exists():
            continue
        if {each.name for each in folder.iterdir()} <= set(_PARTS):
            _remove_parts(store.disk, folder)


def new_entry_folder(database: Database) -> Path:
    """A folder for an entry of this database as it is now; its name is the entry's id. Raises OSError."""
    store = database.store
    return new_folder(store.disk, store.diverged, f"{database.directory.name}@{database.position.txid:016x}")
