"""The -shm of a database, mapped.

Knows how to map it and how to make it longer the way SQLite does. Does not know what is in it: sqlite/shm.py does.

Not Python's mmap module: its objects hold a duplicate of the descriptor, and closing that would drop every POSIX lock
that the SQLite connection in this process has on the file (fcntl(2)). mmap(2) itself keeps none.
"""

import ctypes
import mmap
import os
from typing import Final

from litereplica.sqlite.shm import BLOCK_BYTES, split_blocks

# Of address space, mapped ahead of the file's end so that growing seldom needs a new mapping; it costs no memory.
_MAPPED_BLOCKS: Final = 32
_SYSTEM_PAGE_BYTES: Final = 4096

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
)  # fmt: skip
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_FAILED: Final = ctypes.c_void_p(-1).value


class SharedMemory:
    """The mapped wal-index behind ``descriptor`` (kept by the caller). ``blocks`` of 32 KiB, as long as the file is.

    ``blocks`` must not be kept across ``reach`` or ``close``: they are views of memory that may be unmapped then.
    """

    __slots__ = ("_address", "_descriptor", "_mapped_bytes", "blocks")

    def __init__(self, descriptor: int) -> None:
        """Map what is there, at least one block; OSError."""
        self._descriptor = descriptor
        self._address = 0
        self._mapped_bytes = 0
        self.blocks: list[memoryview] = []
        self.reach(max(1, os.fstat(descriptor).st_size // BLOCK_BYTES))

    def reach(self, blocks: int) -> None:
        """Have at least so many blocks; a caller that holds SQLite's WRITE lock, as only a writer makes it longer."""
        if blocks <= len(self.blocks):
            return
        wanted_bytes = blocks * BLOCK_BYTES
        # One byte into each page, as unixShmMap does: a disk that is full is then met here and not as a SIGBUS.
        for page_end in range(os.fstat(self._descriptor).st_size, wanted_bytes, _SYSTEM_PAGE_BYTES):
            os.pwrite(self._descriptor, b"\0", (page_end | _SYSTEM_PAGE_BYTES - 1))
        if wanted_bytes > self._mapped_bytes:
            self._map(max(2 * wanted_bytes, _MAPPED_BLOCKS * BLOCK_BYTES))
        whole = (ctypes.c_char * wanted_bytes).from_address(self._address)
        self.blocks = split_blocks(memoryview(whole))

    def close(self) -> None:
        """Unmap; the descriptor stays open."""
        self.blocks = []
        if self._address:
            _libc.munmap(self._address, self._mapped_bytes)
            self._address = self._mapped_bytes = 0

    def _map(self, length_bytes: int) -> None:
        """Raises OSError; then what is mapped stays."""
        address = _libc.mmap(None, length_bytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, self._descriptor, 0)
        if address is None or address == _FAILED:
            error = ctypes.get_errno()
            raise OSError(error, f"mapping the shared memory file failed: {os.strerror(error)}")
        self.close()
        self._address = address
        self._mapped_bytes = length_bytes
