"""What the daemon is told by its applier.

Knows the calls and what each means. Does not know the messages (protocol.py), nor what a node does about them.
"""

from typing import Protocol


class ApplierEvents(Protocol):
    """What the node is told. Each is called on the event loop and must not block."""

    def on_applied(self, database: str, txid: int) -> None:
        """Every reader that begins now sees ``txid``. Called once for each span up to there that was to be applied."""

    def on_checkpointed(self, database: str, txid: int, *, truncated: bool) -> None:
        """Everything up to ``txid`` is in the database file (not synced); ``truncated``: the WAL begins anew."""

    def on_failed(self, database: str, txid: int, reason: str, *, retry: bool) -> None:
        """The records from ``txid`` on were not applied; ``retry``: sending them again (after a while) may succeed."""

    def on_closed(self, database: str) -> None:
        """What was sent before ``close_database`` is over; lost with a child that dies (``on_restarted``).

        Of the last one: what was sent between two is over as well.
        """

    def on_released(self, database: str, salt1: int, salt2: int, frames: int) -> None:
        """The applier has let go of it; ``frames`` of the -wal with these salts are committed (0, 0, 0: none)."""

    def on_release_failed(self, database: str, reason: str) -> None:
        """The applier has it still, because it could not learn what is committed; ``release`` may be asked again."""

    def on_locked(self, database: str) -> None:
        """No application writes, or can begin to, until ``unlock``; lost with a child that dies (``on_restarted``)."""

    def on_lock_refused(self, database: str, holder: str) -> None:
        """``holder`` ("process 123 (python3)") kept SQLite's write lock all the while; nothing is locked."""

    def on_committed(self, database: str, number: int) -> None:
        """``commit``'s record is the database's next transaction: its commit point was answered with success."""

    def on_commit_refused(self, database: str, number: int, reason: str, *, busy: bool) -> None:
        """Nothing of the record was published and no lock is kept; ``busy``: others kept the locks for the whole limit.

        Not ``busy``: the mount did not want it, or it cannot be committed at all. A child that dies may have committed
        what it had (``on_restarted``): the log says.
        """

    def on_held(self, database: str, number: int) -> None:
        """SQLite's write lock is held until ``unhold``, ``release`` or ``lock``; lost with a child that dies."""

    def on_hold_refused(self, database: str, number: int, holder: str) -> None:
        """``holder`` ("process 123 (python3)") kept SQLite's write lock all the while; or why it cannot be held."""

    def on_hold_lost(self, database: str, number: int, reason: str) -> None:
        """What ``on_held`` said is over, unasked: applications may have written since."""

    def on_reported(self, database: str, number: int) -> None:
        """Everything that was published before ``report`` arrived has been told (``on_applied``)."""

    def on_looked(self, database: str, number: int, *, shown: bool, writes: bool) -> None:
        """``shown``: readers see what ``look`` asked for. Neither: its writer is gone, and nobody will show it."""

    def on_restarted(self) -> None:
        """A new child is up after the last one died: send again from the last applied TXID of each database."""
