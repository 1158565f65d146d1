"""Own transactions whose page 1 this node's files lack.

Knows why a replica's files may differ from its log in page 1 alone, from which record on, what that means for what the
database file is said to hold, and when what is laid over comes too late. Does not know how the page gets there
(node.follow), nor who compares (store.awaited).

The primary adds a counted page 1 to each transaction of a database in rollback mode (applier.journal_writer). So the
record of a transaction that was made here is not what the application here has written: its page 1 has another change
counter, and after a VACUUM another journal mode (mount.first_page). Nobody needs that one here: everybody reads through
a WAL, where SQLite does not look at the counter, whatever page 1 says of the mode. So such a
transaction is applied with its completion, the next one may follow at once, and page 1 is laid over later, by applying
the newest record again: page images, which change nothing else.

While some are unlaid, and why each of these is harmless:

- Every record from ``oldest`` to what is applied holds page 1. One of ours that does not is left to the applier, which
  gets it together with ``newest``, as it does one of another node.
- The database file may have a page 1 that is in no record: a checkpoint wrote it, and before that the log was made
  durable up to the transaction that it is of. So the base stays before that one, or a record before it that holds page
  1 (``base_for``): whoever begins at the base (redo at a start or a stop, a verification, a way back) finds the right
  page 1 in the log, also after a loss of power.
- A checkpoint of the applier says what it had applied when it began. Its WAL had the right page 1 of that; a later one
  in the file is of a later record, which is durable by the same rule.
- Another content, or a drop, takes the place of all this.

What is laid over may come too late: an application commits once more while the applier waits for its turn, and older
pages would lie over its newer ones. Both write under SQLite's write lock, so it is decided at the applier's first
write, in the mount: from the completion on all that the applier writes is refused (``is_overtaken``), until it has said
that the overlay failed. It says so of the overlay first: nothing that was sent after it is written before. It always
says what became of one (applier.backlog), or that it has let go of the database. As long as one is on its way, no
other one and no new content is sent, also after a promotion that failed, when nothing else counts as under way.

The node may become the primary while some are unlaid: an application may keep the lock, and its commit may be held
until this node leads. Then it is the other way round: the first transaction that is committed here takes this node's
page 1 into its record (mount.first_page), and what is on its way to lie over it is overtaken in the instant of the
promotion. Until that first one all of the above goes on to hold; ``firsts`` says which page 1 may be found here.
"""


class Unlaid:
    """``oldest``: TXID of the first of them; 0: there is none. ``newest``: of the last record so far with page 1.

    ``laying``: the TXID of what the applier was given to lay over and has not reported; 0: nothing. ``is_overtaken``:
    it must not come into the files any more. ``firsts``: checksums of page 1, one of which readers here find.
    """

    __slots__ = ("firsts", "is_overtaken", "laying", "newest", "oldest")

    def __init__(self) -> None:
        self.oldest = self.newest = self.laying = 0
        self.is_overtaken = False
        self.firsts: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        return self.oldest > 0

    @property
    def at_rest(self) -> bool:
        """Nothing is unlaid, and the applier is not about to write over what is there."""
        return not (self.oldest or self.laying)

    # -- what is unlaid --------------------------------------------------------------------------------------------

    def add(self, txid: int, before: int, own: int | None) -> None:
        """An own transaction is complete here but for page 1, which its record holds.

        ``own``: the checksum of the page 1 that it has written itself, if it has; ``before``: the log's before it.
        """
        if own is not None:
            self.firsts = frozenset((own,))
        elif not self.oldest:
            self.firsts = frozenset((before,))
        self.oldest = self.oldest or txid
        self.newest = txid

    def logged(self, txid: int) -> None:
        """A record that holds page 1 is counted, whosever it is: the applier has to come to it, or its maker."""
        if self.oldest:
            self.newest = txid

    def laid(self, txid: int) -> None:
        """The files have page 1 of ``txid``."""
        if txid >= self.newest:
            self.oldest = self.newest = 0
        elif self.oldest:
            self.oldest = max(self.oldest, txid + 1)

    def replaced(self) -> None:
        """The log has the page 1 of the files: the content is another one, or it was committed here."""
        self.oldest = self.newest = 0

    def base_for(self, txid: int) -> int:
        """What may be called wholly in the database file when a checkpoint has brought ``txid`` there."""
        return txid - 1 if 0 < self.oldest <= txid else txid

    # -- what is laid over them ------------------------------------------------------------------------------------

    def lay(self, txid: int, first: int) -> None:
        """The applier is given record ``txid`` again, the newest that is applied; ``first``: the log's page 1."""
        self.laying, self.is_overtaken = txid, False
        self.firsts |= {first}

    def overtake(self) -> None:
        """An application's transaction is in the files, or this node leads: what is to lie over them is too old."""
        self.is_overtaken = self.laying > 0

    def reported(self, txid: int) -> None:
        """The applier has said what became of ``txid``."""
        if 0 < self.laying <= txid:
            self.over()

    def over(self) -> None:
        """Nothing is on its way any more."""
        self.laying, self.is_overtaken = 0, False
