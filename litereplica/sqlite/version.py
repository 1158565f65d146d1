"""What the library that wrote a database, and the first bytes of a file, mean for replicating it.

Knows the versions of SQLite with the WAL-reset bug, and which files only look like databases. Pure decisions: whoever
asks reads the bytes, refuses and logs. Nothing that is refused here is ever deleted or changed.
"""

from typing import Final

from litereplica.sqlite.pages import DATABASE_MAGIC, is_page_size

VERSION_OFFSET: Final = 96
"""In page 1: the number of the library that wrote last, four bytes big-endian (file format, 1.3.14)."""

_BUGGY_FROM: Final = 3_007_000
_BUGGY_TO: Final = 3_051_002
_REPAIRED: Final = frozenset({3_044_006, 3_050_007})

WAL_RESET_ADVICE: Final = (
    "its WAL-reset bug can damage a database in rare races of checkpoints; use 3.51.3 or newer (or 3.50.7, 3.44.6)"
)

_ROLLBACK: Final = 1
_WAL: Final = 2
_WAL2: Final = 3
_HEADER_BYTES: Final = 100
_SMALLEST_FRACTIONS: Final = bytes((64, 32, 32))


def has_wal_reset_bug(version: int) -> bool:
    """Whether a library (3040001 is 3.40.1) can lose frames when a WAL begins again (https://sqlite.org/wal.html).

    False for 0: a database that was written before 3.7.0, or by no SQLite at all, does not say.
    """
    return _BUGGY_FROM <= version <= _BUGGY_TO and version not in _REPAIRED


def version_number(parts: "tuple[int, ...]") -> int:
    """SQLite's number of a version, as ``sqlite3.sqlite_version_info`` has it: (3, 40, 1) is 3040001."""
    major, minor, patch = (*parts[:3], 0, 0, 0)[:3]
    return major * 1_000_000 + minor * 1000 + patch


def version_text(version: int) -> str:
    """3040001 as people write it: 3.40.1."""
    return f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}"


def header_problem(first: bytes) -> str | None:
    """Why a file that begins with these bytes cannot be replicated; None for a database that can.

    ``first``: the first 100 bytes, or all of them; ask only when the file is not empty.
    """
    if first[:16] != DATABASE_MAGIC:
        return (
            "the file does not begin as a SQLite database does (it is encrypted, or another kind of file): it cannot "
            "be replicated; keep it outside the mount, or use an unencrypted database"
        )
    if len(first) < _HEADER_BYTES:
        return "the file is shorter than a SQLite header: it is left as it is"
    page_size = int.from_bytes(first[16:18], "big")
    if not is_page_size(65536 if page_size == 1 else page_size) or first[21:24] != _SMALLEST_FRACTIONS:
        return "the file begins as a SQLite database does, and the rest of its header cannot be: it is left as it is"
    write_version, read_version = first[18], first[19]
    if _WAL2 in (write_version, read_version):
        return "journal_mode=WAL2 is not SQLite's own and cannot be replicated: set PRAGMA journal_mode=WAL"
    if (write_version, read_version) not in ((_ROLLBACK, _ROLLBACK), (_WAL, _WAL)):
        return (
            f"the header has the format versions {write_version} and {read_version}, known are 1 (rollback journal) "
            f"and 2 (WAL): a newer SQLite wrote it; it is left as it is"
        )
    return None


def name_problem(name: str) -> str | None:
    """Why no file of this name may be made in the mount; None for all other names."""
    if name.endswith("-wal2"):
        return "journal_mode=WAL2 is not SQLite's own and cannot be replicated: set PRAGMA journal_mode=WAL"
    return None
