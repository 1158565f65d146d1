"""Whether a plain directory, a primary and its replicas hold the same: by rows, and by bytes where bytes must be equal.

Nobody has a database open meanwhile, except for the readers here. Bytes are those of the database file with its WAL
folded in: for a replica that is done on a copy, because its applier may keep the WAL as long as it likes.
"""

import hashlib
import shutil
import sqlite3
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.cluster.comparing import against_log, difference, rolling_checksum
from tests.cluster.group import visible
from tests.differential.sides import Side
from tests.support.nodes import Node
from tests.support.waiting import wait_until

CAUGHT_UP_S: Final = 60.0
JUDGE: Final = "judge"
BURST: Final = "burst.db"
"""Applications write it at the same time, so its rows are decided and where they lie is not."""
CHANCE: Final = ("page_count", "freelist_count")
WAL_VERSIONS: Final = b"\2\2"


def compare(plain: Side, mount: Side, primary: Node, replicas: Sequence[tuple[Node, Side]], *, rollback: bool) -> None:
    """AssertionError that says what differs. ``rollback``: databases that are not in WAL mode are replicated too."""
    plain_dumps, mount_dumps = dumps(plain), dumps(mount)
    assert plain_dumps.keys() == mount_dumps.keys(), f"plain has {sorted(plain_dumps)}, mount {sorted(mount_dumps)}"
    for name, expected in plain_dumps.items():
        _assert_same_dump(name, expected, mount_dumps[name], mount.name)
    names = sorted(visible(primary))
    assert names == sorted(name for name in mount_dumps if rollback or is_wal(primary, name)), (
        f"the log has {names}, the mount {sorted(mount_dumps)}"
    )
    target = visible(primary)
    for replica, side in replicas:
        wait_until(
            lambda replica=replica: replica.get("/status")[0] == 200 and visible(replica) == target,  # type: ignore[misc]
            f"{replica.name} reaches {target}",
            CAUGHT_UP_S,
        )
        found = dumps(side)
        assert found.keys() == set(names), f"{side.name} has {sorted(found)}, the primary {names}"
        for name in names:
            # A replica's readers always find a WAL, whatever the journal mode of the primary.
            _assert_same_dump(name, plain_dumps[name][1:], found[name][1:], side.name)
    for name in names:
        _assert_same_bytes(name, mount, primary, replicas, target[name])


def dumps(side: Side) -> dict[str, Any]:
    """By name of each database: everything that a reader finds out."""
    listed = side.ask(JUDGE, "list")
    assert not listed.error, f"{side.name}: {listed}"
    found = {}
    for name, _ in listed.rows:
        side.ask(JUDGE, "open", JUDGE, name)
        answer = side.ask(JUDGE, "dump", JUDGE)
        side.ask(JUDGE, "close", JUDGE)
        chance = CHANCE if name == BURST else ()
        found[name] = answer.error or [each for each in answer.rows if each[0] not in chance]
    return found


def _assert_same_dump(name: str, expected: Any, found: Any, where: str) -> None:
    if expected == found:
        return
    pairs = zip(expected, found, strict=False) if not isinstance(expected, str) else ()
    differing = [f"{one} on a plain disk, {other} here" for one, other in pairs if one != other]
    raise AssertionError(f"{where}: {name}: {'; '.join(differing[:5]) or f'{expected} on a plain disk, {found} here'}")


def is_wal(node: Node, name: str) -> bool:
    with (node.data / "files" / name).open("rb") as file:
        return file.read(20)[18:] == WAL_VERSIONS


def _assert_same_bytes(
    name: str, mount: Side, primary: Node, replicas: Sequence[tuple[Node, Side]], position: str
) -> None:
    expected = folded(primary, name)
    checksum = f"{rolling_checksum(expected):016x}"
    assert checksum == position.partition("/")[2], (
        f"{name} is {checksum}, its position says {position}: {against_log(primary, name, expected)}"
    )
    shown = mount.ask(JUDGE, "digest", name)
    on_disk = (primary.data / "files" / name).read_bytes()
    assert shown.rows == ((len(on_disk), hashlib.sha256(on_disk).hexdigest()),), (
        f"{name}: the mount shows {shown}, the disk has {len(on_disk)} bytes"
    )
    for replica, _ in replicas:
        try:
            wait_until(lambda replica=replica: folded(replica, name) == expected, "")  # type: ignore[misc]
        except AssertionError:
            raise AssertionError(difference(replica.name, name, expected, folded(replica, name))) from None


def folded(node: Node, name: str) -> bytes:
    """The bytes of a database file as they are once its WAL is in it. Only right while nobody changes either."""
    with tempfile.TemporaryDirectory(prefix="litereplica-folded-") as folder:
        copy = Path(folder) / "copy.db"
        shutil.copyfile(node.data / "files" / name, copy)
        wal = node.data / "files" / f"{name}-wal"
        if wal.exists() and wal.stat().st_size:
            shutil.copyfile(wal, f"{copy}-wal")
            connection = sqlite3.connect(copy)
            try:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            except sqlite3.DatabaseError as error:
                return f"cannot be folded: {error}".encode()
            finally:
                connection.close()
        return copy.read_bytes()


def question_on_disk(node: Node, name: str, sql: str) -> Any:
    """One value from the files as they lie on the node's disk, also when nobody sees the newest commit yet."""
    data = bytearray(folded(node, name))
    data[18:20] = b"\1\1"  # a database in memory has no WAL
    connection = sqlite3.connect(":memory:")
    try:
        connection.deserialize(bytes(data))
        return connection.execute(sql).fetchone()[0]
    finally:
        connection.close()
