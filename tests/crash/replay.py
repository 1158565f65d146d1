"""Crash points: the directory that a crash at some step leaves, a start on it, and what must then be there.

Knows what a start has to bring back: it succeeds, at a position that existed, not before what was acknowledged; file
and page checksums are exactly those of that position; what several databases committed together is in all of them or
in none. Then the databases go on. Does not know how the trace was recorded.
"""

import contextlib
import random
import shutil
import sqlite3
import struct
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast, get_args

import numpy as np

from litereplica.ltx.position import Position
from litereplica.store.database import Database
from litereplica.store.disk import Disk
from litereplica.store.receive import LogReceiver
from litereplica.store.store import Store
from tests.crash.model import Image, Model, Names
from tests.crash.oracle import MULTI, Oracle, State
from tests.crash.recording import RecordingDisk, Step
from tests.crash.surviving import Data

SEGMENT_BYTES: Final = 32 * 1024
# One point in so many goes on, or crashes again while it starts.
GO_ON_EVERY: Final = 3
AGAIN_EVERY: Final = 3
_NAMES: Final = get_args(Names)
_DATA: Final = get_args(Data)


class OtherBoot(Disk):
    """The disk of a machine that was started at another time."""

    __slots__ = ("_boot",)

    def __init__(self, boot: bytes) -> None:
        self._boot = boot

    def boot_id(self) -> bytes:
        return self._boot


@dataclass(frozen=True, slots=True)
class Crash:
    """``names`` None: a killed process; else a power loss."""

    names: Names | None
    data: Data

    def __str__(self) -> str:
        return "killed" if self.names is None else f"power lost, names {self.names}, data {self.data}"


def choose_crash(chance: random.Random, *, strict: bool) -> Crash:
    """``strict``: also names and writes lost in any subset, as no file system with a journal and a cache does."""
    if chance.random() < 0.25:
        return Crash(None, "all")
    names = chance.choices(_NAMES, [1, 1, int(strict)])[0]
    return Crash(cast("Names", names), cast("Data", chance.choices(_DATA, [2, 1, 2, 4, 2, int(strict)])[0]))


@dataclass(frozen=True, slots=True)
class Failure:
    number: int
    step: int
    crash: str
    problem: str
    strict_only: bool

    def __str__(self) -> str:
        only = " (stricter than any real file system)" if self.strict_only else ""
        return f"point {self.number}, after step {self.step}, {self.crash}{only}: {self.problem}"


@dataclass(slots=True)
class Result:
    points: int = 0
    starts: int = 0
    took_s: float = 0.0
    failures: list[Failure] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    @property
    def points_per_s(self) -> float:
        return self.points / self.took_s if self.took_s else 0.0


class Wrong(AssertionError):
    """A start brought back something else than it had to."""


class Replay:
    """Crash points of one trace. ``groups``: databases whose rows in the table ``multi`` are committed together."""

    def __init__(
        self,
        trace: list[Step],
        *,
        groups: list[list[str]] | None = None,
        folder: Path = Path("/dev/shm"),
        segment_bytes: int = SEGMENT_BYTES,
        strict: bool = False,
    ) -> None:
        self.trace = trace
        self.oracle = Oracle(trace)
        self._groups = groups or []
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._strict = strict

    def run(self, seed: int, points: int, *, only: int | None = None, limit_s: float | None = None) -> Result:
        """``only``: nothing but the point of this number."""
        chance = random.Random(seed)
        chosen = sorted(chance.randint(0, len(self.trace)) for _ in range(points))
        result = Result()
        start = time.monotonic()
        model = Model()
        done = 0
        with tempfile.TemporaryDirectory(prefix="litereplica-crash-", dir=self._folder) as scratch:
            for number, step in enumerate(chosen):
                for each in self.trace[done:step]:
                    model.apply_step(each)
                done = step
                if only is not None and number != only:
                    continue
                if limit_s is not None and time.monotonic() - start > limit_s:
                    break
                self._point(_Point(Path(scratch), number, step, random.Random(f"{seed}/{number}")), model, result)
        result.took_s = time.monotonic() - start
        return result

    def images(self, seed: int, count: int) -> Iterator[tuple[int, Crash, Image]]:
        """What crashes at some steps leave."""
        chance = random.Random(seed)
        model, done = Model(), 0
        for step in sorted(chance.randint(0, len(self.trace)) for _ in range(count)):
            for each in self.trace[done:step]:
                model.apply_step(each)
            done = step
            crash = choose_crash(chance, strict=self._strict)
            image = (
                model.after_kill() if crash.names is None else model.after_power_loss(crash.names, crash.data, chance)
            )
            yield step, crash, image

    def _point(self, point: "_Point", model: Model, result: Result) -> None:
        result.points += 1
        crash = choose_crash(point.chance, strict=self._strict)
        result.kinds[str(crash)] += 1
        image = _image(model, crash, point.chance)
        crashes = [crash]
        try:
            root = image.build_in(point.scratch, "first")
            boot = model.boot if crash.names is None else point.boot()
            if point.chance.randrange(AGAIN_EVERY) == 0:
                result.starts += 1
                again = choose_crash(point.chance, strict=self._strict)
                crashes.append(again)
                root, boot = self._crash_again(point, image, root, boot, again)
            result.starts += 1
            self._start(point, root, boot, crashes)
        except Exception as error:  # noqa: BLE001  whatever it is, it is a finding
            strict = any(each.names == "any" or each.data == "writes" for each in crashes)
            text = f"{type(error).__name__}: {error}"
            if not isinstance(error, Wrong):
                text += "\n" + traceback.format_exc()
            where = " and then, while it starts, ".join(map(str, crashes))
            result.failures.append(Failure(point.number, point.step, where, text, strict))
        finally:
            for each in list(point.scratch.iterdir()):
                shutil.rmtree(each)

    def _crash_again(self, point: "_Point", image: Image, root: Path, boot: bytes, crash: Crash) -> tuple[Path, bytes]:
        """Start, and crash at some step of that."""
        steps: list[Step] = []
        disk = RecordingDisk(root, steps.append, boot=boot)
        store = Store.open(root, disk, "node-1", segment_bytes=self._segment_bytes)
        store.close()
        model = image.model()
        for step in steps[: point.chance.randint(1, len(steps))]:
            model.apply_step(step)
        left = _image(model, crash, point.chance)
        return left.build_in(point.scratch, "second"), boot if crash.names is None else point.boot()

    def _start(self, point: "_Point", root: Path, boot: bytes, crashes: list[Crash]) -> None:
        killed = all(each.names is None for each in crashes)
        with self._opened(root, boot) as store:
            found = self._check(point.step, store, killed=killed)
        if point.chance.randrange(GO_ON_EVERY) == 0 and found:
            name = point.chance.choice(sorted(found))
            self._go_on(point, root, boot, name, found[name])

    @contextlib.contextmanager
    def _opened(self, root: Path, boot: bytes) -> Iterator[Store]:
        store = Store.open(root, OtherBoot(boot), "node-1", segment_bytes=self._segment_bytes)
        try:
            yield store
        finally:
            store.close()

    # -- what must be there ----------------------------------------------------------------------------------------

    def _check(self, step: int, store: Store, *, killed: bool) -> dict[str, State]:
        """The states that were brought back, of the databases that exist."""
        found = {}
        oracle = self.oracle
        required = oracle.killed if killed else oracle.powerless
        for name in sorted(oracle.databases | set(store.databases)):
            database = store.get(name)
            position = Position.ZERO if database is None else database.position
            least = required[name].at(step) if name in required else 0
            if position.txid < least:
                raise Wrong(f"{name} is at {position}, but {least:016x} was acknowledged")
            tips = oracle.tips[name].at(step) if name in oracle.tips else [Position.ZERO]
            if killed and position not in tips:
                raise Wrong(f"{name} is at {position} after a kill, its log ended at {tips[-1]}")
            if position == Position.ZERO:
                continue
            state = oracle.states.get((name, position))
            if state is None or state.step >= step:
                raise Wrong(f"{name} is at {position}, where it never was by then")
            assert database is not None
            self._compare(database, state)
            if state.pages:
                found[name] = state
        self._compare_groups(found)
        return found

    def _compare(self, database: Database, state: State) -> None:
        name, path = database.name, database.file_path
        if database.page_count != len(state.pages) or database.applied != state.position.txid:
            raise Wrong(f"{name} at {state.position} has {database.page_count} pages, not {len(state.pages)}")
        table = np.array(database.checksums.table, dtype=np.uint64)
        if not np.array_equal(table[: len(state.pages)], state.checksums) or table[len(state.pages) :].any():
            raise Wrong(f"{name} at {state.position}: the page checksums are wrong")
        if not state.pages:
            return
        if database.page_size != state.page_size:
            raise Wrong(f"{name} at {state.position} has pages of {database.page_size} bytes, not {state.page_size}")
        data = path.read_bytes()
        if data != state.content:
            raise Wrong(f"{path.name} at {state.position} {_difference(data, state)}")
        for suffix in ("-wal", "-journal"):
            side = path.with_name(path.name + suffix)
            if side.exists() and side.stat().st_size:
                raise Wrong(f"{side.name} is left")

    def _compare_groups(self, found: dict[str, State]) -> None:
        for group in self._groups:
            rows = {name: found[name].rows[MULTI] for name in group if name in found}
            if len({tuple(sorted(each.items())) for each in rows.values()}) > 1:
                raise Wrong(f"a transaction of several databases is in some of them only: {rows}")

    # -- going on --------------------------------------------------------------------------------------------------

    def _go_on(self, point: "_Point", root: Path, boot: bytes, name: str, state: State) -> None:
        """More records, received or committed; a kill; a start; and compare."""
        expected = state
        pages = list(state.pages)
        following = self.oracle.following(name, state)
        with self._opened(root, boot) as store:
            database = store.databases[name]
            if following and point.chance.random() < 0.5:
                receiver = LogReceiver(database)
                while following and expected.position.txid < state.position.txid + 3:
                    expected = following[0]
                    receiver.feed(expected.record, 1 << 40)
                    following = self.oracle.following(name, expected)
                pages = list(expected.pages)
            elif state.page_size:
                fresh = _changed_page_one(pages[0])
                database.commit([(1, fresh)], len(pages), lambda: None)
                pages[0] = fresh
            position = database.position
        with self._opened(root, boot) as store:
            database = store.databases[name]
            if database.position != position:
                raise Wrong(f"{name} is at {database.position} after a restart, not at {position}")
            if not pages:
                return
            if database.file_path.read_bytes() != b"".join(pages):
                raise Wrong(f"{name} at {position} has other pages than were committed after the crash")
            with contextlib.closing(sqlite3.connect(database.file_path)) as connection:
                verdict = connection.execute("PRAGMA integrity_check").fetchall()
                if verdict != [("ok",)]:
                    raise Wrong(f"{name} at {position}: {verdict}")


@dataclass(slots=True)
class _Point:
    scratch: Path
    number: int
    step: int
    chance: random.Random

    def boot(self) -> bytes:
        return self.chance.randbytes(16)


def _image(model: Model, crash: Crash, chance: random.Random) -> Image:
    return model.after_kill() if crash.names is None else model.after_power_loss(crash.names, crash.data, chance)


def _difference(data: bytes, state: State) -> str:
    if len(data) != len(state.content):
        return f"has {len(data)} bytes, not {len(state.content)}"
    size = state.page_size
    wrong = [number + 1 for number, page in enumerate(state.pages) if data[number * size : (number + 1) * size] != page]
    return f"has other pages: {wrong[:20]}"


def _changed_page_one(page: bytes) -> bytes:
    """Page 1 with another user version (file format, 1.3.14), which nothing else depends on."""
    (value,) = struct.unpack_from(">I", page, 60)
    return page[:60] + struct.pack(">I", value ^ 1) + page[64:]
