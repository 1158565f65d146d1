"""From our errors to the kernel's.

Knows the one translation at this edge. A refusal has been logged where it was decided.
"""

import errno

import pyfuse3

from litereplica.errors import Corrupt, LitereplicaError, Unavailable


def fuse_error(error: OSError | LitereplicaError) -> pyfuse3.FUSEError:
    """The errno that SQLite turns into the right result code: ENOSPC is SQLITE_FULL, anything else an I/O error."""
    if isinstance(error, OSError):
        return pyfuse3.FUSEError(error.errno or errno.EIO)
    if isinstance(error, Corrupt | Unavailable):
        return pyfuse3.FUSEError(errno.EIO)
    return pyfuse3.FUSEError(errno.EACCES)
