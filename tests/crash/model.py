"""A data directory as a trace of its changes builds it, and what a crash at any step may leave of it.

Knows files (what was synced, what was changed since), names (which changes a directory fsync covers), and the rules of
POSIX and ext4 for what is lost with the power. Does not know what is in the files.

A killed process loses nothing. A power loss keeps, of each file, what the last sync covered, and of the changes since
then nothing, all, a beginning, single writes, or single blocks of 4 KiB (``Data``); of the names (``Names``):

- ``journal``: a beginning of all changes in order, at least up to the last directory fsync of any directory: ext4;
- ``directories``: for each directory a beginning of its own changes (a rename between two belongs to both);
- ``any``: every change that was not synced is kept or lost by itself. Stricter than any real file system.
"""

import os
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import xxhash

from tests.crash.recording import Step
from tests.crash.surviving import Change, Data, apply, survive

Names = Literal["journal", "directories", "any"]
ROOT: Final = 0
Entries = dict[str, int]


@dataclass(slots=True)
class File:
    """``current``: what the process sees; ``durable``: what a sync covered; ``pending``: the changes in between.

    ``folded``: changes that were taken from ``pending`` so far, so that a sync can say which ones it covers.
    """

    current: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    pending: list[Change] = field(default_factory=list)
    folded: int = 0
    mtime_ns: int = 0
    durable_mtime_ns: int = 0

    def change(self, change: Change) -> None:
        apply(self.current, change)
        self.pending.append(change)
        if change.mtime_ns:
            self.mtime_ns = change.mtime_ns

    def sync(self, until: int) -> None:
        """What was changed before the ``until``-th change is durable."""
        count = until - self.folded
        if count <= 0:
            return
        if count == len(self.pending) and len(self.durable) < 65536:
            self.durable[:] = self.current
        else:
            for change in self.pending[:count]:
                apply(self.durable, change)
        times = [change.mtime_ns for change in self.pending[:count] if change.mtime_ns]
        self.durable_mtime_ns = times[-1] if times else self.durable_mtime_ns
        del self.pending[:count]
        self.folded = until


@dataclass(slots=True)
class NameChange:
    """One atomic change of names: entries set (None: removed) in one or two directories."""

    entries: list[tuple[int, str, int | None]]
    durable: bool = False

    @property
    def directories(self) -> set[int]:
        return {directory for directory, _, _ in self.entries}


class Model:
    """``apply_step`` goes on by one step of a trace."""

    def __init__(self) -> None:
        self.files: dict[int, File] = {}
        self.names: dict[int, Entries] = {ROOT: {}}
        self.durable_names: dict[int, Entries] = {ROOT: {}}
        self.boot = b""
        self._directory_number = 0
        self._pending: list[NameChange] = []
        # Changes up to here (an index into ``_pending``) were made before the last directory fsync of any directory.
        self._journal = 0
        self._base = 0
        self._syncs: dict[int, tuple[File, int]] = {}
        self._directory_syncs: dict[int, tuple[int, int]] = {}

    # -- going on --------------------------------------------------------------------------------------------------

    def apply_step(self, step: Step) -> None:
        """Steps that applications wrote change nothing."""
        action = getattr(self, f"_do_{step[0]}", None)
        if action is not None:
            action(*step[1:])

    def _do_start(self, boot: bytes, files: list[list[object]], directories: list[str]) -> None:
        """Another process goes on; what it finds must be what the one before it has left."""
        self.boot = boot
        known = dict(self.walk())
        found = {str(name) for name, *_ in files}
        assert found == set(known), f"names changed behind the disk's back: {found ^ set(known)}"
        assert set(directories) == set(self.walk_directories())
        for name, number, digest, mtime_ns in files:
            assert isinstance(name, str)
            assert isinstance(number, int)
            assert isinstance(mtime_ns, int)
            old = known[name]
            file = self.files[old]
            assert xxhash.xxh3_64_intdigest(file.current) == digest, f"{name} was changed behind the disk's back"
            file.mtime_ns = mtime_ns
            self.files[number] = file

    def _do_create(self, name: str, number: int, mtime_ns: int) -> None:
        self.files[number] = File(mtime_ns=mtime_ns, durable_mtime_ns=mtime_ns)
        self._rename([(*self._place(name), number)])

    def _do_write(self, number: int, offset: int, data: bytes, mtime_ns: int) -> None:
        self.files[number].change(Change("write", offset, len(data), data, mtime_ns))

    def _do_zero(self, number: int, offset: int, size: int, mtime_ns: int) -> None:
        self.files[number].change(Change("write", offset, size, bytes(size), mtime_ns))

    def _do_truncate(self, number: int, size: int, mtime_ns: int) -> None:
        self.files[number].change(Change("truncate", size, 0, b"", mtime_ns))

    def _do_allocate(self, number: int, size: int, mtime_ns: int) -> None:
        self.files[number].change(Change("grow", size, 0, b"", mtime_ns))

    def _do_stores(self, number: int, stores: Iterable[tuple[int, bytes]]) -> None:
        file = self.files[number]
        for offset, data in stores:
            file.change(Change("store", offset, len(data), data, 0))

    def _do_rename(self, old: str, new: str) -> None:
        directory, last = self._place(old)
        number = self.names[directory][last]
        self._rename([(directory, last, None), (*self._place(new), number)])

    def _do_link(self, old: str, new: str) -> None:
        directory, last = self._place(old)
        self._rename([(*self._place(new), self.names[directory][last])])

    def _do_unlink(self, name: str) -> None:
        self._rename([(*self._place(name), None)])

    def _do_mkdir(self, name: str) -> None:
        self._directory_number -= 1
        self.names[self._directory_number] = {}
        self._rename([(*self._place(name), self._directory_number)])

    def _do_rmdir(self, name: str) -> None:
        self._rename([(*self._place(name), None)])

    def _do_sync(self, token: int, number: int) -> None:
        file = self.files[number]
        self._syncs[token] = (file, file.folded + len(file.pending))

    def _do_synced(self, token: int) -> None:
        file, until = self._syncs.pop(token)
        file.sync(until)

    def _do_dirsync(self, token: int, name: str) -> None:
        self._directory_syncs[token] = (self._directory(name), self._base + len(self._pending))

    def _do_dirsynced(self, token: int) -> None:
        directory, until = self._directory_syncs.pop(token)
        self._journal = max(self._journal, until)
        reached = {directory}
        for change in reversed(self._pending[: until - self._base]):
            # Earlier changes of a directory that a rename has touched come with it.
            if change.directories & reached:
                change.durable = True
                reached |= change.directories
        while self._pending and self._pending[0].durable:
            _set(self.durable_names, self._pending.pop(0))
            self._base += 1

    def _do_content(self, name: str, content: bytes, mtime_ns: int) -> None:
        """SQLite itself has written the file, durably."""
        directory, last = self._place(name)
        number = self.names[directory].get(last)
        if number is None:
            # Numbers of the trace begin far beyond.
            number = max((each for each in self.files if each < 1 << 30), default=0) + 1
            self.files[number] = File()
            self._rename([(directory, last, number)])
        file = self.files[number]
        file.change(Change("truncate", 0, 0, b"", mtime_ns))
        file.change(Change("write", 0, len(content), content, mtime_ns))
        file.sync(file.folded + len(file.pending))

    def _do_mapped(self, name: str, content: bytes) -> None:
        """What a mapped file has when a process begins: the last stores of the one before it were not seen."""
        directory, last = self._place(name)
        file = self.files[self.names[directory][last]]
        if file.current != content:
            file.change(Change("write", 0, len(content), content, 0))

    def _rename(self, entries: list[tuple[int, str, int | None]]) -> None:
        change = NameChange(entries)
        _set(self.names, change)
        self._pending.append(change)

    def _directory(self, name: str) -> int:
        number = ROOT
        for part in Path(name).parts:
            number = self.names[number][part]
        return number

    def _place(self, name: str) -> tuple[int, str]:
        path = Path(name)
        return self._directory(str(path.parent)), path.name

    # -- looking ---------------------------------------------------------------------------------------------------

    def walk(self) -> Iterable[tuple[str, int]]:
        """(path, file) of every file."""
        return ((name, number) for name, number in _walk(self.names) if number > 0)

    def walk_directories(self) -> list[str]:
        return [name for name, number in _walk(self.names) if number < 0]

    # -- crashes ---------------------------------------------------------------------------------------------------

    def after_kill(self) -> "Image":
        """What a killed process leaves: everything."""
        kept = {number: (bytes(self.files[number].current), self.files[number].mtime_ns) for _, number in self.walk()}
        return Image(self.names, kept)

    def after_power_loss(self, names: Names, data: Data, chance: random.Random) -> "Image":
        """What may be left when the power goes now."""
        left = self._names_left(names, data, chance)
        kept: dict[int, tuple[bytes, int]] = {}
        for _, number in _walk(left):
            if number > 0 and number not in kept:
                file = self.files[number]
                content = survive(file.durable, file.current, file.pending, data, chance)
                times = [file.durable_mtime_ns, file.mtime_ns]
                kept[number] = content, times[0] if data == "nothing" else chance.choice(times)
        return Image(left, kept)

    def _names_left(self, names: Names, data: Data, chance: random.Random) -> dict[int, Entries]:
        left = {number: dict(entries) for number, entries in self.durable_names.items()}
        pending = self._pending
        least = max(0, self._journal - self._base)
        if names == "journal":
            count = {"nothing": least, "all": len(pending)}.get(data, chance.randint(least, len(pending)))
            chosen = pending[:count]
        else:
            share = {"nothing": 0.0, "all": 1.0}.get(data, chance.choice([0.1, 0.5, 0.9]))
            chosen = []
            lost: set[int] = set()
            for change in pending:
                is_kept = change.durable or (chance.random() < share and not change.directories & lost)
                if is_kept:
                    chosen.append(change)
                elif names == "directories":
                    lost |= change.directories
        for number in self.names:
            left.setdefault(number, {})
        for change in chosen:
            _set(left, change)
        return left


@dataclass(slots=True)
class Image:
    """What is on the disk after a crash: names, and content and time of change of each file."""

    names: dict[int, Entries]
    files: dict[int, tuple[bytes, int]]

    @property
    def contents(self) -> dict[str, bytes]:
        """Path -> bytes of every file."""
        return {name: self.files[number][0] for name, number in _walk(self.names) if number > 0}

    def build_in(self, folder: Path, last: str) -> Path:
        """Write it to a new folder."""
        root = folder / last
        root.mkdir()
        made: dict[int, Path] = {}
        for name, number in _walk(self.names):
            path = root / name
            if number < 0:
                path.mkdir()
            elif number in made:
                path.hardlink_to(made[number])
            else:
                content, mtime_ns = self.files[number]
                _write(path, content, mtime_ns)
                made[number] = path
        return root

    def model(self) -> Model:
        """The same as a model in which everything is durable, to go on from."""
        model = Model()
        model.names = {number: dict(entries) for number, entries in self.names.items()}
        model.durable_names = {number: dict(entries) for number, entries in self.names.items()}
        model._directory_number = min(self.names)
        for number, (content, mtime_ns) in self.files.items():
            model.files[number] = File(
                bytearray(content), bytearray(content), mtime_ns=mtime_ns, durable_mtime_ns=mtime_ns
            )
        return model


def _write(path: Path, content: bytes, mtime_ns: int) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        # Zeroes that were written ahead need not be written here.
        end = len(content.rstrip(b"\0"))
        if end:
            os.pwrite(descriptor, content[:end], 0)
        if end != len(content):
            os.ftruncate(descriptor, len(content))
        os.utime(descriptor, ns=(mtime_ns, mtime_ns))
    finally:
        os.close(descriptor)


def _set(names: dict[int, Entries], change: NameChange) -> None:
    for directory, last, number in change.entries:
        entries = names.setdefault(directory, {})
        if number is None:
            entries.pop(last, None)
        else:
            entries[last] = number
            if number < 0:
                names.setdefault(number, {})


def _walk(names: dict[int, Entries], directory: int = ROOT, prefix: str = "") -> Iterable[tuple[str, int]]:
    """(path, number) of everything, a directory before what is in it."""
    for last, number in sorted(names[directory].items()):
        yield prefix + last, number
        if number < 0:
            yield from _walk(names, number, f"{prefix}{last}/")
