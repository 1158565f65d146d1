"""Received log bytes become part of a database's log, record by record, verbatim.

Knows continuity: which record may follow which. Does not know where the bytes come from, what is done about a record
that does not fit, or how its pages are proven (Database.count_records compares rolling checksums).
"""

from litereplica.errors import Corrupt, Refused
from litereplica.ltx.checksum import page_checksum
from litereplica.ltx.decode import Event, PageBlock, RecordDecoder
from litereplica.ltx.format import RecordHeader, RecordTrailer
from litereplica.ltx.position import Position
from litereplica.store.database import Counted, Database, journal_mode_of
from litereplica.store.install import end_install


class Diverged(Refused):
    """A record does not continue this node's history of the database: a snapshot is needed."""


class LogReceiver:
    """Takes the log of one database in pieces of any size.

    Not counted yet is only the beginning of a record that is not whole: ``abort`` cuts it.
    """

    __slots__ = (
        "_database", "_decoder", "_entries", "_epoch", "_header", "_journal_mode", "_page_count", "_page_size",
        "_pending", "_position", "_records", "_whole",
    )  # fmt: skip

    def __init__(self, database: Database) -> None:
        """Raises OSError when what an earlier one has left cannot be cut."""
        self._database = database
        self.abort()

    def _reset(self) -> None:
        database = self._database
        self._decoder = RecordDecoder()
        # The history's end, including records of the piece at hand that are not counted yet.
        self._position = database.position
        self._epoch = database.epoch
        self._page_size, self._page_count = database.page_size, database.page_count
        # What the newest page 1 says.
        self._journal_mode = database.journal_mode
        # The record at hand: its header, its (pgno, checksum) so far.
        self._header: RecordHeader | None = None
        self._entries: list[tuple[int, int]] = []
        self._records: list[Counted] = []
        # Bytes of an unfinished record that earlier pieces have appended; bytes of the whole records of this piece,
        # those of the first one included.
        self._pending = self._whole = 0

    def feed(self, data: bytes | memoryview, epoch: int) -> Position:
        """Append the next bytes of the log; answers the position of the last record that is now counted.

        ``epoch`` is the sender's: no record may be newer. Raises Diverged for a record that does not fit and Corrupt
        for damage, after counting what came before it, and OSError when the disk refuses. After any error nothing
        uncounted is left and the next bytes must be those after ``database.position``.
        """
        self._whole = 0
        try:
            try:
                self._take(data, epoch)
            except (Corrupt, Refused):
                self._count(data, self._whole - self._pending)
                raise
            self._count(data, len(data))
        except BaseException:
            self.abort()
            raise
        self._pending += len(data) - self._whole
        return self._database.position

    def abort(self) -> None:
        """Drop the beginning of a record whose rest will not come."""
        self._database.cut_uncounted()
        self._reset()

    def _take(self, data: bytes | memoryview, epoch: int) -> None:
        decoder = self._decoder
        self._take_events(decoder.feed(data), epoch)
        while decoder.more:
            self._take_events(decoder.feed(b""), epoch)
        if decoder.failure is not None:
            raise decoder.failure

    def _take_events(self, events: list[Event], epoch: int) -> None:
        for event in events:
            if type(event) is PageBlock:
                self._entries += [(pgno, page_checksum(pgno, page)) for pgno, page in event.pages]
                if event.pages[0][0] == 1:
                    self._journal_mode = journal_mode_of(event.pages[0][1])
            elif type(event) is RecordHeader:
                self._begin(event, epoch)
            else:
                assert type(event) is RecordTrailer
                self._end(event)

    def _begin(self, header: RecordHeader, epoch: int) -> None:
        name = self._database.name
        position = self._position
        if header.database != name:
            raise Corrupt(f"a record of database {header.database!r} came as one of {name!r}")
        if header.epoch > epoch:
            raise Corrupt(
                f"record {header.min_txid:016x} of {name} is of epoch {header.epoch}, its sender's is {epoch}"
            )
        what = f"record {header.min_txid:016x} of {name}"
        if header.min_txid != position.txid + 1 or header.max_txid != header.min_txid:
            raise Diverged(f"{what} does not follow {position}: a snapshot is needed")
        if header.pre_checksum != position.checksum:
            raise Diverged(
                f"{what} continues {position.txid:016x}/{header.pre_checksum:016x}, this node has {position}: "
                f"a snapshot is needed"
            )
        if header.epoch < self._epoch:
            raise Diverged(
                f"{what} is of epoch {header.epoch}, this node has records of epoch {self._epoch}: a snapshot is needed"
            )
        if header.page_size != self._page_size and self._page_count and not header.holds_every_page:
            raise Diverged(
                f"{what} has pages of {header.page_size} bytes and not all of them, this node has {self._page_size}: "
                f"a snapshot is needed"
            )
        self._header = header
        self._entries = []

    def _end(self, trailer: RecordTrailer) -> None:
        header = self._header
        assert header is not None
        self._records.append(Counted(header, trailer, trailer.length, self._entries))
        self._whole += trailer.length
        self._position = Position(header.max_txid, trailer.post_checksum)
        self._epoch = header.epoch
        self._page_size, self._page_count = header.page_size, header.commit
        self._header = None

    def _count(self, data: bytes | memoryview, end: int) -> None:
        """Append ``data`` up to ``end`` and count the whole records so far."""
        if end > 0:
            if self._database.install_failure is not None:
                end_install(self._database)
            self._database.append_bytes(data if end == len(data) else memoryview(data)[:end], self._records)
        if self._records:
            records = self._records
            self._records = []
            self._database.journal_mode = self._journal_mode
            try:
                self._database.count_records(records)
            except Corrupt as error:
                raise Diverged(f"{error.message}; a snapshot is needed") from None
