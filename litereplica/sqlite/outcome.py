"""How far the chain of a WAL reaches after a write.

Knows how to walk from one frame to the next, cutting off a transaction at each commit frame.
Does not know whether the write will be applied: nothing here changes the state that detector.py keeps.
"""

from typing import NamedTuple

from litereplica.errors import Corrupt
from litereplica.sqlite.chain import FRAME_HEADER, Chain, Read, Write, valid_frame
from litereplica.sqlite.frames import HELD_BYTES, FrameRun, Transaction
from litereplica.sqlite.wal import FRAME_HEADER_BYTES, WAL_HEADER_BYTES


class Examined:
    """What a write would bring about: ``transactions`` in commit order, and whether a new WAL header takes effect.

    With ``restart`` everything that was committed before is in the database file; ``transactions`` come after it.
    """

    __slots__ = ("restart", "transactions")

    def __init__(self, transactions: list[Transaction], restart: bool) -> None:  # noqa: FBT001 (hot path)
        self.transactions = transactions
        self.restart = restart


class Outcome(NamedTuple):
    """The state that a write leads to: the verified frames from ``first`` on, and what was committed on the way."""

    chain: Chain
    first: int
    run: FrameRun  # what stays open
    sums: tuple[int, int]  # the checksum after the last verified frame
    committed_sums: tuple[int, int]  # only with transactions or a restart
    transactions: list[Transaction]
    restart: bool
    written: int
    write: Write


def follow(
    chain: Chain,
    open_run: FrameRun | None,
    first: int,
    write: Write,
    *,
    written: int,
    limit: int,
    sums: tuple[int, int],
) -> Outcome:
    """Follow the chain from frame ``first`` in the file as it will be after ``write``.

    ``open_run`` has the open transaction's frames before ``first``, None under a new header; ``sums`` is the checksum
    before ``first``. Only frames that end at byte ``limit`` or before are looked at.
    """
    page_size = chain.header.page_size
    frame = first
    run = FrameRun(first, page_size)
    committed_sums = sums
    transactions: list[Transaction] = []
    held_bytes = 0
    while (end := WAL_HEADER_BYTES + (frame + 1) * chain.frame_bytes) <= limit:
        found = valid_frame(chain, write, end - chain.frame_bytes, sums)
        if found is None:
            break
        pgno, commit, sums, page = found
        held_bytes += page_size
        # One write may make a chain of any length valid: what is held of it stays bounded.
        run.append(pgno, *sums, page if held_bytes <= HELD_BYTES else None)
        frame += 1
        if commit:
            if open_run is not None and not transactions:
                whole = open_run.copy(first)
                whole.extend(run)
                run = whole
            transactions.append(Transaction(run, commit))
            committed_sums = sums
            run = FrameRun(frame, page_size)
    return Outcome(chain, first, run, sums, committed_sums, transactions, open_run is None, written, write)


def sums_after(chain: Chain, frames: int, read: Read) -> tuple[int, int]:
    """Checksum after the first ``frames`` frames of a file, which are committed. Raises Corrupt when they are not."""
    write, sums, commit = Write(0, b"", read), (chain.header.s0, chain.header.s1), 0
    for frame in range(frames):
        found = valid_frame(chain, write, WAL_HEADER_BYTES + frame * chain.frame_bytes, sums)
        if found is None:
            raise Corrupt(f"frame {frame + 1} of a WAL with {frames} committed frames is not valid")
        _, commit, sums, _ = found
    if frames and not commit:
        raise Corrupt(f"frame {frames} of a WAL is called the last of a transaction and is not")
    return sums


def sums_at(chain: Chain, frames: int, read: Read) -> tuple[int, int]:
    """As ``sums_after``, of frames that their writer has verified: the last of them says it itself. Raises Corrupt."""
    if not frames:
        return chain.header.s0, chain.header.s1
    head = read(WAL_HEADER_BYTES + (frames - 1) * chain.frame_bytes, FRAME_HEADER_BYTES)
    if len(head) < FRAME_HEADER_BYTES:
        raise Corrupt(f"a WAL with {frames} committed frames ends before the last of them")
    _, commit, salts, sum0, sum1 = FRAME_HEADER.unpack(head)
    if salts != chain.salts or not commit:
        raise Corrupt(f"frame {frames} of a WAL is called the last of a transaction and is not")
    return sum0, sum1
