"""What one node holds when a run is over: its databases, and what it has kept of histories that ended.

Knows how to get at the bytes, through the mount and on the disk, and that every look has a limit: a mount may answer
nothing. Does not know what is right.
"""

import contextlib
import hashlib
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jepsen.cluster.exports import export
from jepsen.cluster.machine import BreakableMachine
from jepsen.ending import DatabaseEnd, Kept
from tests.cluster.comparing import content, rolling_checksum
from tests.support.sql import SqlError, run_sql
from tests.support.waiting import wait_until

WAL_VERSION: Final = 2
"""At byte 19 of a database file: it is in WAL mode (sqlite.org/fileformat2.html)."""
INTEGRITY_LINES: Final = 20
TOUCH_S: Final = 20.0

Calls = Callable[[str, Path], Iterable[int]]
"""(name of a database, a plain copy of it) → the indexes of the calls whose rows are in it."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that could not be found out; empty ``database``: it concerns them all."""

    text: str
    database: str = ""


@dataclass(frozen=True, slots=True)
class Look:
    """One database of one node; ``problem``: what is wrong besides what ``end`` says."""

    end: DatabaseEnd
    content: bytes
    problem: str = ""


def touch_and_fold(path: Path, number: int) -> None:
    """One more transaction, so that every node has applied something since it last changed; then the WAL is folded in.

    Raises AssertionError, SqlError.
    """
    script = f"PRAGMA user_version = {number % 2**31}; PRAGMA wal_checkpoint(TRUNCATE)"
    rows = run_sql(path, script, mode="rw", limit_s=TOUCH_S)
    assert rows[0][0] == 0, f"a reader keeps the WAL of {path.name} from being folded"


def fold(path: Path, how: str = "PASSIVE") -> None:
    """Have what is in the WAL laid into the file, as far as the node lets an application do that: a replica PASSIVE."""
    with contextlib.suppress(SqlError):
        run_sql(path, f"PRAGMA wal_checkpoint({how})", mode="rw", limit_s=TOUCH_S)


def await_folded(node: BreakableMachine, name: str, expected: bytes | None, limit_s: float) -> None:
    """Until the file on the disk has all that readers see. AssertionError at the limit.

    Of a database in a rollback mode a replica has a WAL all the same, which is never emptied: there the file becomes
    what it is on the primary (``expected``; None when that is not known). On the primary nobody but applications
    empties a WAL, so what came after ``touch_and_fold`` is folded here.
    """
    on_disk, wal = node.data / "files" / name, node.data / "files" / f"{name}-wal"

    def folded() -> bool:
        if _header(on_disk)[19:20] == bytes([WAL_VERSION]):
            if not wal.exists() or wal.stat().st_size == 0:
                return True
            if node.role == "primary":
                fold(node.path(name), "TRUNCATE")
            return False
        return content(on_disk) == (content(node.path(name)) if expected is None else expected)

    wait_until(folded, f"{node.name} folds the WAL of {name}", limit_s)


def _header(path: Path) -> bytes:
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        return file.read(100)
    return b""


def look(node: BreakableMachine, name: str, position: str, folder: Path) -> Look:
    """``position``: TXID/checksum as its status says. Raises FileNotFoundError when the mount has no such database."""
    found = content(node.path(name))
    problems = []
    if content(node.data / "files" / name) != found:
        problems.append(f"the disk has other bytes of {name} than the mount")
    if (told := content(node.path(f"{name}-pos")).decode().strip()) != position:
        problems.append(f"{name}-pos says {told}, and the status {position}")
    txid, _, checksum = position.partition("/")
    end = DatabaseEnd(
        name=name,
        txid=int(txid, 16),
        checksum=checksum,
        computed=f"{rolling_checksum(found) if found else 0:016x}",
        digest=hashlib.sha256(found).hexdigest(),
        size_bytes=len(found),
        integrity=_integrity(found, folder),
    )
    return Look(end, found, "; ".join(problems))


def _integrity(database: bytes, folder: Path) -> tuple[str, ...]:
    """What SQLite says of a copy."""
    if not database:
        return ("ok",)
    copy = plain_copy(database, folder, "integrity.db")
    try:
        with contextlib.closing(sqlite3.connect(copy)) as connection:
            rows = connection.execute(f"PRAGMA integrity_check({INTEGRITY_LINES})").fetchall()
    except sqlite3.Error as error:
        return (f"{type(error).__name__}: {error}",)
    return tuple(str(row[0]) for row in rows)


def plain_copy(database: bytes, folder: Path, name: str) -> Path:
    """A file that has nothing to do with any node; its WAL of an earlier copy is gone."""
    path = folder / name
    for each in (path, *(path.with_name(f"{name}{suffix}") for suffix in ("-wal", "-shm", "-journal"))):
        each.unlink(missing_ok=True)
    path.write_bytes(database)
    return path


# --------------------------------------------------------------------------------------------------------- diverged
def kept_ids(node: BreakableMachine) -> frozenset[str]:
    """What a node has kept so far. AssertionError when it cannot be asked."""
    return frozenset(each["id"] for each in node.diverged())


def kept(
    node: BreakableMachine,
    databases: Sequence[str],
    known: frozenset[str],
    calls_in: Calls | None,
    times_ns: dict[str, int],
    folder: Path,
) -> tuple[list[Kept], list[Problem]]:
    """Entries of some databases that were not ``known``, and what could not be got out of them.

    ``times_ns``: when each was kept, by id, as the log says; the node's own clock may have been wrong.
    """
    entries = [each for each in node.diverged() if each["id"] not in known and each["database"] in databases]
    # Of others there is no database that could be looked into: what is in them alone counts as lost.
    wanted = [each["id"] for each in entries if calls_in is not None and each["whole"]]
    calls: dict[str, tuple[int, ...]] = {}
    problems: list[Problem] = []
    if calls_in is not None and wanted:
        calls, problems = _calls(node, {each["id"]: each["database"] for each in entries}, wanted, calls_in, folder)
    found: list[Kept] = []
    for entry in entries:
        base, end = (int(entry[each].partition("/")[0], 16) for each in ("base", "end"))
        at_ns = times_ns.get(entry["id"], 0)
        found.append(Kept(entry["id"], entry["database"], base, end, at_ns, calls.get(entry["id"], ())))
    return found, problems


def _calls(
    node: BreakableMachine, database_of: Mapping[str, str], wanted: Sequence[str], calls_in: Calls, folder: Path
) -> tuple[dict[str, tuple[int, ...]], list[Problem]]:
    """By the id of an entry the calls whose rows are in it, and what could not be found out."""
    target = folder / f"diverged-{node.name}"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    try:
        said = export(node.config, wanted, target)
    except (subprocess.SubprocessError, ValueError) as error:
        return {}, [Problem(f"diverged/ cannot be exported: {error}")]
    found: dict[str, tuple[int, ...]] = {}
    problems: list[Problem] = []
    for place, (identifier, problem) in enumerate(zip(wanted, said, strict=True)):
        database = database_of[identifier]
        try:
            assert not problem, problem
            found[identifier] = tuple(sorted(set(calls_in(database, target / str(place)))))
        except (AssertionError, sqlite3.Error) as error:
            problems.append(Problem(f"entry {identifier} of diverged/ cannot be read: {error}", database))
    shutil.rmtree(target)
    return found, problems
