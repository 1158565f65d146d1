"""Transactions of replicas while they arrive, in pieces, within bounds.

Knows how much may be here at once and what is no transaction. Does not know what is done with a whole one
(node.committer).
"""

from typing import Final

from litereplica.cluster.messages import Forward, ForwardPart
from litereplica.errors import Corrupt, LitereplicaError, Refused
from litereplica.ltx.decode import scan_record
from litereplica.replication.lines import DownLine
from litereplica.store.spool import MEMORY_BYTES, Spool
from litereplica.store.store import Store

COUNT_LIMIT: Final = 1024
"""Transactions of all replicas that are here at once: arriving, waiting for their turn, being committed."""
TOTAL_LIMIT_BYTES: Final = 16 * 1024**3
"""Bytes of those: what they may take of the data directory's disk."""
MEMORY_LIMIT_BYTES: Final = 64 * 1024 * 1024
"""Bytes of those that may be in memory; beyond it each has a file from its first byte."""


class Arrival:
    """One transaction of a replica; ``spool`` has its record."""

    __slots__ = ("forward", "line", "spool")

    def __init__(self, line: DownLine, forward: Forward, spool: Spool) -> None:
        self.line = line
        self.forward = forward
        self.spool = spool


class Intake:
    """At most one transaction arrives for a replica and a database; a newer one takes its place.

    Whoever gets a whole one calls ``done`` when nobody reads it any more.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._arriving: dict[DownLine, dict[str, Arrival]] = {}
        self._count = 0
        self._total_bytes = 0

    def begin(self, line: DownLine, forward: Forward) -> Arrival | None:
        """The first piece; the whole transaction if it is all of it.

        Raises Refused (there is no room), Corrupt, OSError (the disk has no room).
        """
        if forward.origin.node != line.replica:
            raise Corrupt(f"replica {line.replica} forwards a transaction of {forward.origin.node}")
        arriving = self._arriving.setdefault(line, {})
        if (older := arriving.pop(forward.database, None)) is not None:
            self.done(older)
        if self._count >= COUNT_LIMIT or self._total_bytes + forward.length > TOTAL_LIMIT_BYTES:
            raise Refused(
                f"the primary has {self._count} transactions of replicas under way ({self._total_bytes} bytes): "
                f"begin it again later"
            )
        in_memory = self._total_bytes + forward.length <= MEMORY_LIMIT_BYTES
        arrival = Arrival(line, forward, Spool(self._store, MEMORY_BYTES if in_memory else 0))
        self._count += 1
        self._total_bytes += forward.length
        arriving[forward.database] = arrival
        return self._append(arrival, forward.data)

    def arriving(self, line: DownLine, number: int) -> Forward | None:
        """What message ``number`` of a connection began to bring, if that is still wanted."""
        for arrival in self._arriving.get(line, {}).values():
            if arrival.forward.number == number:
                return arrival.forward
        return None

    def go_on(self, line: DownLine, part: ForwardPart) -> Arrival | None:
        """The next piece; None too when nobody wants it any more. Raises Corrupt, OSError."""
        for arrival in self._arriving.get(line, {}).values():
            if arrival.forward.number == part.number:
                return self._append(arrival, part.data)
        return None

    def _append(self, arrival: Arrival, data: bytes) -> Arrival | None:
        forward, spool = arrival.forward, arrival.spool
        try:
            if spool.length + len(data) > forward.length:
                raise Corrupt(f"replica {arrival.line.replica} sends more of a transaction than it has")
            spool.append(data)
            if spool.length < forward.length:
                return None
            _check(arrival)
        except (OSError, LitereplicaError):
            self._drop(arrival)
            raise
        del self._arriving[arrival.line][forward.database]
        return arrival

    def _drop(self, arrival: Arrival) -> None:
        del self._arriving[arrival.line][arrival.forward.database]
        self.done(arrival)

    def done(self, arrival: Arrival) -> None:
        """Let its bytes go."""
        arrival.spool.close()
        self._count -= 1
        self._total_bytes -= arrival.forward.length

    def forget(self, line: DownLine) -> None:
        """The connection has ended: the rest of what was arriving does not come."""
        for arrival in self._arriving.pop(line, {}).values():
            self.done(arrival)


def _check(arrival: Arrival) -> None:
    """Raise Corrupt unless the record is what was announced. Pages of a long one are checked by whoever decodes it."""
    forward, replica = arrival.forward, arrival.line.replica
    found = scan_record(arrival.spool.read, 0, verify=forward.length <= MEMORY_BYTES)
    header = found.header
    txid = forward.base.txid + 1
    if (header.database, header.min_txid, header.max_txid) != (forward.database, txid, txid):
        raise Corrupt(f"replica {replica} forwards a record that is not {txid:016x} of {forward.database}")
    if header.pre_checksum != forward.base.checksum or header.origin != forward.origin:
        raise Corrupt(f"replica {replica} forwards a record of another base or origin than it says")
    if found.length != forward.length:
        raise Corrupt(f"replica {replica} forwards {forward.length} bytes, its record has {found.length}")
