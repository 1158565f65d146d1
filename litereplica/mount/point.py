"""Where a mount point really is, however it is called.

Knows symbolic links in its path: the kernel's list of mounts has the path without them. Does not know what is mounted.
Never follows the last component, which may be the mount of a dead daemon.
"""

import os
import stat
from pathlib import Path

from litereplica.errors import Refused


def real_point(path: Path) -> Path:
    """The path without links above its last component."""
    path = Path(os.path.abspath(path))  # noqa: PTH100  a resolve() would touch a dead mount
    return Path(os.path.realpath(path.parent)) / path.name


def refuse_link(point: Path) -> None:
    """Raise Refused, with what to do, when the mount point is itself a link. OSError when it cannot be looked at.

    The mount would be where it points to, and be lost sight of when somebody points it elsewhere.
    """
    try:
        if not stat.S_ISLNK(point.lstat().st_mode):
            return
    except FileNotFoundError:
        return
    target = os.path.realpath(point)
    message = (
        f"mount point {point} is a symbolic link to {target}: set mount.dir to {target}, or put a directory in the "
        "link's place"
    )
    raise Refused(message)


def refuse_together(mount: Path, data: Path) -> None:
    """Raise Refused, with what to do, when the mount point lies in the data directory or holds it, links and all."""
    point, files = real_point(mount), Path(os.path.realpath(data))
    if point.is_relative_to(files) or files.is_relative_to(point):
        message = (
            f"mount.dir ({mount}, which is {point}) and data.dir ({data}, which is {files}) must be apart: set one of "
            "them to a directory outside the other"
        )
        raise Refused(message)
