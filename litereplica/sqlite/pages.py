"""The database file's own header and its page numbers.

Knows the 100-byte database header (SQLite file-format document, section 1.3) and which page is the lock page (1.5.1).
Does not know what is in any other page, nor whether the header tells the truth about the file around it.
"""

import struct
from dataclasses import dataclass

from litereplica.errors import Corrupt

DATABASE_MAGIC = b"SQLite format 3\x00"
DATABASE_HEADER_BYTES = 100
SMALLEST_PAGE = 512
LARGEST_PAGE = 65536

# The pager never stores data on the page that holds this byte: SQLite's own locks are byte ranges from here on.
LOCK_BYTE = 0x40000000

# Where page 1 has its write and read version, and both of them in each mode.
VERSIONS = slice(18, 20)
ROLLBACK_VERSIONS = b"\x01\x01"
WAL_VERSIONS = b"\x02\x02"

_ROLLBACK_VERSION = 1
_WAL_VERSION = 2
_HEADER = struct.Struct(">16sHBBBBBB12I20xII")
_TEXT_ENCODINGS = {0: "", 1: "UTF-8", 2: "UTF-16le", 3: "UTF-16be"}


@dataclass(frozen=True, slots=True)
class DatabaseHeader:
    """What the first 100 bytes of a database file say; sizes in bytes and pages.

    ``page_count`` is the header's own field: it is only valid when ``change_counter == version_valid_for``.
    ``text_encoding`` is ``""`` until the first table is made. ``sqlite_version`` is the library that wrote last
    (3040001 for 3.40.1).
    """

    page_size: int
    write_version: int
    read_version: int
    change_counter: int
    page_count: int
    version_valid_for: int
    text_encoding: str
    sqlite_version: int

    @property
    def wal(self) -> bool:
        """Whether the database is in WAL mode (both format versions are 2)."""
        return self.write_version == _WAL_VERSION and self.read_version == _WAL_VERSION

    @property
    def rollback(self) -> bool:
        """Whether the database is in one of the rollback-journal modes (both format versions are 1)."""
        return self.write_version == _ROLLBACK_VERSION and self.read_version == _ROLLBACK_VERSION


def is_page_size(size: int) -> bool:
    """Whether ``size`` (bytes) is a page size that SQLite can use: a power of two, 512 to 65536."""
    return SMALLEST_PAGE <= size <= LARGEST_PAGE and size & (size - 1) == 0


def is_database(first_bytes: bytes) -> bool:
    """Whether a file that starts with these bytes (16 or more) is a SQLite database."""
    return first_bytes[:16] == DATABASE_MAGIC


def lock_page(page_size: int) -> int:
    """Return the number of the page that is never used because the lock bytes lie in it."""
    return LOCK_BYTE // page_size + 1


def schema_cookie(first_page: bytes | memoryview) -> int:
    """Return the number of the schema in page 1 (file format, 1.3.9), by which connections know that theirs is old."""
    return int.from_bytes(first_page[40:44], "big")


def parse_database_header(first100: bytes) -> DatabaseHeader:
    """Read the first 100 bytes of a database file; ``Corrupt`` when they are no database header."""
    if len(first100) < DATABASE_HEADER_BYTES:
        raise Corrupt(f"database header needs {DATABASE_HEADER_BYTES} bytes, only {len(first100)} are there")
    if not is_database(first100):
        raise Corrupt("the file does not start as a SQLite database does")
    (
        _magic,
        page_size,
        write_version,
        read_version,
        _reserved,
        largest_fraction,
        smallest_fraction,
        leaf_fraction,
        change_counter,
        page_count,
        *rest,
    ) = _HEADER.unpack_from(first100)
    # 65536 does not fit in the two bytes and is stored as 1.
    page_size = LARGEST_PAGE if page_size == 1 else page_size
    if not is_page_size(page_size):
        raise Corrupt(f"database header names the page size {page_size}, which SQLite cannot have")
    if (largest_fraction, smallest_fraction, leaf_fraction) != (64, 32, 32):
        raise Corrupt("database header has payload fractions other than 64, 32, 32")
    encoding = rest[6]
    if encoding not in _TEXT_ENCODINGS:
        raise Corrupt(f"database header names the text encoding {encoding}, known are 1, 2 and 3")
    return DatabaseHeader(
        page_size=page_size,
        write_version=write_version,
        read_version=read_version,
        change_counter=change_counter,
        page_count=page_count,
        version_valid_for=rest[-2],
        text_encoding=_TEXT_ENCODINGS[encoding],
        sqlite_version=rest[-1],
    )


def stored_page_count(header: DatabaseHeader, file_bytes: int) -> int:
    """Return the size of the database in pages, as SQLite finds it in a file of ``file_bytes`` (btree.c, lockBtree).

    Raises ``Corrupt`` when the file is shorter than its header says.
    """
    in_file = file_bytes // header.page_size
    if header.page_count == 0 or header.change_counter != header.version_valid_for:
        return in_file
    if header.page_count > in_file:
        raise Corrupt(f"the database header names {header.page_count} pages, the file has {in_file}")
    return header.page_count
