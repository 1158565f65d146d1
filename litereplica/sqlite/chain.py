"""One WAL's checksum chain, and the file as a write would leave it.

Knows when a frame is valid (file-format document, section 4.1: salts of the header, checksum over everything before).
Does not know which frames were valid before, nor what is committed: detector.py follows that.
"""

import struct
from collections.abc import Callable
from typing import NamedTuple

from litereplica.sqlite.checksum import WalChecksum
from litereplica.sqlite.wal import FRAME_HEADER_BYTES, WalHeader

# (offset, size) -> the file's present bytes, fewer at its end.
Read = Callable[[int, int], bytes]

# pgno, commit, both salts, s0, s1
FRAME_HEADER = struct.Struct(">II8sII")


class Chain:
    """What a WAL header fixes for the frames after it."""

    __slots__ = ("checksum", "encoded", "frame_bytes", "header", "salts")

    def __init__(self, header: WalHeader) -> None:
        self.header = header
        self.encoded = header.encode()
        self.salts = self.encoded[16:24]
        self.frame_bytes = FRAME_HEADER_BYTES + header.page_size
        self.checksum = WalChecksum(header.page_size, header.big_endian).whole_frame


class Write(NamedTuple):
    """A write that is not in the file yet, and the file as it will be with it."""

    offset: int
    data: bytes
    read: Read

    @property
    def end(self) -> int:
        """Offset of the byte after the write."""
        return self.offset + len(self.data)

    def after(self, start: int, size: int) -> bytes:
        """Return bytes of the file after the write; fewer at the file's end."""
        data = self.data
        place = self.offset - start
        if place <= 0 and size <= place + len(data):
            return data[-place : size - place]
        old = self.read(start, size)
        if place >= size or place + len(data) <= 0 or not data:
            return old
        new = bytearray(old)
        part = data[max(-place, 0) : size - place]
        place = max(place, 0)
        new += bytes(max(place - len(new), 0))  # the kernel fills a hole before a write with zeros
        new[place : place + len(part)] = part
        return bytes(new)


def valid_frame(
    chain: Chain, write: Write, start: int, sums: tuple[int, int]
) -> tuple[int, int, tuple[int, int], bytes] | None:
    """Return (pgno, commit, checksum after it, page) of the frame at ``start``, None when it is not valid.

    ``sums`` is the checksum before it. The salts are compared first: a stale frame costs no checksum.
    """
    head = write.after(start, FRAME_HEADER_BYTES)
    if len(head) < FRAME_HEADER_BYTES:
        return None
    pgno, commit, salts, sum0, sum1 = FRAME_HEADER.unpack(head)
    if salts != chain.salts or not pgno:
        return None
    page = write.after(start + FRAME_HEADER_BYTES, chain.header.page_size)
    if len(page) < chain.header.page_size or chain.checksum(head + page, *sums) != (sum0, sum1):
        return None
    return pgno, commit, (sum0, sum1), page
