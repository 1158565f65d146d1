"""Received log bytes become part of a database's log, record by record, verbatim.

Knows continuity: which record may follow which, and that its pages lead from one rolling checksum to the next. Does
not know where the bytes come from, or what is done about a record that does not fit.
"""

from litereplica.errors import Corrupt, Refused
from litereplica.ltx.checksum import page_checksum
from litereplica.ltx.decode import Event, PageBlock, RecordDecoder
from litereplica.ltx.format import RecordHeader, RecordTrailer
from litereplica.ltx.position import Position
from litereplica.store.database import Counted, Database


class Diverged(Refused):
    """A record does not continue this node's history of the database: a snapshot is needed."""


class LogReceiver:
    """Takes the log of one database in pieces of any size.

    Not counted yet are only records of the piece at hand and the beginning of one that is not whole: ``abort`` cuts it.
    """

    __slots__ = (
        "_checksum", "_database", "_decoder", "_done", "_entries", "_epoch", "_header", "_overlay", "_pending",
        "_position", "_records", "_whole",
    )  # fmt: skip

    def __init__(self, database: Database) -> None:
        self._database = database
        self._reset()

    def _reset(self) -> None:
        database = self._database
        self._decoder = RecordDecoder()
        # The history's end, including records of the piece at hand that are not counted yet.
        self._position = database.position
        self._epoch = database.epoch
        # The record at hand: its header, its (pgno, checksum) so far, the rolling checksum with them.
        self._header: RecordHeader | None = None
        self._entries: list[tuple[int, int]] = []
        self._checksum = 0
        # Page checksums of records that are not counted yet: newer than the database's table.
        self._overlay: dict[int, int] = {}
        self._records: list[Counted] = []
        # Bytes of an unfinished record that earlier pieces have appended; bytes of the piece at hand that are appended;
        # bytes of its whole records (the first one's earlier bytes included).
        self._pending = 0
        self._done = 0
        self._whole = 0

    def feed(self, data: bytes | memoryview, epoch: int) -> Position:
        """Append the next bytes of the log; answers the position of the last record that is now counted.

        ``epoch`` is the sender's: no record may be newer. Raises Diverged for a record that does not fit and Corrupt
        for damage, after counting what came before it, and OSError when the disk refuses. After any error nothing
        uncounted is left and the next bytes must be those after ``database.position``.
        """
        self._done = self._whole = 0
        try:
            events = self._decoder.feed(data)
            self._take(events, epoch, data)
            while self._decoder.more:
                self._take(self._decoder.feed(b""), epoch, data)
            self._decoder_is_whole()
            self._count(data, len(data))
        except (Corrupt, Refused):
            self._count(data, self._whole - self._pending)
            self.abort()
            raise
        except BaseException:
            self.abort()
            raise
        self._pending += len(data) - self._whole
        return self._database.position

    def abort(self) -> None:
        """Drop the beginning of a record whose rest will not come."""
        self._database.cut_uncounted()
        self._reset()

    def _take(self, events: list[Event], epoch: int, data: bytes | memoryview) -> None:
        table = self._database.checksums.table
        known = self._database.page_count
        overlay = self._overlay
        for event in events:
            if type(event) is PageBlock:
                checksum = self._checksum
                entries = self._entries
                for pgno, page in event.pages:
                    entry = page_checksum(pgno, page)
                    before = overlay.get(pgno)
                    if before is None:
                        before = table[pgno - 1] if pgno <= known else 0
                    checksum ^= entry ^ before
                    entries.append((pgno, entry))
                self._checksum = checksum
            elif type(event) is RecordHeader:
                if self._begin(event, epoch, data):
                    table = self._database.checksums.table
                    known = self._database.page_count
            else:
                assert type(event) is RecordTrailer
                self._end(event)

    def _decoder_is_whole(self) -> None:
        if self._decoder.failure is not None:
            raise self._decoder.failure

    def _begin(self, header: RecordHeader, epoch: int, data: bytes | memoryview) -> bool:
        """Check that the record follows; True when the database's table has changed meanwhile."""
        database = self._database
        position = self._position
        if header.database != database.name:
            raise Corrupt(f"a record of database {header.database!r} came as one of {database.name!r}")
        if header.min_txid != position.txid + 1 or header.max_txid != header.min_txid:
            raise Diverged(
                f"record {header.min_txid:016x} of {database.name} does not follow {position}: a snapshot is needed"
            )
        if header.pre_checksum != position.checksum:
            raise Diverged(
                f"record {header.min_txid:016x} of {database.name} continues {position.txid:016x}/"
                f"{header.pre_checksum:016x}, this node has {position}: a snapshot is needed"
            )
        if header.epoch > epoch:
            raise Corrupt(
                f"record {header.min_txid:016x} of {database.name} is of epoch {header.epoch}, its sender's is {epoch}"
            )
        if header.epoch < self._epoch:
            raise Diverged(
                f"record {header.min_txid:016x} of {database.name} is of epoch {header.epoch}, this node has records "
                f"of epoch {self._epoch}: a snapshot is needed"
            )
        counted = False
        pages_before, page_size = database.page_count, database.page_size
        if self._records:
            pages_before, page_size = self._records[-1].header.commit, self._records[-1].header.page_size
        if header.page_size != page_size and pages_before and header.commit:
            raise Diverged(
                f"record {header.min_txid:016x} of {database.name} has pages of {header.page_size} bytes, this node "
                f"has {page_size}: a snapshot is needed"
            )
        checksum = position.checksum
        if header.commit < pages_before:
            # Pages go away: their checksums are only known from the table, so that has to be current first.
            self._count(data, self._whole - self._pending)
            counted = True
            checksum ^= database.checksums.xor_range(header.commit + 1, database.page_count)
        self._header = header
        self._entries = []
        self._checksum = checksum
        return counted

    def _end(self, trailer: RecordTrailer) -> None:
        header = self._header
        assert header is not None
        if trailer.post_checksum != self._checksum:
            raise Diverged(
                f"record {header.min_txid:016x} of {self._database.name} leads to {trailer.post_checksum:016x}, "
                f"with this node's pages to {self._checksum:016x}: a snapshot is needed"
            )
        self._records.append(Counted(header, trailer, trailer.length, self._entries))
        self._overlay.update(self._entries)
        self._whole += trailer.length
        self._position = Position(header.max_txid, trailer.post_checksum)
        self._epoch = header.epoch
        self._header = None

    def _count(self, data: bytes | memoryview, end: int) -> None:
        """Append ``data`` up to ``end`` and count the whole records so far."""
        if end > self._done:
            self._database.append_bytes(data if end - self._done == len(data) else memoryview(data)[self._done : end])
            self._done = end
        if self._records:
            records = self._records
            self._records = []
            self._overlay.clear()
            self._database.count_records(records)
