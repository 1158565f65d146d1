"""From our errors to the kernel's.

Knows the one translation at this edge. A refusal has been logged where it was decided.
"""

import errno

import pyfuse3
import structlog

from litereplica.errors import Corrupt, LitereplicaError, Unavailable

log = structlog.get_logger()


def fuse_error(error: OSError | LitereplicaError) -> pyfuse3.FUSEError:
    """The errno that SQLite turns into the right result code: ENOSPC is SQLITE_FULL, anything else an I/O error."""
    if isinstance(error, OSError):
        return pyfuse3.FUSEError(error.errno or errno.EIO)
    if isinstance(error, Corrupt | Unavailable):
        return pyfuse3.FUSEError(errno.EIO)
    return pyfuse3.FUSEError(errno.EACCES)


def translate(error: BaseException, request: str) -> BaseException:
    """What to raise instead of ``error``: the kernel's form; a bug is logged; cancellation passes."""
    if isinstance(error, pyfuse3.FUSEError) or not isinstance(error, Exception):
        return error
    if isinstance(error, OSError | LitereplicaError):
        return fuse_error(error)
    log.error("request_failed", request=request, exc_info=error)
    return pyfuse3.FUSEError(errno.EIO)
