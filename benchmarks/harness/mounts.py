"""Which mounts there are, asked without touching them: a call on the mount of a dead daemon may hang or fail.

Source: proc(5), /proc/PID/mountinfo.
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path

UNMOUNT_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo."""

    directory: Path
    type: str
    source: str


def mounts() -> list[Mount]:
    """All mounts of this process's namespace, in the order in which they were made."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        directory = before.split()[4].encode().decode("unicode_escape")  # spaces are written as \040
        kind, source = after.split()[:2]
        found.append(Mount(Path(directory), kind, source))
    return found


def is_mounted(directory: Path) -> bool:
    return any(mount.directory == directory for mount in mounts())


def mounts_below(directory: Path) -> list[Path]:
    return [mount.directory for mount in mounts() if mount.directory.is_relative_to(directory)]


def filesystem_of(directory: Path) -> str:
    """The type of the file system that a directory is on."""
    holders = [mount for mount in mounts() if directory.is_relative_to(mount.directory)]
    return max(holders, key=lambda mount: len(mount.directory.parts)).type


def unmount_below(directory: Path) -> list[Path]:
    """Detaches what is mounted below a directory, whoever serves it; what is still mounted afterwards."""
    for mounted in reversed(mounts_below(directory)):
        subprocess.run(["umount", "-l", mounted], check=False, timeout=UNMOUNT_LIMIT_S, capture_output=True)
    return mounts_below(directory)
