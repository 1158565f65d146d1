"""Where the mount may answer otherwise than a plain disk: every such case, once, with the reason.

Anything that is not here is a difference and a bug.
"""

from dataclasses import dataclass
from typing import Final

from tests.differential.operations import Operation
from tests.differential.sides import Answer

# Until when a statement is tried again on the mount alone.
RETRY_S: Final = 3.0


@dataclass(slots=True)
class Circumstances:
    """What has happened in this program so far that a rule may ask for."""

    ended_abruptly: bool = False
    """An application or the daemon was killed."""
    in_transaction: bool = False
    """The connection of the statement at hand was in a transaction before it."""


def is_tolerated(operation: Operation, plain: Answer, mount: Answer, so_far: Circumstances) -> bool:
    """Whether two answers that differ are alike for an application."""
    return _counts_of_a_checkpoint(operation, plain, mount, so_far)


def _counts_of_a_checkpoint(operation: Operation, plain: Answer, mount: Answer, so_far: Circumstances) -> bool:
    """After somebody was killed the WAL has other frames: a restarted node has written all of it to the database file
    and removed it, and a wal-index that a dead writer left behind is built anew, so that the next checkpoint copies
    frames again that were copied before. Whether the checkpoint was kept from its end (the first number) stays equal.
    """
    return (
        so_far.ended_abruptly
        and operation.verb == "run"
        and "wal_checkpoint" in operation.words[1]
        and not plain.error
        and not mount.error
        and plain.rows[0][0] == mount.rows[0][0]
    )


def may_be_tried_again(operation: Operation, plain: Answer, mount: Answer, so_far: Circumstances) -> bool:
    """A writer died in the middle of its commit, which was logged. Until the wal-index shows that commit, a millisecond
    or two later, a transaction of another writer is refused with an I/O error, so that nothing overwrites it; and
    meanwhile the applier holds the write lock. Outside a transaction the application's next try succeeds.
    """
    return (
        so_far.ended_abruptly
        and operation.verb == "run"
        and not plain.error
        and not so_far.in_transaction
        and mount.error.startswith(("SQLITE_IOERR", "SQLITE_BUSY", "SQLITE_PROTOCOL"))
    )
