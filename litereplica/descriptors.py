"""How many files this process may have open.

Knows the limits of the system. Does not know who needs how many.
"""

import contextlib
import resource


def raise_descriptor_limit() -> int:
    """Use what the system allows, and return it: a shell's limit is often 1,024.

    A database takes three descriptors in the daemon and more in its applier, a client of the proxy two, and a node may
    have thousands of either.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
