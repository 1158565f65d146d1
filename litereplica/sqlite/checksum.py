"""The WAL's cumulative checksum (SQLite file-format document, section 4.2).

Knows the recurrence ``s0 += x[i] + s1; s1 += x[i+1] + s0`` over 32-bit words, and computes it as a dot product.
Does not know what the words mean: frames and headers are wal.py's.

Why a dot product: the recurrence is linear modulo 2^32. One step multiplies (s0, s1) by ((1,1),(1,2)), whose powers
are Fibonacci numbers, so the word that is k words before the end counts F(k) times in s0 and F(k+1) times in s1
(F(0)=0 for the last word). numpy's unsigned 32-bit products wrap around exactly as the recurrence does.
"""

import struct
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]
Bytes = bytes | bytearray | memoryview

_LARGEST_PAGE = 65536
_FRAME_HEADER_BYTES = 24
_MASK = 0xFFFFFFFF
# Longer input is taken in pieces, so that the tables stay small.
_PIECE_WORDS = _LARGEST_PAGE // 4
_WORD_TYPES: Final = {False: np.dtype("<u4"), True: np.dtype(">u4")}


@cache
def _fibonacci() -> Words:
    """F(0) … F(n) modulo 2^32, n covering the largest page and a frame header."""
    count = (_LARGEST_PAGE + _FRAME_HEADER_BYTES) // 4 + 2
    numbers = np.empty(count, np.uint32)
    previous, number = 1, 0
    for index in range(count):
        numbers[index] = number
        previous, number = number, (previous + number) & _MASK
    return numbers


@cache
def _weights(words: int) -> Words:
    """Return the two rows of weights, shape (2, words), for a run of ``words`` (an even number) words."""
    fibonacci = _fibonacci()
    return np.ascontiguousarray(np.vstack((fibonacci[:words][::-1], fibonacci[1 : words + 1][::-1])))


@cache
def _start_weights(words: int) -> tuple[int, int, int]:
    """F(words-1), F(words), F(words+1): what the checksum before the run counts for after it."""
    fibonacci = _fibonacci()
    return int(fibonacci[words - 1]), int(fibonacci[words]), int(fibonacci[words + 1])


@cache
def _frame_weights(page_size: int) -> Words:
    """Return weights for a whole frame: its bytes 8..23 (salts and the checksum itself) count nothing."""
    words = 2 + page_size // 4
    weights = _weights(words)
    nothing = np.zeros((2, 4), np.uint32)
    return np.ascontiguousarray(np.hstack((weights[:, :2], nothing, weights[:, 2:])))


class WalChecksum:
    """The checksum of frames of one page size and byte order; the tables are shared between instances.

    ``page_size`` in bytes (512 … 65536); ``big_endian`` says how the words of the input are read.
    """

    __slots__ = ("_dot_frame", "_dot_page", "_frame_start", "_page_start", "_pair", "_type")

    def __init__(self, page_size: int, big_endian: bool) -> None:  # noqa: FBT001 (the contract's positional order)
        assert page_size % 8 == 0, page_size
        words = page_size // 4
        self._type = _WORD_TYPES[big_endian]
        self._pair = struct.Struct(">II" if big_endian else "<II")
        self._dot_page = _weights(words).dot
        self._dot_frame = _frame_weights(page_size).dot
        self._page_start = _start_weights(words)
        self._frame_start = _start_weights(words + 2)

    def frame(self, header8: bytes, page: Bytes, s0: int, s1: int) -> tuple[int, int]:
        """Return the checksum after a frame: ``header8`` is its pgno and commit fields, ``page`` exactly one page."""
        first, second = self._pair.unpack(header8)
        s0 = (s0 + first + s1) & _MASK
        s1 = (s1 + second + s0) & _MASK
        sum0, sum1 = self._dot_page(np.frombuffer(page, self._type)).tolist()
        before, middle, after = self._page_start
        return (sum0 + before * s0 + middle * s1) & _MASK, (sum1 + middle * s0 + after * s1) & _MASK

    def whole_frame(self, frame: Bytes, s0: int, s1: int) -> tuple[int, int]:
        """Return the checksum after ``frame``, its 24 header bytes and its page in one buffer: the fastest form."""
        sum0, sum1 = self._dot_frame(np.frombuffer(frame, self._type)).tolist()
        before, middle, after = self._frame_start
        return (sum0 + before * s0 + middle * s1) & _MASK, (sum1 + middle * s0 + after * s1) & _MASK


def checksum_words(
    data: Bytes,
    s0: int,
    s1: int,
    big_endian: bool,  # noqa: FBT001 (the contract's positional order)
) -> tuple[int, int]:
    """Return the checksum after ``data``, any number of pairs of 32-bit words (a multiple of 8 bytes)."""
    assert len(data) % 8 == 0, len(data)
    words = np.frombuffer(data, _WORD_TYPES[big_endian])
    for start in range(0, len(words), _PIECE_WORDS):
        piece = words[start : start + _PIECE_WORDS]
        sum0, sum1 = _weights(len(piece)).dot(piece).tolist()
        before, middle, after = _start_weights(len(piece))
        s0, s1 = (sum0 + before * s0 + middle * s1) & _MASK, (sum1 + middle * s0 + after * s1) & _MASK
    return s0, s1
