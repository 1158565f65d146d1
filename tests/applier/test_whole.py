"""A read that the kernel cuts short is not the end of the file."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from litereplica.applier.whole import read_all, read_exactly, write_all

CONTENT = bytes(range(256)) * 64


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "file").write_bytes(CONTENT)
    opened = os.open(tmp_path / "file", os.O_RDWR)
    yield opened
    os.close(opened)


def cut_short(monkeypatch: pytest.MonkeyPatch, then: Callable[[], None]) -> None:
    """The first call that is about more than a page gives the first page; the next one is ``then``."""
    calls = 0
    pread = os.pread

    def short(descriptor: int, size: int, offset: int) -> bytes:
        nonlocal calls
        calls += 1
        if calls == 2:
            then()
        return pread(descriptor, min(size, 4096), offset)

    monkeypatch.setattr(os, "pread", short)


def test_the_rest_is_asked_for(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_short(monkeypatch, lambda: None)
    assert read_all(descriptor, 10_000, 100) == CONTENT[100:10_100]
    assert read_exactly(descriptor, 10_000, 100) == CONTENT[100:10_100]


@pytest.mark.parametrize("read", [read_all, read_exactly])
def test_why_it_was_cut_short_is_raised(
    descriptor: int, monkeypatch: pytest.MonkeyPatch, read: Callable[[int, int, int], bytes]
) -> None:
    def fail() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    cut_short(monkeypatch, fail)
    with pytest.raises(OSError, match="Input/output error"):
        read(descriptor, 10_000, 100)


def test_the_end_of_the_file_is_the_end(descriptor: int) -> None:
    assert read_all(descriptor, 1000, len(CONTENT) - 10) == CONTENT[-10:]
    assert read_all(descriptor, 1000, len(CONTENT)) == b""
    with pytest.raises(OSError, match="ends 990 bytes before byte 17374") as found:
        read_exactly(descriptor, 1000, len(CONTENT) - 10)
    assert found.value.errno == errno.EIO


def test_everything_is_written(descriptor: int) -> None:
    write_all(descriptor, b"x" * 3_000_000, 5)
    assert read_exactly(descriptor, 3_000_005, 0) == CONTENT[:5] + b"x" * 3_000_000
