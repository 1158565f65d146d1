"""What every database was after every transaction, and what had to be there at every moment of a trace.

Knows the log: each record that ever became whole in a segment, the states that the records lead to, and the
acknowledgements of the applications. Does not know crashes.
"""

import sqlite3
from bisect import bisect_right
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePath
from typing import Final
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from litereplica.errors import Corrupt, Refused
from litereplica.ltx.checksum import page_checksum
from litereplica.ltx.decode import Record, decode_record
from litereplica.ltx.position import Position
from litereplica.sqlite.pages import lock_page, parse_database_header
from tests.crash.model import Model
from tests.crash.recording import Step

Key = tuple[str, Position]
ACKS: Final = "acks"
MULTI: Final = "multi"


@dataclass(eq=False)
class State:
    """A database at a position; ``after`` is the state before the record that led here, ``step`` when it was logged."""

    position: Position
    page_size: int
    pages: tuple[bytes, ...]
    after: "State | None"
    step: int
    record: bytes = b""
    changed: Mapping[int, bytes] = field(default_factory=dict)

    @property
    def content(self) -> bytes:
        return b"".join(self.pages)

    @cached_property
    def checksums(self) -> NDArray[np.uint64]:
        # A snapshot without pages has no page size.
        locked = lock_page(self.page_size) if self.pages else 0
        entries = [0 if n == locked else page_checksum(n, page) for n, page in enumerate(self.pages, 1)]
        return np.array(entries, dtype=np.uint64)

    @cached_property
    def rows(self) -> dict[str, dict[int, int]]:
        """What applications have written to tell their transactions apart: table -> key -> highest number."""
        found: dict[str, dict[int, int]] = {ACKS: {}, MULTI: {}}
        if not self.pages:
            return found
        content = bytearray(self.content)
        # A database in memory has no WAL (sqlite3_deserialize).
        content[18:20] = b"\1\1"
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.deserialize(bytes(content))
            for table, rows in found.items():
                if connection.execute("SELECT 1 FROM sqlite_schema WHERE name = ?", (table,)).fetchall():
                    rows.update(connection.execute(f"SELECT writer, number FROM {table}").fetchall())
        return found

    @cached_property
    def verdict(self) -> str:
        """Of SQLite's integrity_check."""
        if not self.pages:
            return "ok"
        content = bytearray(self.content)
        content[18:20] = b"\1\1"
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.deserialize(bytes(content))
            return "; ".join(str(row[0]) for row in connection.execute("PRAGMA integrity_check"))


@dataclass
class _Following:
    """A segment as it grows: where each record that became whole in it begins, and its TXID."""

    starts: list[int] = field(default_factory=list)
    txids: list[int] = field(default_factory=list)
    end: int = 0


@dataclass
class Required:
    """For one database: steps in order, and the TXID that had to be there from that step on."""

    steps: list[int] = field(default_factory=list)
    txids: list[int] = field(default_factory=list)

    def raise_to(self, step: int, txid: int) -> None:
        if not self.txids or txid > self.txids[-1]:
            self.steps.append(step)
            self.txids.append(txid)

    def at(self, step: int) -> int:
        """What had to be there after the first ``step`` steps."""
        found = bisect_right(self.steps, step - 1)
        return self.txids[found - 1] if found else 0


@dataclass
class Tips:
    """For one database: steps in order, and the state at the log's end from that step on."""

    steps: list[int] = field(default_factory=list)
    states: list[State] = field(default_factory=list)

    def add(self, step: int, state: State) -> None:
        self.steps.append(step)
        self.states.append(state)

    def at(self, step: int) -> list[Position]:
        """The last two after the first ``step`` steps: a record becomes whole before it counts."""
        found = bisect_right(self.steps, step - 1)
        last = [each.position for each in self.states[max(0, found - 2) : found]]
        return last if found > 1 else [Position.ZERO, *last]


class Oracle:
    """Made by one walk over a trace. ``problems``: what was wrong already while nothing crashed."""

    def __init__(self, trace: list[Step]) -> None:
        self.states: dict[Key, State] = {}
        self.problems: list[str] = []
        self.killed: dict[str, Required] = {}
        self.powerless: dict[str, Required] = {}
        self._followed: dict[int, _Following] = {}
        self.tips: dict[str, Tips] = {}
        self._segments: set[int] = set()
        self._named: dict[int, str] = {}
        self._model = Model()
        for number, step in enumerate(trace):
            self._take(number, step)
        self.final = self._model

    @property
    def databases(self) -> set[str]:
        return {name for name, _ in self.states}

    def following(self, name: str, state: State) -> list[State]:
        """The states that were reached from ``state``, the next first."""
        return [each for (other, _), each in self.states.items() if other == name and each.after is state]

    def _take(self, number: int, step: Step) -> None:
        kind = step[0]
        model = self._model
        if kind == "rename" and PurePath(step[2]).name.startswith("install-"):
            self._take_install(number, step[1], PurePath(step[2]).name)
        model.apply_step(step)
        if kind == "start":
            for name, file, *_ in step[2]:
                self._note_segment(name, file)
        elif kind == "create":
            self._note_segment(step[1], step[2])
        elif kind == "rename" and step[2].endswith(".ltx"):
            # The log up to a common position, built aside (store.regain).
            self._note_segment(step[2], dict(model.walk())[step[2]])
        elif kind == "write" and step[1] in self._segments:
            self._follow(number, step[1])
        elif kind == "truncate" and step[1] in self._followed:
            self._cut(number, step[1], step[2])
        elif kind == "ack":
            self._acknowledge(number, *step[1:])

    def _note_segment(self, name: str, file: int) -> None:
        if name.startswith("db/") and name.endswith(".ltx") and file not in self._segments:
            self._segments.add(file)
            self._followed[file] = _Following()
            self._follow(0, file)

    def _cut(self, number: int, file: int, size: int) -> None:
        found = self._followed[file]
        name = self._named.get(file)
        while found.end > size:
            found.end, txid = found.starts.pop(), found.txids.pop()
            if name is None or self._is_moved(file, name, txid):
                continue
            before = self.tips[name].states[-1].after
            if before is not None:
                self.tips[name].add(number, before)

    def _is_moved(self, file: int, name: str, txid: int) -> bool:
        """The record is in another segment by now (Log._move_uncounted)."""
        return any(
            txid in each.txids
            for other, each in self._followed.items()
            if other != file and self._named.get(other) == name
        )

    def _follow(self, number: int, file: int) -> None:
        found = self._followed[file]
        content = self._model.files[file].current
        while len(content) - found.end > 64:
            try:
                record = decode_record(memoryview(content), found.end)
            except (Corrupt, Refused):
                return
            self._named[file] = record.header.database
            self._add(number, record, bytes(content[found.end : found.end + record.length]))
            found.starts.append(found.end)
            found.txids.append(record.header.max_txid)
            found.end += record.length

    def _add(self, number: int, record: Record, raw: bytes) -> None:
        header = record.header
        name = header.database
        position = Position(header.max_txid, record.trailer.post_checksum)
        known = self.states.get((name, position))
        if known is not None:
            self._tip(number, name, known)
            return
        before = self.states.get((name, Position(header.min_txid - 1, header.pre_checksum)))
        if before is None:
            before = State(Position(header.min_txid - 1, header.pre_checksum), 0, (), None, number)
            if before.position != Position.ZERO:
                self.problems.append(f"step {number}: {name} {position} continues {before.position}, unknown")
        fresh = {pgno: bytes(page) for pgno, page in record.pages}
        old = before.pages
        empty = bytes(header.page_size)
        locked = lock_page(header.page_size)
        pages = []
        for pgno in range(1, header.commit + 1):
            page = fresh.get(pgno)
            if page is None:
                if pgno > len(old) or len(old[pgno - 1]) != header.page_size:
                    if pgno != locked:
                        self.problems.append(f"step {number}: {name} {position} lacks page {pgno}")
                    page = empty
                else:
                    page = old[pgno - 1]
            pages.append(page)
        self._keep(name, State(position, header.page_size, tuple(pages), before, number, raw, fresh))

    def _keep(self, name: str, state: State) -> None:
        checksum = int(np.bitwise_xor.reduce(state.checksums)) if state.pages else 0
        if checksum != state.position.checksum:
            self.problems.append(f"{name} {state.position}: its pages have {checksum:016x}")
        elif state.verdict != "ok":
            self.problems.append(f"{name} {state.position}: {state.verdict[:200]}")
        self.states[name, state.position] = state
        self._tip(state.step, name, state)

    def _tip(self, number: int, name: str, state: State) -> None:
        tips = self.tips.setdefault(name, Tips())
        # A start writes again what may not be durable.
        if not tips.states or state.position.txid > tips.states[-1].position.txid or state.record == b"":
            tips.add(number, state)

    def _take_install(self, number: int, source: str, target: str) -> None:
        model = self._model
        file = dict(model.walk())[source]
        txid, checksum = (int(part, 16) for part in target.removeprefix("install-").split("-"))
        content = bytes(model.files[file].current)
        name = unquote(PurePath(source).parent.name)
        position = Position(txid, checksum)
        known = self.states.get((name, position))
        if known is not None:
            # Back to where it has been.
            self.tips.setdefault(name, Tips()).add(number, known)
            return
        size = parse_database_header(content[:100]).page_size if content else 0
        pages = tuple(content[at : at + size] for at in range(0, len(content), size)) if size else ()
        self._keep(name, State(position, size, pages, None, number))

    def _acknowledge(self, number: int, names: list[str], table: str, writer: int, value: int, durable: bool) -> None:
        """A COMMIT has returned: the row is in the log's last state; the first state that has it had to be there."""
        for name in names:
            tips = self.tips.get(name)
            tip = tips.states[-1] if tips is not None else None
            if tip is None or tip.rows[table].get(writer, 0) < value:
                self.problems.append(f"step {number}: {name} acknowledged {table} {writer}={value}, the log lacks it")
                continue
            state = tip
            while state.after is not None and state.after.rows[table].get(writer, 0) >= value:
                state = state.after
            txid = state.position.txid
            self.killed.setdefault(name, Required()).raise_to(number, txid)
            if durable:
                self.powerless.setdefault(name, Required()).raise_to(number, txid)
