"""Whether nodes hold the same databases, byte for byte, and whether that is what SQLite and the log say too."""

import mmap
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import xxhash

from litereplica.ltx.decode import PageBlock, RecordDecoder
from litereplica.ltx.format import RecordHeader
from litereplica.store.store import folder_name
from tests.cluster.group import CAUGHT_UP_S, visible
from tests.support.nodes import Node
from tests.support.sql import fold, integrity
from tests.support.waiting import wait_until

READ_S: Final = 60.0


def content(path: Path) -> bytes:
    """A file's bytes, read by another process: a close in this one would drop locks of SQLite connections here."""
    found = subprocess.run(["cat", "--", path], capture_output=True, timeout=READ_S, check=False)
    if found.returncode:
        raise FileNotFoundError(found.stderr.decode())
    return found.stdout


def rolling_checksum(database: bytes | mmap.mmap) -> int:
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


def caught_up(primary: Node, replicas: Iterable[Node], limit_s: float = CAUGHT_UP_S) -> None:
    """Every replica has logged and applied everything that the primary has now."""
    target = visible(primary)
    for replica in replicas:
        wait_until(lambda replica=replica: visible(replica) == target, f"{replica.name} reaches {target}", limit_s)  # type: ignore[misc]


def assert_same(nodes: Sequence[Node], *databases: str, limit_s: float = CAUGHT_UP_S) -> None:
    """Nobody writes any more: every node holds the same bytes, positions, and sound databases (all, or those named).

    The primary is the first node. Its WALs are folded in by a client here; those of the replicas by their appliers.
    """
    primary, *replicas = nodes
    names = databases or sorted(visible(primary))
    assert names
    for name in names:
        fold(primary.path(name))
    caught_up(primary, replicas, limit_s)
    positions = visible(primary)
    for name in names:
        expected = content(primary.path(name))
        _, _, checksum = positions[name].partition("/")
        found = f"{rolling_checksum(expected):016x}"
        assert found == checksum, (
            f"{name} is {found}, its position says {checksum}: {against_log(primary, name, expected)}"
        )
        _assert_sound(primary, name, expected, positions[name])
        for replica in replicas:
            await_folded(replica, name, expected, limit_s)
            _assert_sound(replica, name, expected, positions[name])


def await_folded(replica: Node, name: str, expected: bytes, limit_s: float = CAUGHT_UP_S) -> None:
    """Until the file has what the WAL of the replica had; that of a database in rollback mode is never emptied."""
    on_disk, wal = replica.data / "files" / name, replica.data / "files" / f"{name}-wal"
    what = f"{replica.name} folds the WAL of {name}"
    if expected[19] == 2:
        wait_until(lambda: wal.stat().st_size == 0, what, limit_s)
    else:
        wait_until(lambda: content(on_disk) == expected, what, limit_s)


def _assert_sound(node: Node, name: str, expected: bytes, position: str) -> None:
    found = content(node.path(name))
    assert found == expected, difference(node.name, name, expected, found)
    on_disk = content(node.data / "files" / name)
    assert on_disk == expected, (
        f"the disk has other bytes than the mount: {difference(node.name, name, expected, on_disk)}"
    )
    assert integrity(node.path(name)) == "ok", (node.name, name)
    assert content(node.path(f"{name}-pos")).decode() == f"{position}\n"
    assert node.position(name) == position


def against_log(node: Node, name: str, database: bytes) -> str:
    """Which pages of a file are not the newest images that the log has of them."""
    newest: dict[int, tuple[int, bytes]] = {}
    before: dict[int, tuple[int, bytes]] = {}
    size, txid = 0, 0
    for path in sorted((node.data / "db" / folder_name(name)).glob("*.ltx")):
        decoder = RecordDecoder()
        events = decoder.feed(content(path))
        while decoder.more:
            events += decoder.feed(b"")
        for event in events:
            if isinstance(event, RecordHeader):
                size, txid = event.page_size, event.max_txid
                newest = {pgno: each for pgno, each in newest.items() if pgno <= event.commit}
            elif isinstance(event, PageBlock):
                for pgno, page in event.pages:
                    if pgno in newest:
                        before[pgno] = newest[pgno]
                    newest[pgno] = (txid, bytes(page))

    def image(pgno: int) -> bytes:
        return database[(pgno - 1) * size : pgno * size]

    wrong = [pgno for pgno, (_, page) in newest.items() if image(pgno) != page]
    each_of = ", ".join(
        f"{pgno} by {newest[pgno][0]:x}"
        + (" (the file has what was logged before)" if image(pgno) == before.get(pgno, (0, b""))[1] else "")
        for pgno in wrong[:10]
    )
    missing = [pgno for pgno in range(1, len(database) // size + 1) if pgno not in newest]
    return (
        f"the log ends at {txid:x}; of {len(database) // size} pages {len(wrong)} are not what was logged: {each_of}; "
        f"not in the log: {missing[:10]}; integrity_check: {integrity(node.path(name))}"
    )


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
