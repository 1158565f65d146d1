"""``litereplica run`` with a disk that writes down what it does.

Usage, put before that command: ``python -m tests.crash.launcher TRACE SEGMENT_BYTES DIE_AFTER REFUSE_EVERY python -m
litereplica -c CONFIG run``. TRACE "-" records nothing; DIE_AFTER and REFUSE_EVERY (tests.crash.recording) 0 are never.
"""

import itertools
import sys
from pathlib import Path
from typing import Final

import trio

from litereplica.config import load_settings
from litereplica.config.settings import RetentionSettings
from litereplica.logs import configure_logs
from litereplica.node.main import run_node
from litereplica.store.database import Database
from litereplica.store.disk import Disk
from litereplica.store.store import Store
from tests.crash.recording import RecordingDisk, Trace

MAINTAIN_EVERY: Final = 12
"""Changes between two rounds of retention: crashes should fall beside them too; the node's own are seconds apart."""


def _maintain_often(store: Store, retention: RetentionSettings) -> None:
    changes = itertools.count(1)

    def changed(_: Database) -> None:
        if next(changes) % MAINTAIN_EVERY == 0:
            trio.lowlevel.spawn_system_task(store.maintain, retention.age_s, retention.size_bytes)

    store.listeners.append(changed)


def main(arguments: list[str]) -> int:
    trace = arguments[0]
    segment_bytes, die_after, refuse_every = map(int, arguments[1:4])
    settings = load_settings(Path(arguments[arguments.index("-c") + 1]), {})
    configure_logs(settings.log.format, settings.log.level)

    def open_store(root: Path, disk: Disk, node: str, compression: str) -> Store:
        if trace == "-":
            store = Store.open(root, disk, node, compression, segment_bytes)
            _maintain_often(store, settings.data.retention)
            return store
        root.mkdir(exist_ok=True)
        recording = RecordingDisk(root, Trace(Path(trace)), die_after=die_after or None)
        files = root / "files"
        before = {str(path.relative_to(files)) for path in files.rglob("*")} if files.exists() else set()
        store = Store.open(root, recording, node, compression, segment_bytes)
        _maintain_often(store, settings.data.retention)
        recording.refuse_every = refuse_every or None
        recording.note_foreign(before, lambda name: (found := store.get(name)) is not None and found.exists)
        return store

    return run_node(settings, open_store)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
