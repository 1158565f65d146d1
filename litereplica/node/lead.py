"""Life as the primary, beside the commits themselves (mount.files): what keeps them fast.

Knows when the kernel's copy of a WAL is worth completing. Does not know replicas (replication.server).

SQLite writes a frame as 24 bytes and a page, so that a page of the kernel's cache is only ever written in parts; the
kernel sends a write that touches a page it does not hold whole in two requests. Once the pages have been read, it
holds them whole, and a commit costs two requests instead of three. So when a WAL begins again from its start, the
applier, which may touch the mount, reads what was there.
"""

from typing import Final

from litereplica.applier.link import ApplierLink

# A WAL shorter than this gains nothing.
SMALLEST_BYTES: Final = 64 * 1024
# Beyond this the reading would take longer than the transactions that gain from it.
LARGEST_BYTES: Final = 64 * 1024 * 1024
# Its length differs a little from one time to the next; only real growth is worth reading it again.
GROWTH: Final = 1.25


class Warmer:
    """Asks the applier to read a WAL once for each length that it has grown to."""

    def __init__(self, link: ApplierLink) -> None:
        self._link = link
        self._warmed: dict[str, int] = {}

    def restarted(self, name: str, size_bytes: int) -> None:
        """The WAL of a database begins again; its file has ``size_bytes``."""
        size_bytes = min(size_bytes, LARGEST_BYTES)
        if size_bytes >= SMALLEST_BYTES and size_bytes > self._warmed.get(name, 0) * GROWTH:
            self._warmed[name] = size_bytes
            self._link.warm(name, size_bytes)

    def removed(self, name: str) -> None:
        """The WAL is gone: the kernel will hold nothing of the next one."""
        self._warmed.pop(name, None)
