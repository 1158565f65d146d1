"""Where one database of a replica stands between the log and the applier.

Knows what the applier was given and has not reported. Does not know when it is given anything (node.follow).
"""

from collections import deque

import trio


class Progress:
    """Where one database stands. All of it belongs to Follower."""

    __slots__ = (
        "again", "claimed", "closing", "failed", "failures", "flows", "giving_way", "installing", "making", "reason",
        "reported", "sent", "stuck", "under_way",
    )  # fmt: skip

    def __init__(self, applied: int) -> None:
        self.making = False
        # The applier may still be busy with a file that was dropped: no other may have its name before this is set.
        self.closing: trio.Event | None = None
        # The file is about to be another one: no applier is given anything, a new one neither.
        self.giving_way = False
        self.reset(applied)

    def reset(self, applied: int) -> None:
        """Nothing is under way any more; what is to be sent begins after ``applied``."""
        self.sent = applied
        # The newest transaction is to go to the applier once more, if that is applied by then (store.unlaid).
        self.again = False
        # The newest TXID that this applier has reported.
        self.reported = 0
        # What the applier was told of the commits of applications.
        self.claimed: tuple[int, int, int] | None = None
        # The last TXIDs of what the applier was given and has not reported. It may report several as one.
        self.under_way: deque[int] = deque()
        self.installing = False
        # What has failed is to be sent again, after a while.
        self.failed = False
        # In a row, and why the last time.
        self.failures = 0
        self.reason = ""
        self.stuck: str | None = None
        # The file exists and records go to the applier.
        self.flows = False
