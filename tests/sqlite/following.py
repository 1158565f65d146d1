"""A WAL file in memory that a CommitDetector follows, with SQLite's recovery rule as the oracle beside it."""

import struct
from dataclasses import dataclass, field

from litereplica.errors import Corrupt
from litereplica.sqlite.checksum import WalChecksum
from litereplica.sqlite.detector import CommitDetector, Rewind
from litereplica.sqlite.wal import WalHeader, parse_wal_header


@dataclass(frozen=True)
class Scan:
    """What recovery would find: valid frames, and of them the commits as (last frame, page count)."""

    header: WalHeader | None
    valid: int
    commits: tuple[tuple[int, int], ...]
    pgnos: tuple[int, ...]
    sums: tuple[int, int]

    @property
    def committed(self) -> int:
        return self.commits[-1][0] + 1 if self.commits else 0


def scan(data: bytes | bytearray) -> Scan:
    try:
        header = parse_wal_header(bytes(data[:32]))
    except Corrupt:
        return Scan(None, 0, (), (), (0, 0))
    checksum = WalChecksum(header.page_size, header.big_endian)
    sums = committed_sums = (header.s0, header.s1)
    commits, pgnos = [], []
    size = 24 + header.page_size
    for frame, start in enumerate(range(32, len(data) - size + 1, size)):
        pgno, commit, salt1, salt2, s0, s1 = struct.unpack_from(">6I", data, start)
        if (salt1, salt2) != (header.salt1, header.salt2) or pgno == 0:
            break
        sums = checksum.frame(bytes(data[start : start + 8]), bytes(data[start + 24 : start + size]), *sums)
        if sums != (s0, s1):
            break
        pgnos.append(pgno)
        if commit:
            commits.append((frame, commit))
            committed_sums = sums
    return Scan(header, len(pgnos), tuple(commits), tuple(pgnos), committed_sums)


@dataclass
class Followed:
    """Applies writes as the mount does and compares every answer with the oracle."""

    refuse_first: bool = False
    detector: CommitDetector = field(default_factory=CommitDetector)
    file: bytearray = field(default_factory=bytearray)
    commits: list[tuple[int, int]] = field(default_factory=list)
    restarts: int = 0
    rewinds: int = 0
    late: int = 0

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self.file[offset : offset + size])

    def after(self, offset: int, data: bytes) -> bytearray:
        new = bytearray(self.file)
        if len(new) < offset and data:
            new += bytes(offset - len(new))
        new[offset : offset + len(data)] = data
        return new

    def write(self, offset: int, data: bytes) -> None:
        detector = self.detector
        committed = detector.committed_frames
        new = self.after(offset, data)
        try:
            examined = detector.examine(offset, data, self.read)
        except Rewind:
            self.rewinds += 1
            assert committed > 0
            assert detector.header is not None
            end = 32 + committed * (24 + detector.header.page_size)
            assert new[:end] != self.file[:end]
            assert detector.committed_frames == committed
            return
        if examined is not None and self.refuse_first:
            known = (detector.header, committed, detector.verified_frames, detector.committed_checksum)
            commits = [transaction.commit for transaction in examined.transactions]
            detector.refuse()
            assert known == (detector.header, committed, detector.verified_frames, detector.committed_checksum)
            examined = detector.examine(offset, data, self.read)
            assert examined is not None
            assert [transaction.commit for transaction in examined.transactions] == commits
        expected = scan(new)
        if examined is not None:
            restarted = examined.restart
            self.restarts += restarted
            frame = 0 if restarted else committed
            header = expected.header
            assert header is not None
            size = 24 + header.page_size
            for transaction in examined.transactions:
                assert transaction.first_frame == frame
                assert (transaction.last_frame, transaction.commit) in expected.commits
                assert transaction.page_size == header.page_size
                newest = {expected.pgnos[i]: i for i in range(frame, transaction.last_frame + 1)}
                assert list(transaction.pages) == sorted(newest.items())
                pages = [
                    (pgno, bytes(new[32 + i * size + 24 : 32 + (i + 1) * size])) for pgno, i in sorted(newest.items())
                ]
                assert [(pgno, detector.page(i, self.read)) for pgno, i in transaction.pages] == pages
                assert transaction.small_pages in (None, pages)
                self.commits.append((transaction.last_frame, transaction.commit))
                frame = transaction.last_frame + 1
            detector.accept()
        self.file = new
        self._agree(expected)

    def _agree(self, expected: Scan) -> None:
        detector = self.detector
        assert detector.header == expected.header
        if (detector.committed_frames, detector.verified_frames) != (expected.committed, expected.valid):
            # Only old bytes that happen to be what the next piece will write may be noticed late.
            assert detector.unsettled
            assert detector.committed_frames < expected.valid
            self.late += 1
            if expected.committed != detector.committed_frames:
                settled = detector.settle(self.read)
                assert settled is not None
                assert settled.transactions[-1].last_frame + 1 == expected.committed
                detector.refuse()
            return
        assert detector.committed_checksum == (expected.sums if expected.header else (0, 0))

    def truncate(self, size: int) -> None:
        try:
            self.detector.truncate(size)
        except Rewind:
            self.rewinds += 1
            header = self.detector.header
            assert header is not None
            assert size < 32 + self.detector.committed_frames * (24 + header.page_size)
            return
        del self.file[size:]
        self.file += bytes(max(size - len(self.file), 0))
        if not self.detector.unsettled:
            self._agree(scan(self.file))

    def fail(self, offset: int, data: bytes, applied: int) -> None:
        """A write that examine answered with None, of which only ``applied`` bytes reached the file."""
        self.file = self.after(offset, data[:applied])
        self.detector.forget(offset)
