"""The checksum of one page, of which a database's rolling checksum is the XOR.

Knows the hash and its seed. Does not know which pages a database has: the sum over all of them,
the lock page left out, is kept by the store.
"""

from xxhash import xxh3_64_intdigest


def page_checksum(pgno: int, page: bytes | bytearray | memoryview) -> int:
    """xxh3_64 of ``page`` seeded with its number: equal pages at two numbers do not cancel in the XOR.

    ``pgno`` counts from 1; the answer is unsigned 64-bit.
    """
    return xxh3_64_intdigest(page, pgno)
