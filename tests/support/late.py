"""An application that stands still after each call of one kind: in the middle of its COMMIT, say."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.sql import Session
from tests.support.waiting import wait_until


@contextlib.contextmanager
def late(session: Session, call: str, late_s: float, log: Path) -> Iterator[None]:
    """The application goes on only that long after each such call was done."""
    tracer = subprocess.Popen(
        ["strace", "-f", "-qq", "-o", str(log), "-e", f"trace={call}", "-p", str(session.pid),
         "-e", f"inject={call}:delay_exit={late_s * 1_000_000:.0f}"],
        stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        status = Path(f"/proc/{session.pid}/status")
        wait_until(lambda: "TracerPid:\t0\n" not in status.read_text(), "it is traced", 10)
        yield
    finally:
        tracer.terminate()
        tracer.wait(10)
        assert tracer.stderr is not None
        tracer.stderr.close()
