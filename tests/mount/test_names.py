"""Files and directories of a real mount, without SQLite."""

import errno
import os
import stat
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.support.nodes import Node
from tests.support.sql import make_database, run_sql
from tests.support.waiting import wait_until


def refused(code: int, call: Callable[[], object]) -> None:
    """The system call fails with this errno."""
    with pytest.raises(OSError, match=r".") as failure:
        call()
    assert failure.value.errno == code, failure.value


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_directories_are_made_listed_and_removed(node: Node) -> None:
    folder = node.mount / "one" / "two"
    folder.mkdir(parents=True)
    assert names(node.mount / "one") == {"two"}
    assert stat.S_ISDIR((node.mount / "one").stat().st_mode)
    refused(errno.EEXIST, folder.mkdir)
    refused(errno.ENOTEMPTY, (node.mount / "one").rmdir)
    folder.rmdir()
    (node.mount / "one").rmdir()
    refused(errno.ENOENT, lambda: names(node.mount / "one"))
    assert not (node.data / "files" / "one").exists()


def test_a_directory_of_thousands_is_listed_whole(node: Node) -> None:
    folder = node.mount / "many"
    folder.mkdir()
    wanted = {f"{number:05d}-{'x' * 60}" for number in range(2000)}
    for name in wanted:
        (folder / name).mkdir()
    listed = [entry.name for entry in folder.iterdir()]
    assert sorted(listed) == sorted(wanted)
    for name in wanted:
        (folder / name).rmdir()
    folder.rmdir()


def test_an_empty_directory_and_an_empty_file_can_be_renamed(node: Node) -> None:
    (node.mount / "old").mkdir()
    (node.mount / "old" / "empty.db").touch()
    (node.mount / "old").rename(node.mount / "new")
    assert names(node.mount / "new") == {"empty.db"}
    (node.mount / "new" / "empty.db").rename(node.mount / "new" / "other.db")
    assert names(node.mount / "new") == {"other.db"}
    make_database(node.mount / "new" / "other.db", rows=3)
    assert run_sql(node.mount / "new" / "other.db", "SELECT count(*) FROM t") == [(3,)]
    refused(errno.ENOENT, (node.mount / "old").stat)


def test_a_replicated_database_keeps_its_name_and_its_folder(node: Node) -> None:
    (node.mount / "kept").mkdir()
    database = node.mount / "kept" / "fixed.db"
    make_database(database, rows=2)
    refused(errno.EACCES, lambda: database.rename(node.mount / "kept" / "moved.db"))
    refused(errno.EACCES, lambda: (node.mount / "kept").rename(node.mount / "moved"))
    refused(errno.ENOTEMPTY, (node.mount / "kept").rmdir)
    assert run_sql(database, "SELECT count(*) FROM t") == [(2,)]
    assert len(node.log_lines("rename_refused")) == 2


def test_missing_and_existing_names_answer_as_posix_says(node: Node) -> None:
    missing, present = node.mount / "missing.db", node.mount / "present.db"
    refused(errno.ENOENT, missing.stat)
    refused(errno.ENOENT, missing.unlink)
    refused(errno.ENOENT, lambda: os.open(missing, os.O_RDONLY))
    present.touch()
    refused(errno.EEXIST, lambda: os.open(present, os.O_CREAT | os.O_EXCL | os.O_RDWR))
    refused(errno.ENOTDIR, lambda: list(present.iterdir()))
    refused(errno.ENAMETOOLONG, (node.mount / ("n" * 300)).touch)
    present.unlink()
    refused(errno.ENOENT, present.stat)
    present.touch()  # the kernel must not remember that it was missing
    assert present.stat().st_size == 0
    present.unlink()


def test_mode_owner_and_times_are_kept(node: Node) -> None:
    path = node.path("attributes.db")
    make_database(path)
    path.chmod(0o640)
    os.utime(path, ns=(1_000_000_000, 1_234_567_890_123_456_789))
    os.chown(path, 12, 34)
    found = path.stat()
    assert stat.S_IMODE(found.st_mode) == 0o640
    assert (found.st_uid, found.st_gid) == (12, 34)
    assert (found.st_atime_ns, found.st_mtime_ns) == (1_000_000_000, 1_234_567_890_123_456_789)
    behind = (node.data / "files" / "attributes.db").stat()
    assert (behind.st_mode, behind.st_uid, behind.st_mtime_ns) == (found.st_mode, 12, found.st_mtime_ns)


def test_free_space_is_that_of_the_data_directory(node: Node) -> None:
    ours, disk = os.statvfs(node.mount), os.statvfs(node.data)
    assert (ours.f_bsize, ours.f_frsize, ours.f_blocks) == (disk.f_bsize, disk.f_frsize, disk.f_blocks)
    assert ours.f_bavail == pytest.approx(disk.f_bavail, rel=0.2)
    assert ours.f_namemax == 255


@pytest.mark.parametrize("copy", ["cp", "shell", "append"])
def test_a_text_file_is_refused_with_one_line_and_nothing_of_it_stays(node: Node, tmp_path: Path, copy: str) -> None:
    source = tmp_path / "notes.txt"
    source.write_text("not a database\n" * 30_000, encoding="utf-8")
    target = node.mount / f"notes-{copy}.txt"
    command = {
        "cp": ["cp", str(source), str(target)],
        "shell": ["sh", "-c", f"echo hello > {target}"],
        "append": ["sh", "-c", f"cat {source} >> {target}"],
    }[copy]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode != 0
    assert "Permission denied" in done.stderr or copy == "shell"  # whose echo calls every error an I/O error
    (line,) = [line for line in node.log_lines("not_a_database") if target.name in line]
    assert "keep it outside the mount" in line
    wait_until(lambda: target.name not in names(node.mount), "nothing stays")
    assert not (node.data / "files" / target.name).exists()
    # The kernel is told of it a moment later.
    wait_until(lambda: not target.exists(), "the kernel has forgotten it")
    target.mkdir()  # the name is free
    target.rmdir()


def test_a_refused_file_that_becomes_a_database_while_it_is_open_stays(node: Node) -> None:
    path = node.path("second-thoughts.db")
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    refused(errno.EACCES, lambda: os.pwrite(descriptor, b"text", 0))
    make_database(path, rows=1)
    os.close(descriptor)
    assert run_sql(path, "SELECT count(*) FROM t") == [(1,)]


def test_links_pipes_and_devices_are_refused_each_with_a_line(node: Node) -> None:
    path = node.path("linked.db")
    make_database(path)
    before = len(node.log_lines("file_refused"))
    refused(errno.EACCES, lambda: (node.mount / "symbolic").symlink_to(path))
    refused(errno.EACCES, lambda: os.link(path, node.mount / "hard"))
    refused(errno.EACCES, lambda: os.mkfifo(node.mount / "pipe"))
    refused(errno.EACCES, lambda: os.mknod(node.mount / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3)))
    assert len(node.log_lines("file_refused")) == before + 4
    assert names(node.mount).isdisjoint({"symbolic", "hard", "pipe", "device"})


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_a_side_file_without_its_database_is_refused(node: Node, suffix: str) -> None:
    path = node.mount / f"nobody.db{suffix}"
    refused(errno.EACCES, path.touch)
    assert any(path.name in line for line in node.log_lines("file_refused"))
    refused(errno.ENOENT, path.stat)


@pytest.mark.parametrize("name", [".primary", "x.db-pos"])
def test_a_virtual_file_cannot_be_made(node: Node, name: str) -> None:
    refused(errno.EACCES, lambda: os.open(node.mount / name, os.O_CREAT | os.O_RDWR))


def test_a_virtual_file_cannot_be_written_or_removed(node: Node) -> None:
    make_database(node.path("virtual.db"))
    for name in (".lag", "virtual.db-pos"):
        refused(errno.EROFS, partial(os.open, node.mount / name, os.O_RDWR))
        refused(errno.EROFS, partial(os.truncate, node.mount / name, 0))
        refused(errno.EACCES, (node.mount / name).unlink)
    refused(errno.EINVAL, lambda: (node.mount / ".lag").rename(node.mount / "lag"))


def test_a_name_that_no_record_can_carry_is_refused_with_a_line(node: Node) -> None:
    name = os.fsencode(node.mount) + b"/\xff\xfe.db"
    refused(errno.EACCES, lambda: os.open(name, os.O_CREAT | os.O_RDWR))
    assert node.log_lines("file_refused")


def test_names_are_text_of_any_kind(node: Node) -> None:
    path = node.mount / "Datenbank für Überstunden 日本 %2F.db"
    make_database(path, rows=2)
    assert path.name in names(node.mount)
    assert (node.mount / f"{path.name}-pos").read_text(encoding="ascii").startswith("000000000000000")
    assert path.name in {each["name"] for each in node.status()["databases"]}
