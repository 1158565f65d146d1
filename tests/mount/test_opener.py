"""What is to be known of a thread that opened a file, and of one that is hidden."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from litereplica.mount.opener import has_ended, has_signal, process_of
from tests.support.waiting import wait_until


def dead() -> int:
    """The id of a process that was."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_who_is_there_and_who_is_not() -> None:
    assert (has_ended(os.getpid()), has_signal(os.getpid())) == (False, False)
    gone = dead()
    assert (has_ended(gone), has_signal(gone)) == (True, True)


def test_one_of_another_namespace_is_neither_dead_nor_alive() -> None:
    assert (has_ended(0), has_signal(0)) == (None, None)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.ENOENT])
def test_one_that_is_hidden_in_proc_is_neither_unless_it_is_gone(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(path: Path) -> bytes:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert (has_ended(os.getpid()), has_signal(os.getpid())) == (None, None)
    if number == errno.ENOENT:
        gone = dead()
        assert (has_ended(gone), has_signal(gone)) == (True, True)


def test_a_thread_is_of_its_process() -> None:
    found: list[int] = []

    def look() -> None:
        found.extend((threading.get_native_id(), process_of(threading.get_native_id())))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found[0] != os.getpid() == found[1]
    wait_until(lambda: has_ended(found[0]), "the kernel has let go of the thread")
    assert process_of(found[0]) == found[0]
    assert process_of(0) == 0


def test_a_process_goes_on_without_its_first_thread() -> None:
    """In C a program may end that one (pthread_exit in main) and work in others."""
    program = (
        "import ctypes, sys, threading\n"
        "def work():\n"
        "    print('works', flush=True)\n"
        "    sys.stdin.read()\n"
        "threading.Thread(target=work).start()\n"
        "ctypes.CDLL(None).pthread_exit(None)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"works\n"
        state = Path(f"/proc/{process.pid}/stat")
        wait_until(lambda: state.read_bytes().rpartition(b")")[2].split()[0] == b"Z", "the first thread has ended")
        assert has_ended(process.pid) is False
        process.kill()
        wait_until(lambda: has_ended(process.pid), "the process has ended")
