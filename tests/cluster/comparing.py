"""Whether nodes hold the same databases, byte for byte, and whether that is what SQLite and the log say too."""

import json
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Protocol

import xxhash

CAUGHT_UP_S: Final = 60.0
"""Generous: this machine has two cores, and they are shared."""
READ_S: Final = 60.0


class Status(Protocol):
    """What is compared of a node: tests.support.nodes has it."""

    @property
    def name(self) -> str: ...
    @property
    def mount(self) -> Path: ...
    @property
    def data(self) -> Path: ...
    def positions(self) -> dict[str, str]: ...


def until(condition: Callable[[], bool], message: str | Callable[[], str], limit_s: float = CAUGHT_UP_S) -> float:
    """Ask until it holds; how long that took. Fails with the message."""
    began = time.monotonic()
    while not condition():
        taken = time.monotonic() - began
        if taken > limit_s:
            text = message if isinstance(message, str) else message()
            raise AssertionError(f"after {limit_s:g} s: {text}")
        time.sleep(0.005 if taken < 0.5 else 0.05)
    return time.monotonic() - began


def content(path: Path) -> bytes:
    """A file's bytes, read by another process: a close in this one would drop locks of SQLite connections here."""
    found = subprocess.run(["cat", "--", path], capture_output=True, timeout=READ_S, check=False)
    if found.returncode:
        raise FileNotFoundError(found.stderr.decode())
    return found.stdout


def rolling_checksum(database: bytes) -> int:
    """XOR over the pages of xxh3_64(page, seed=page number), from the documentation and not from our code."""
    size = int.from_bytes(database[16:18], "big")
    size = 65536 if size == 1 else size
    assert len(database) % size == 0
    skipped = 2**30 // size + 1
    checksum = 0
    for pgno in range(1, len(database) // size + 1):
        if pgno != skipped:
            checksum ^= xxhash.xxh3_64_intdigest(database[(pgno - 1) * size : pgno * size], seed=pgno)
    return checksum


def fold(path: Path) -> None:
    """Checkpoint and truncate the WAL as an application on the primary would."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=30)
    try:
        connection.execute("PRAGMA busy_timeout=30000")
        until(
            lambda: connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0,
            f"{path} could not be checkpointed",
        )
    finally:
        connection.close()


def integrity(path: Path) -> list[str]:
    """What ``PRAGMA integrity_check`` says, asked by another process with SQLite's own defaults."""
    script = (
        "import sqlite3,sys,json; c=sqlite3.connect(sys.argv[1],timeout=30);"
        "print(json.dumps([r[0] for r in c.execute('PRAGMA integrity_check')]))"
    )
    command = ["python3", "-c", script, str(path)]
    found = subprocess.run(command, capture_output=True, timeout=READ_S, check=False)
    if found.returncode:
        return [found.stderr.decode()]
    return list(json.loads(found.stdout))


def caught_up(primary: Status, replicas: Iterable[Status], limit_s: float = CAUGHT_UP_S) -> None:
    """Every replica has logged and applied everything that the primary has now."""
    target = primary.positions()
    for replica in replicas:
        until(
            lambda replica=replica: replica.positions() == target,  # type: ignore[misc]
            lambda replica=replica: f"{replica.name} is at {replica.positions()}, the primary at {target}",  # type: ignore[misc]
            limit_s,
        )


def assert_same(primary: Status, *replicas: Status, limit_s: float = CAUGHT_UP_S) -> None:
    """Nobody writes any more: every node holds the same bytes, positions, and sound databases.

    The primary's WALs are folded in by a client here; those of the replicas by their appliers.
    """
    names = sorted(primary.positions())
    assert names
    for name in names:
        fold(primary.mount / name)
    caught_up(primary, replicas, limit_s)
    positions = primary.positions()
    assert sorted(positions) == names
    for name in names:
        expected = content(primary.mount / name)
        assert content(primary.data / "files" / name) == expected, f"{name}: the kernel shows other bytes than the disk"
        _, _, checksum = positions[name].partition("/")
        assert f"{rolling_checksum(expected):016x}" == checksum, f"{name} is not what its position says"
        assert integrity(primary.mount / name) == ["ok"], name
        assert content(primary.mount / f"{name}-pos").decode() == f"{positions[name]}\n"
        for replica in replicas:
            copy = replica.mount / name
            until(
                lambda: (wal := replica.data / "files" / f"{name}-wal").exists() and wal.stat().st_size == 0,  # noqa: B023
                f"{replica.name} does not fold the WAL of {name}",
                limit_s,
            )
            found = content(copy)
            assert found == expected, difference(replica.name, name, expected, found)
            assert content(replica.data / "files" / name) == expected, f"{replica.name}: {name}: stale pages"
            assert integrity(copy) == ["ok"], (replica.name, name)
            assert content(replica.mount / f"{name}-pos").decode() == f"{positions[name]}\n"


def difference(node: str, name: str, expected: bytes, found: bytes) -> str:
    """Which pages differ, for the person who has to find out why."""
    size = int.from_bytes(expected[16:18], "big")
    size = 65536 if size == 1 else size
    pages = [
        at // size + 1
        for at in range(0, max(len(expected), len(found)), size)
        if expected[at : at + size] != found[at : at + size]
    ]
    return f"{node}: {name}: {len(found)} bytes instead of {len(expected)}, pages {pages[:20]} of {len(pages)} differ"
