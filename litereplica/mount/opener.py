"""Who opened a file: what is to be known of a thread that the kernel named.

Knows proc(5), and that a thread may be hidden: the kernel names 0 for one that the daemon's PID namespace does not have
(the daemon is in another container), and a daemon that is not root sees nothing of others' where /proc is mounted with
hidepid. Does not know what follows from it: a hidden thread is neither dead nor alive.
"""

import os
from pathlib import Path
from typing import Final

PF_EXITING: Final = 4


def has_ended(task_id: int) -> bool | None:
    """Whether the thread is gone, or about to go with all others of its process. None: it is hidden.

    The first thread of a process may end long before the others. When a process ends, the kernel lets go of its files
    only after each thread is marked (do_exit: PF_EXITING, then exit_files).
    """
    is_exiting = _is_exiting(task_id)
    return all(_is_exiting(other) for other in _threads_of(task_id)) if is_exiting else is_exiting


def _is_exiting(task_id: int) -> bool | None:
    """By proc(5), stat: flags; also when it is gone. None: it is hidden."""
    try:
        status = _read(task_id, "stat")
    except ProcessLookupError:
        return True
    return None if status is None else bool(int(status.rpartition(b")")[2].split()[6]) & PF_EXITING)


def _threads_of(task_id: int) -> list[int]:
    """All threads of the same process that are to be seen."""
    try:
        return [int(each.name) for each in Path(f"/proc/{task_id}/task").iterdir()]
    except OSError:
        return []


def process_of(task_id: int) -> int:
    """The process that the thread is of: that outlives it. The thread itself where that is not to be known."""
    try:
        status = _read(task_id, "status")
    except ProcessLookupError:
        status = None
    _, _, rest = (status or b"").partition(b"\nTgid:\t")
    return int(rest.split(b"\n", 1)[0]) if rest else task_id


def has_signal(task_id: int) -> bool | None:
    """Whether a signal waits for the thread, which cannot take it while its call waits; or it is gone. None: hidden."""
    try:
        status = _read(task_id, "status")
    except ProcessLookupError:
        return True
    if status is None:
        return None
    masks = dict(line.split(b":\t", 1) for line in status.splitlines() if line.startswith((b"Sig", b"ShdPnd")))
    pending = int(masks[b"SigPnd"], 16) | int(masks[b"ShdPnd"], 16)
    return bool(pending & ~int(masks[b"SigBlk"], 16))


def _read(task_id: int, name: str) -> bytes | None:
    """A file of the thread's in /proc; None when it is hidden. Raises ProcessLookupError when the thread is gone."""
    if not task_id:
        return None
    try:
        return Path(f"/proc/{task_id}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        # With hidepid=2 others' are as if they were not there; a signal that is none tells which it is.
        try:
            os.kill(task_id, 0)
        except ProcessLookupError:
            raise
        except OSError:
            return None
        return None
    except OSError:
        return None
