"""The kernel's mounts, as a test has to see and to end them.

Knows /proc/self/mountinfo and the control file system of FUSE. Never touches a mount itself: it may not answer.
"""

import contextlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from litereplica.mount.bare import guard


def mounts_below(folder: Path) -> list[tuple[Path, int]]:
    """(mount point, minor number of its device) of everything mounted at or below ``folder``, the deepest first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        fields = line.split()
        where = fields[4].replace("\\040", " ")
        if where == str(folder) or where.startswith(f"{folder}/"):
            found.append((Path(where), int(fields[2].split(":")[1])))
    return sorted(found, key=lambda each: len(str(each[0])), reverse=True)


def is_mounted(point: Path) -> bool:
    return any(each == point for each, _ in mounts_below(point))


def abort(minor: int) -> None:
    """Make every request on a FUSE connection fail, also those that hang (Documentation/filesystems/fuse.rst)."""
    with tempfile.TemporaryDirectory(prefix="litereplica-fusectl-") as folder:
        subprocess.run(["mount", "-t", "fusectl", "none", folder], check=True, timeout=10)
        try:
            control = Path(folder) / str(minor) / "abort"
            if control.exists():
                control.write_text("1", encoding="ascii")
        finally:
            subprocess.run(["umount", folder], check=True, timeout=10)


def force_unmount(folder: Path) -> list[Path]:
    """Take away everything that is mounted below ``folder``; what it was."""
    taken = []
    while found := mounts_below(folder):
        point, minor = found[0]
        if minor:
            abort(minor)
        done = subprocess.run(["umount", "-l", str(point)], capture_output=True, text=True, timeout=10, check=False)
        # Its daemon may have been faster.
        assert not (done.returncode and is_mounted(point)), done.stderr
        taken.append(point)
    return taken


def processes_of_group(group: int) -> list[int]:
    """Process ids of a process group that have not ended (zombies have)."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            status = (entry / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        state, _parent, its_group = status.rpartition(")")[2].split()[:3]
        if int(its_group) == group and state != "Z":
            found.append(int(entry.name))
    return found


def take_away(folder: Path) -> None:
    """Remove a folder of nodes, with everything that is mounted in it; nodes guard their mount points (mount/bare)."""
    force_unmount(folder)
    for point in folder.glob("*/mount"):
        with contextlib.suppress(OSError):
            guard(point, guarded=False)
    shutil.rmtree(folder)
