"""The model of what a crash leaves, by small traces."""

import random
from pathlib import Path
from typing import get_args

import pytest

from litereplica.store.disk import Disk
from tests.crash.model import Model, Names
from tests.crash.recording import RecordingDisk, Step
from tests.crash.surviving import Data

NAMES = get_args(Names)
DATA = get_args(Data)
TRIES = 300


def after(steps: list[Step]) -> Model:
    model = Model()
    for step in steps:
        model.apply_step(step)
    return model


def outcomes(steps: list[Step], names: Names, data: Data) -> set[tuple[tuple[str, bytes], ...]]:
    model, chance = after(steps), random.Random(1)
    found = (model.after_power_loss(names, data, chance).contents for _ in range(TRIES))
    return {tuple(sorted(each.items())) for each in found}


def content_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


CREATED: list[Step] = [["create", "one", 1, 5], ["write", 1, 0, b"x" * 8192, 5]]


def test_a_killed_process_loses_nothing() -> None:
    assert after(CREATED).after_kill().contents == {"one": b"x" * 8192}


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("data", DATA)
def test_what_was_synced_is_never_lost(names: Names, data: Data) -> None:
    steps = [*CREATED, ["sync", 1, 1], ["synced", 1], ["dirsync", 2, "."], ["dirsynced", 2]]
    assert outcomes(steps, names, data) == {(("one", b"x" * 8192),)}


def test_a_file_whose_name_was_not_synced_may_be_gone() -> None:
    steps = [*CREATED, ["sync", 1, 1], ["synced", 1]]
    assert outcomes(steps, "directories", "blocks") == {(), (("one", b"x" * 8192),)}


def test_blocks_of_an_unsynced_write_are_kept_one_by_one() -> None:
    steps = [*CREATED, ["dirsync", 2, "."], ["dirsynced", 2]]
    found = {dict(each)["one"] for each in outcomes(steps, "journal", "blocks")}
    assert {b"", b"x" * 8192, b"x" * 4096 + bytes(4096), bytes(4096) + b"x" * 4096} <= found


def test_a_sync_covers_only_what_was_written_before_it_began() -> None:
    steps = [["create", "one", 1, 5], ["sync", 1, 1], ["write", 1, 0, b"x", 6], ["synced", 1], ["dirsync", 2, "."],
             ["dirsynced", 2]]  # fmt: skip
    assert outcomes(steps, "journal", "nothing") == {(("one", b""),)}


def test_what_is_written_over_a_lost_truncate_is_lost_too() -> None:
    steps = [*CREATED, ["sync", 1, 1], ["synced", 1], ["dirsync", 2, "."], ["dirsynced", 2],
             ["truncate", 1, 0, 6], ["write", 1, 0, b"y" * 8192, 7]]  # fmt: skip
    for outcome in outcomes(steps, "journal", "blocks"):
        content = dict(outcome)["one"]
        assert not (b"x" in content and b"y" in content)


def test_a_journal_keeps_the_order_of_names() -> None:
    steps: list[Step] = [["mkdir", "d"], ["create", "d/one", 1, 5], ["create", "two", 2, 5], ["unlink", "d/one"]]
    found = {tuple(name for name, _ in each) for each in outcomes(steps, "journal", "blocks")}
    assert found == {(), ("d/one",), ("d/one", "two"), ("two",)}
    assert (("two", b""),) in outcomes(steps[:3], "any", "blocks")


@pytest.mark.parametrize("names", NAMES)
def test_a_rename_over_a_file_leaves_the_old_one_or_the_new_one(names: Names) -> None:
    steps = [*CREATED, ["sync", 1, 1], ["synced", 1], ["dirsync", 2, "."], ["dirsynced", 2],
             ["create", "new", 2, 5], ["write", 2, 0, b"new", 5], ["sync", 3, 2], ["synced", 3],
             ["rename", "new", "one"]]  # fmt: skip
    found = {dict(each)["one"] for each in outcomes(steps, names, "blocks")}
    assert found == {b"x" * 8192, b"new"}


def test_a_recorded_directory_is_built_again_as_it_is(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    steps: list[Step] = []
    disk: Disk = RecordingDisk(root, steps.append)
    disk.make_directories(root / "a" / "b")
    disk.write_file(root / "a" / "b" / "file", b"content")
    descriptor = disk.open(root / "mapped", 0o102)
    disk.allocate(descriptor, 0, 4096)
    mapped = disk.map(descriptor, 4096)
    mapped[8:16] = b"12345678"
    disk.link(root / "a" / "b" / "file", root / "second")
    mapped[16:24] = b"87654321"
    disk.pwrite(descriptor, b"end", 4000)
    disk.truncate(descriptor, 4001)
    disk.close(descriptor)
    mapped.close()
    disk.rename(root / "second", root / "a" / "third")
    built = after(steps).after_kill().build_in(tmp_path, "built")
    assert content_of(built) == content_of(root)
    assert (built / "a" / "third").samefile(built / "a" / "b" / "file")
