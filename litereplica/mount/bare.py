"""The folder below a mount, when nothing is mounted there: no application makes files in it that a mount would hide.

Knows the inode flag for it (ioctl_iflags(2), FS_IMMUTABLE_FL: nobody, root neither, makes or removes names in such a
directory; mounting over it is no change of it). Does not know what is mounted, or when.
"""

import array
import errno
import fcntl
import os
from pathlib import Path
from typing import Final

FS_IOC_GETFLAGS: Final = 0x80086601
FS_IOC_SETFLAGS: Final = 0x40086602
FS_IMMUTABLE_FL: Final = 0x10


def guard(path: Path, *, guarded: bool = True) -> None:
    """Keep everybody from making files in a directory, from now on and for good; or no longer. Twice is once.

    By hand it is ``chattr +i`` and ``chattr -i``. OSError: the file system does not have this flag, or we may not set
    it (CAP_LINUX_IMMUTABLE).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # The kernel reads and writes an int, whatever the numbers of the requests say.
        flags = array.array("i", [0])
        fcntl.ioctl(descriptor, FS_IOC_GETFLAGS, flags)
        if bool(flags[0] & FS_IMMUTABLE_FL) != guarded:
            flags[0] ^= FS_IMMUTABLE_FL
            fcntl.ioctl(descriptor, FS_IOC_SETFLAGS, flags)
    finally:
        os.close(descriptor)


def reason(error: OSError) -> str:
    """Why a directory could not be guarded, and what to do."""
    if error.errno in {errno.EPERM, errno.EACCES}:
        return "it takes root, and in a container CAP_LINUX_IMMUTABLE (--cap-add LINUX_IMMUTABLE)"
    if error.errno in {errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL}:
        return "its file system has no immutable directories: have the mount point on ext4, XFS or Btrfs"
    return str(error)
