"""The node's own look at its databases: every page, again and again, at a bounded rate.

Knows the pace, what is kept of damage, and that a replica fetches a damaged database anew. Does not know how a page is
told to be damaged (store.verify), or how a snapshot comes and is put in place.

On a replica the damaged pages are kept (``damaged/FOLDER/TIME-PGNO.pages`` in the data directory; the rest of the copy
is what the checksums say), then a snapshot is asked for and written over the whole file through the applier, while
readers go on. On the primary nothing is changed: it is said, and snapshots with such pages are refused
(replication.snapshots).
"""

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Final

import structlog
import trio

from litereplica.errors import LitereplicaError, Unavailable
from litereplica.ltx.position import Position
from litereplica.store.cursor import Trimmed
from litereplica.store.database import Database
from litereplica.store.direct import CHUNK_BYTES
from litereplica.store.judge import Judge, logged_images
from litereplica.store.store import Store, folder_name
from litereplica.store.verify import FileCheck, is_settled

log = structlog.get_logger()

DAMAGED_FOLDER: Final = "damaged"
SHOWN_PAGES: Final = 100
"""Page numbers in a log line and in the status; a damaged disk may have millions."""
HEAL_STEP_S: Final = 1.0
"""Between two looks at whether the snapshot has come, each of which asks for it again if nobody is sending it."""

Ask = Callable[[str, str], None]
"""Of a replica: ask the primary for a snapshot of a database, with the reason; again is harmless."""


class Scrubber:
    """``damaged``: the pages found wrong, by database, until a whole pass (or a snapshot) has found them right."""

    def __init__(self, store: Store, rate_bytes_s: int, pause_s: float) -> None:
        self.damaged: dict[str, list[int]] = {}
        # Set on a replica; None on the primary, which has nobody to ask.
        self.ask_snapshot: Ask | None = None
        self._store = store
        # Between two chunks.
        self._step_s = CHUNK_BYTES / rate_bytes_s if rate_bytes_s else 0.0
        self._looks = rate_bytes_s > 0
        self._pause_s = pause_s
        # A position (of a log's generation) at which every page of the file was what it should be: from there on only
        # later records explain a difference. A WAL that is folded and never begun again keeps base far behind.
        self._seen_whole: dict[str, tuple[int, Position]] = {}
        self._healing: set[str] = set()
        self._looking: set[str] = set()
        # Reported while they were being looked at.
        self._again: set[str] = set()
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Look at every database, pause, and again; ends only by cancellation."""
        async with trio.open_nursery() as self._nursery:
            while True:
                await trio.sleep(self._pause_s)
                if self._looks:
                    await self.look_at_all()

    async def look_at_all(self) -> None:
        """One pass over every database that is not being fetched anew."""
        for name in [name for name in self.damaged if (found := self._store.get(name)) is None or not found.exists]:
            del self.damaged[name]
        for database in list(self._store.databases.values()):
            if database.exists and database.name not in self._healing and is_settled(database):
                await self._try(database, self._step_s)
        log.debug("scrub_passed", damaged=sorted(self.damaged))

    async def _try(self, database: Database, step_s: float) -> None:
        name = database.name
        if name in self._looking:
            self._again.add(name)
            return
        self._looking.add(name)
        try:
            await self._look_at(database, step_s)
            while name in self._again and name not in self._healing:
                self._again.discard(name)
                await self._look_at(database, 0)
        except (Unavailable, Trimmed) as error:
            # It was dropped or replaced meanwhile, or has not arrived: the next pass will see.
            log.debug("scrub_interrupted", database=database.name, reason=error.message)
        except (LitereplicaError, OSError) as error:
            log.error("scrub_failed", database=database.name, reason=str(error))  # noqa: TRY400  a fact of the disk
        finally:
            self._looking.discard(name)
            self._again.discard(name)

    async def _look_at(self, database: Database, step_s: float) -> None:
        check = FileCheck(database)
        try:
            began_at = database.position
            judge = Judge(database, self._base(database))
            explained = 0

            def current_judge() -> Judge:
                # Not pinned for hours: the log after the base of this instant is always kept.
                nonlocal judge, explained
                base = self._base(database)
                if judge.base != base:
                    explained += judge.explained
                    judge = Judge(database, base)
                return judge

            damaged: list[int] = []
            is_kept = True
            first_pgno = 1
            while first_pgno <= database.page_count:
                chunk = await check.look(first_pgno, current_judge)
                wrong = chunk.damaged
                if wrong and judge.base != database.base:
                    # A checkpoint that began before may put an older image where an equal newer one already was.
                    images = await logged_images(database, wrong)
                    wrong = [pgno for pgno in wrong if chunk.checksum(pgno) not in images[pgno]]
                    explained += len(chunk.damaged) - len(wrong)
                if wrong:
                    damaged += wrong
                    is_kept = await self._found(database, check, first_pgno, wrong, damaged) and is_kept
                first_pgno += check.pages
                # Once something is wrong, the rest is looked at without delay: readers may be seeing it.
                await trio.sleep(0 if damaged else step_s)
                explained += len(chunk.uncertain)
        finally:
            check.close()
        if not damaged and not explained + judge.explained and database.position == began_at:
            self._seen_whole[database.name] = (database.log.generation, began_at)
        if damaged:
            self.damaged[database.name] = damaged
            if is_kept:
                self.heal(database)
        elif self.damaged.pop(database.name, None) is not None:
            log.info("damage_gone", database=database.name, reason="every page is what it should be again")

    def _base(self, database: Database) -> Position:
        """The newest position that is known to be wholly in the file."""
        generation, position = self._seen_whole.get(database.name, (-1, Position.ZERO))
        is_newer = generation == database.log.generation and position.txid > database.base.txid
        return position if is_newer and database.dropped_txid <= position.txid else database.base

    async def _found(
        self, database: Database, check: FileCheck, first_pgno: int, pgnos: list[int], so_far: list[int]
    ) -> bool:
        """Say and keep what is damaged; False where a replica's disk refused that: then nothing may replace it yet."""
        known = self.damaged.get(database.name, [])
        new = sorted(set(pgnos).difference(known))
        self.damaged[database.name] = sorted({*known, *so_far})
        if new:
            log.error(
                "pages_damaged",
                database=database.name,
                file=str(database.file_path),
                pages=new[:SHOWN_PAGES],
                count=len(new),
                then="kept, then a snapshot is fetched from the primary"
                if self.ask_snapshot is not None
                else "nothing is changed, and no snapshot is sent: see docs/operations.md, Damage",
            )
        if self.ask_snapshot is not None:
            pages = await check.read_pages(first_pgno, pgnos)
            try:
                await trio.to_thread.run_sync(self._keep, database.name, pages)
            except OSError as error:
                log.error(  # noqa: TRY400  a fact of the disk
                    "damaged_pages_not_kept",
                    database=database.name,
                    path=str(self.folder),
                    reason=error.strerror,
                    then="no snapshot is fetched before they are: make room, the next pass tries again",
                )
                return False
        return True

    def _keep(self, name: str, pages: list[tuple[int, bytes]]) -> None:
        """One file for each run of pages, durable; nothing ever removes them."""
        now = time.time_ns()
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now // 10**9))
        folder = self.folder / folder_name(name)
        disk = self._store.disk
        disk.make_directories(folder)
        starts = [0, *(index for index, (a, b) in enumerate(pairwise(pages), 1) if b[0] != a[0] + 1), len(pages)]
        for start, end in pairwise(starts):
            if end > start:
                path = folder / f"{stamp}.{now % 10**9:09}Z-{pages[start][0]}.pages"
                disk.write_file(path, b"".join(page for _, page in pages[start:end]))

    @property
    def folder(self) -> Path:
        """Where damaged pages are kept."""
        return self._store.root / DAMAGED_FOLDER

    def report(self, name: str, pgnos: list[int]) -> None:
        """Somebody else has found damage: that database is looked at at once, and without delay."""
        database = self._store.get(name)
        if database is None or not pgnos or name in self._healing or self._nursery is None:
            return
        self._nursery.start_soon(self._try, database, 0)

    def heal(self, database: Database) -> None:
        """Have a replica's database replaced by the primary's, in place; nothing on the primary."""
        if self.ask_snapshot is not None and database.name not in self._healing:
            assert self._nursery is not None
            self._healing.add(database.name)
            self._nursery.start_soon(self._heal, database)

    async def _heal(self, database: Database) -> None:
        name, generation = database.name, database.log.generation
        count = len(self.damaged.get(name, ()))
        try:
            while database.exists and database.log.generation == generation:
                if self.ask_snapshot is None:
                    # This node leads now (it was forced to), and goes on looking as a primary does.
                    return
                self.ask_snapshot(name, f"{count} pages of its file here are damaged")
                await trio.sleep(HEAL_STEP_S)
            while database.exists and not is_settled(database):  # noqa: ASYNC110  it changes in many places
                await trio.sleep(HEAL_STEP_S)
        finally:
            self._healing.discard(name)
        self.damaged.pop(name, None)
        log.info("damage_healed", database=name, position=str(database.position))
