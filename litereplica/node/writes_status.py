"""What status shows of transactions that cross from one node to another.

Knows where each figure is. Does not know what they mean to a person (cli), or to Prometheus (metrics).
"""

from datetime import UTC, datetime

from litereplica.cluster.status import WritesStatus
from litereplica.node.remote_writes import RemoteWrites


def writes_status(on_replica: str, writes: RemoteWrites) -> WritesStatus:
    """All of it now. ``on_replica``: of the configuration."""
    forwards, halts = writes.counts.figures(), writes.halting.figures()
    return WritesStatus(
        on_replica=on_replica,
        forwarded=forwards.forwarded,
        waiting=forwards.waiting,
        taken=forwards.taken,
        leases=halts.leases,
        halt_seconds=halts.seconds,
        locks=writes.halt_client.statuses(),
    )


def halt_text(name: str, writes: RemoteWrites) -> str:
    """What ``DB-halt`` reads as: who has the lock as far as this node knows, and each one that is open here, by line.

    ``held b 2026-01-31T12:00:00.000Z``, ``here held SINCE``, ``here waiting SINCE``, ``here lost SINCE WHY``.
    """
    halt = writes.halting.statuses().get(name)
    lines = [f"held {halt.node} {_time(halt.since_ms)}"] if halt is not None and halt.kind == "lock" else []
    here = [lock for lock in writes.halt_client.statuses() if lock.database == name]
    lines += [" ".join(filter(None, ("here", lock.state, _time(lock.since_ms), lock.reason))) for lock in here]
    return "".join(f"{line}\n" for line in lines)


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
