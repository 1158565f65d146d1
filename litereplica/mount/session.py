"""Mounting and unmounting.

Knows what can be wrong with a mount point, and how a mount that a dead daemon left behind is taken away. Does not know
what is mounted (mount.operations). But for serving itself, all of it happens before or after the mount is served.
"""

import ctypes
import errno
import os
import subprocess
from pathlib import Path
from typing import Final

import pyfuse3
import structlog
import trio

from litereplica.errors import Refused, Unavailable
from litereplica.mount.bare import guard, reason
from litereplica.mount.operations import Operations
from litereplica.mount.point import real_point, refuse_link, refuse_together
from litereplica.mount.wait import IDLE_WORKERS, MAX_WORKERS, AdaptiveWait, install

log = structlog.get_logger()

FS_NAME: Final = "litereplica"
# A lazy unmount answers at once; more than this means that the machine is in trouble.
UNMOUNT_LIMIT_S: Final = 10.0
# Flags of the system call that takes a mount away.
MNT_FORCE: Final = 1
MNT_DETACH: Final = 2


def mounted_type(path: Path) -> str | None:
    """The file-system type mounted exactly at ``path``, which has no links (proc(5), /proc/self/mountinfo), or None."""
    found = None
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        where = (
            left.split()[4].replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
        )
        if where == str(path):
            found = right.split()[0]
    return found


def prepare_mount_point(path: Path, *, early: bool = False, data: Path | None = None) -> Path:
    """Check the mount point, and take away the mount of a dead daemon; its path without links.

    ``early``: leave that mount for now: as long as it is there, no application makes files in the bare directory.
    ``data``: the data directory, from which it has to be apart. Raises Refused with what to do.
    """
    if data is not None:
        refuse_together(path, data)
    path = real_point(path)
    kind = mounted_type(path)
    if kind is not None:
        if not kind.startswith("fuse") or not _is_dead(path):
            message = (
                f"mount point busy: {path} has a {kind} file system mounted: unmount it (umount {path}) or set "
                "mount.dir to another directory"
            )
            raise Refused(message)
        if early:
            return path
        log.warning("stale_mount_removed", path=str(path))
        unmount(path)
        return prepare_mount_point(path)
    try:
        _look_at(path)
    except OSError as error:
        message = (
            f"mount point {path} cannot be looked at ({error.strerror}): give this user the right to it, unmount what "
            "does not answer there (umount -l), or set mount.dir to an empty directory"
        )
        raise Refused(message) from error
    return path


def _look_at(path: Path) -> None:
    """At a mount point where nothing is mounted. Raises Refused, OSError."""
    refuse_link(path)
    if not path.exists():
        message = f"mount point missing: {path} does not exist: make it (mkdir -p {path}) or set mount.dir"
        raise Refused(message)
    if not path.is_dir():
        message = f"mount point {path} is not a directory: set mount.dir to an empty directory"
        raise Refused(message)
    if any(path.iterdir()):
        raise Refused(_not_empty(path))


def _not_empty(path: Path) -> str:
    return (
        f"mount point not empty: {path} holds files that the mount would hide: move them away or set "
        "mount.dir to an empty directory; mount.guard keeps applications from making any while no node runs"
    )


def _is_dead(path: Path) -> bool:
    try:
        # Not stat(): the kernel answers that from what it remembers of a dead daemon.
        os.statvfs(path)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def unmount(path: Path) -> None:
    """Take a mount away, whoever still holds files of it (umount2(2), MNT_DETACH)."""
    path = real_point(path)
    if mounted_type(path) is None:
        return  # somebody was faster
    if _umount2(path, MNT_DETACH):
        return
    try:
        subprocess.run(
            ["fusermount3", "-u", "-z", "--", str(path)],
            check=True,
            capture_output=True,
            timeout=UNMOUNT_LIMIT_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        message = f"{path} cannot be unmounted ({error}): unmount it by hand (umount -l {path})"
        raise Unavailable(message) from None


def abort(path: Path) -> None:
    """Have all requests of a mount of ours end with an error, and take it away; if that may be done (MNT_FORCE)."""
    path = real_point(path)
    kind = mounted_type(path)
    if kind is not None and kind.startswith("fuse"):
        _umount2(path, MNT_FORCE | MNT_DETACH)


def _umount2(path: Path, flags: int) -> bool:
    """The system call (umount2(2)): whether it was done."""
    return bool(ctypes.CDLL(None).umount2(os.fsencode(path), flags) == 0)


class Session:
    """One mount: ``open`` mounts, ``serve`` answers until it is cancelled, ``close`` ends what was never served too."""

    def __init__(self, operations: Operations, wait: AdaptiveWait) -> None:
        self._operations = operations
        self._wait = wait
        self._path: Path | None = None

    def open(self, path: Path, *, allow_other: bool, guarded: bool = False) -> None:
        """Mount; ``guarded``: also keep everybody from making files below the mount. Raises Refused with what to do."""
        if not Path("/dev/fuse").exists():
            message = (
                "/dev/fuse is missing: load the module (modprobe fuse), or give the container the device "
                "(--device /dev/fuse --cap-add SYS_ADMIN)"
            )
            raise Refused(message)
        path = prepare_mount_point(path)
        if guarded:
            self._guard(path)
        options = set(pyfuse3.default_options) | {f"fsname={FS_NAME}", f"subtype={FS_NAME}"}
        if allow_other:
            options.add("allow_other")
        install(self._wait)
        try:
            pyfuse3.init(self._operations, str(path), options)
        except RuntimeError as error:
            message = (
                f"{path} cannot be mounted ({error}): run as root, or install fuse3 and let this user read "
                f"/dev/fuse{' and set user_allow_other in /etc/fuse.conf' if allow_other else ''}"
            )
            raise Refused(message) from None
        self._path = path

    def _guard(self, path: Path) -> None:
        """As far as it can be done: it protects applications from themselves, and the mount works without."""
        try:
            guard(path)
        except OSError as error:
            log.warning("mount_point_not_guarded", path=str(path), reason=reason(error))
            return
        if any(path.iterdir()):
            # Made by an application since we looked; it can be moved away only while there is no guard.
            guard(path, guarded=False)
            raise Refused(_not_empty(path))

    async def serve(self) -> None:
        """Answer requests until the file system is unmounted or the task is cancelled; it is gone then.

        Not later: as long as the descriptor is open, who asked and was not answered waits, and SIGKILL does not end
        that wait. Somebody may wait for such a process (an exit is a request for each file that is open).
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._abort_when_cancelled)
                await pyfuse3.main(min_tasks=IDLE_WORKERS, max_tasks=MAX_WORKERS)
                nursery.cancel_scope.cancel()
        finally:
            self._end()

    async def _abort_when_cancelled(self) -> None:
        """A handler may wait for a thread that waits in the kernel for what another handler does not answer now."""
        try:
            await trio.sleep_forever()
        finally:
            if self._path is not None:
                abort(self._path)

    def _end(self) -> None:
        """Unmount, even while applications hold files: theirs then fail with ENOTCONN."""
        if self._path is None:
            return
        path, self._path = self._path, None
        try:
            unmount(path)
        finally:
            pyfuse3.close(unmount=False)

    def close(self) -> None:
        """Unmount if that is still to be done, and close the files behind it; twice is once."""
        self._end()
        self._operations.tree.close()
