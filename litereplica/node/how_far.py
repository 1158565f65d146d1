"""How far the log of a node is, over all its databases, as elections compare it.

Knows which TXIDs count. Does not know who asks.
"""

from collections.abc import Iterable

from litereplica.store.database import Database


def how_far(databases: Iterable[Database]) -> tuple[int, int]:
    """The newest epoch of any database, and the sum of TXIDs: equal on all nodes that have the same.

    Who compares sums has the same newest epoch, so all know what was dropped in earlier ones: that counts for nobody.
    It need not be a drop of the cluster's at all: what only this node had goes with a TXID that it makes up
    (store.rewind.dropped_content), and of that no node may seem to be ahead. Whether a log still has the record of a
    drop says nothing: it went, and is not there where the database came as a snapshot.
    """
    known = list(databases)
    newest = max((each.epoch for each in known), default=0)
    return newest, sum(each.position.txid for each in known if each.exists or each.epoch == newest)
