"""What the kernel says of a tree of processes: memory, processor time, wake-ups.

Sources: proc(5) for smaps_rollup, schedstat (first field: nanoseconds on a processor) and the context switch counts of
/proc/PID/task/TID/status. A thread that sleeps until something wakes it up switches once voluntarily, so the sum of the
switches over an idle while counts its wake-ups.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.processes import tree_of


@dataclass(frozen=True, slots=True)
class Memory:
    """Of a process tree. PSS shares pages out among their users, RSS counts them for each."""

    pss_bytes: int
    rss_bytes: int


def memory_of(root: int) -> Memory:
    pss = rss = 0
    for pid in tree_of(root):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
                name, value = line.split()[:2]
                pss += int(value) * 1024 if name == "Pss:" else 0
                rss += int(value) * 1024 if name == "Rss:" else 0
    return Memory(pss, rss)


@dataclass(frozen=True, slots=True)
class Activity:
    """Since its start, of every thread of a process tree: (nanoseconds on a processor, context switches)."""

    threads: dict[int, tuple[int, int]]

    def since(self, before: "Activity") -> tuple[float, int]:
        """Seconds on a processor and context switches; threads that have ended meanwhile are not counted."""
        time_ns = switches = 0
        for thread, (now_ns, now_switches) in self.threads.items():
            then_ns, then_switches = before.threads.get(thread, (0, 0))
            time_ns += now_ns - then_ns
            switches += now_switches - then_switches
        return time_ns / 1e9, switches


def activity_of(root: int) -> Activity:
    threads = {}
    for pid in tree_of(root):
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                time_ns = int((task / "schedstat").read_text().split()[0])
                switches = sum(
                    int(line.split()[1])
                    for line in (task / "status").read_text().splitlines()
                    if line.startswith(("voluntary_ctxt_switches", "nonvoluntary_ctxt_switches"))
                )
                threads[int(task.name)] = (time_ns, switches)
    return Activity(threads)
