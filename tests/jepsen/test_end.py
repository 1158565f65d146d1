"""A run that is told to end."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.nodes import ROOT
from tests.support.waiting import wait_until

LIMIT_S = 60.0
CODE = "import signal, os, sys\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nos.execv(sys.executable, sys.argv[1:])"
"""What a shell does with what it runs in the background."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_run_in_the_background_that_is_told_to_end_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    arguments = ["-m", "jepsen", "run", "--workload", "set", "--minutes", "5", "--out"]
    run = subprocess.Popen(
        [sys.executable, "-c", CODE, sys.executable, *arguments, tmp_path],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        wait_until(lambda: _clients(run.pid), "its clients run", LIMIT_S)
        run.send_signal(number)
        assert run.wait(LIMIT_S) != 0
    finally:
        run.kill()
        run.wait()
    assert not list(Path(tempfile.gettempdir()).glob(f"litereplica-field-{run.pid}-*"))
    spaces = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert f"lrfield{run.pid}-" not in spaces
    assert f"litereplica-field-{run.pid}-" not in Path("/proc/mounts").read_text()
    assert not _clients(run.pid)


def _clients(pid: int) -> list[int]:
    """Processes that write to its cluster."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = each.read_bytes()
        except OSError:
            continue
        if b"jepsen.client" in line and b"litereplica-field-%d-" % pid in line:
            found.append(int(each.parent.name))
    return found
