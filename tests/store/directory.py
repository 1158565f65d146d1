"""A data directory to start from: how it is made, and how it is damaged."""

from pathlib import Path

from litereplica.store.disk import Disk
from litereplica.store.store import folder_name
from tests.store.application import NAME, Application, open_store

COMMITS = 30


def folder(root: Path) -> Path:
    return root / "db" / folder_name(NAME)


def segments(root: Path) -> list[Path]:
    return sorted(folder(root).glob("*.ltx"))


async def make(root: Path, *, clean: bool, checkpoint: bool = True, disk: Disk | None = None) -> Application:
    store = open_store(root, disk)
    app = Application(store)
    app.start()
    for number in range(COMMITS):
        app.commit()
        if number == COMMITS // 2 and checkpoint:
            await app.checkpoint()
            await store.advance_base(app.database)
    await app.sync()
    if clean:
        store.stop()
    store.close()
    return app


def snapshot_of(root: Path) -> dict[str, bytes]:
    # Locks and checksums are not history: opening them may change them.
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in ("lock", "checksums")
    }


def damage(path: Path, offset: int, data: bytes = b"\xff\x01\x02") -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
