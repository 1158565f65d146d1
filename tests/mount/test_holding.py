"""Requests that are held until something else happens must not keep that from being answered."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounts import force_unmount
from tests.support.nodes import ROOT
from tests.support.waiting import wait_until

# pyfuse3 stops reading at 99 tasks unless told otherwise.
HELD = 300

_WRITERS = """
import os, sys, threading
mount, count = sys.argv[1], int(sys.argv[2])
done = []
def write(number):
    with open(f"{mount}/held-{number}", "wb", buffering=0) as file:
        done.append(file.write(b"x"))
threads = [threading.Thread(target=write, args=(number,)) for number in range(count)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(done))
"""
_WRITE = "import sys; open(sys.argv[1], 'wb', buffering=0).write(b'x')"


@pytest.fixture
def holding() -> Iterator[Path]:
    """The mount of tests/mount/holding.py."""
    with tempfile.TemporaryDirectory(prefix="litereplica-test-") as folder:
        mount = Path(folder) / "mount"
        mount.mkdir()
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("holding.py")), str(mount)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            assert process.stdin is not None
            assert process.stdout.readline() == b"up\n"
            yield mount
        finally:
            force_unmount(Path(folder))
            process.kill()
            process.wait(20)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def threads_in_a_write(pid: int) -> int:
    """Threads of a process that the kernel has put to sleep in a FUSE request."""
    found = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        wchan = (task / "wchan").read_text(encoding="ascii")
        found += "fuse" in wchan or "request_wait_answer" in wchan
    return found


def test_hundreds_of_held_requests_do_not_keep_others_from_being_answered(holding: Path) -> None:
    writers = subprocess.Popen(
        [sys.executable, "-c", _WRITERS, str(holding), str(HELD)], stdout=subprocess.PIPE, text=True
    )
    try:
        wait_until(lambda: threads_in_a_write(writers.pid) >= HELD, f"{HELD} threads wait for their write")
        for name in ("free", "release"):
            subprocess.run([sys.executable, "-c", _WRITE, str(holding / name)], check=True, timeout=20)
        assert writers.wait(20) == 0
        assert writers.stdout is not None
        assert writers.stdout.read() == f"{HELD}\n"
    finally:
        writers.kill()
        writers.wait(20)
        if writers.stdout is not None:
            writers.stdout.close()
