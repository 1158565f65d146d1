"""The files that only the mount has: ``.primary``, ``.lag``, ``DB-pos``, in LiteFS's formats, and ``DB-halt``.

Knows their content and their times. Does not know inodes.
"""

import errno

import pyfuse3

from litereplica.mount.access import UNKNOWN_LAG_MS, Access
from litereplica.mount.tree import Kind
from litereplica.store.store import Store


def content(kind: Kind, stem: str, store: Store, access: Access) -> tuple[bytes, int] | None:
    """(bytes, modified time in ns) of a virtual file; None when it does not exist now."""
    if kind is Kind.PRIMARY:
        if access.primary or not access.primary_name:
            return None
        return f"{access.primary_name}\n".encode(), 0
    if kind is Kind.LAG:
        lag_ms = 0 if access.primary else min(access.lag_ms(), UNKNOWN_LAG_MS)
        return f"{lag_ms:+010d}\n".encode(), 0
    database = store.get(stem)
    if database is None or not database.exists:
        return None
    if kind is Kind.HALT:
        return access.halt_text(stem).encode(), 0
    assert kind is Kind.POSITION, kind
    return f"{database.position}\n".encode(), database.timestamp_ms * 1_000_000


class VirtualHandle:
    """The content of a virtual file as it was when opened."""

    __slots__ = ("_content",)

    def __init__(self, data: bytes) -> None:
        self._content = data

    async def read(self, offset: int, size: int) -> bytes:
        return self._content[offset : offset + size]

    async def write_request(self, offset: int, data: bytes) -> int:  # noqa: ARG002  every handle's form
        raise pyfuse3.FUSEError(errno.EROFS)

    async def sync(self) -> None:
        """Nothing to make durable."""
