"""The facts about the machine that a figure means nothing without."""

import datetime as dt
import os
import platform
import sqlite3
from pathlib import Path

from benchmarks.harness.mounts import filesystem_of


def facts(folder: Path) -> dict[str, object]:
    """For the head of the report; `folder` is on the disk that is measured."""
    processor = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "time": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "processor": processor,
        "memory_gb": round(memory_bytes / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "filesystem": filesystem_of(folder),
        "load_before": list(os.getloadavg()),
    }
