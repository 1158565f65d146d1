"""What a keeper drives: the data of a node, as far as its role is concerned.

Knows the order in which a keeper calls it and what each call promises. Does not know how: node/data_plane.py does it
with the mount, the store, the applier and replication; simulations have a twin.

Calls come one at a time, but for set_fence, standing, positions, replicas and role_changed, which are synchronous, and
ask_promises, which may run beside the others. ``promote`` and ``quiesce`` may be cancelled; ``demote`` is called after
that, which has to make a whole replica of whatever was begun, then ``resume_writers``. ``demote`` is never cancelled
but by the end of the process.
"""

from typing import Protocol

from litereplica.cluster.lease import Endpoint, Holding, Reign, Standing


class Plane(Protocol):
    """The data of one node."""

    def standing(self) -> Standing:
        """How far the log is here."""

    def positions(self) -> dict[str, str]:
        """``TXID/checksum`` of every database here."""

    def seen_epoch(self) -> int:
        """The highest epoch that this node knows of, durably."""

    def replicas(self) -> tuple[str, ...]:
        """Names of the nodes that replicate from here now."""

    def set_fence(self, until: float) -> None:
        """Commits are accepted before this instant of the fence's clock, on a primary; 0.0: none at all."""

    def role_changed(self, role: str, primary: Endpoint | None, epoch: int, reason: str) -> None:
        """Tell status, events, log and metrics. ``role``: primary or replica; ``epoch``: of the primary, 0: unknown."""

    def renewed(self, outcome: str) -> None:
        """A renewal of the lease has ended: ``done``, ``refused`` or ``unknown``."""

    async def note_cluster(self, cluster: str) -> None:
        """Remember durably to which cluster this node belongs."""

    async def note_epoch(self, epoch: int) -> None:
        """Remember durably that there is this epoch; a lower one than before is nothing."""

    async def note_reigns(self, reigns: tuple[Reign, ...]) -> None:
        """Keep the history of primaries here too; what is known already is nothing."""

    async def follow(self, holding: Holding | None) -> None:
        """Be a replica of the lease's holder; None: of nobody, and go on serving reads. The same twice is nothing."""

    async def promote(self, epoch: int) -> None:
        """Accept commits of ``epoch`` from now on, before the fence. Raises Unavailable: then this is a replica."""

    async def demote(self) -> None:
        """Be a replica, of nobody yet; returns when no commit is in flight. The fence is closed before."""

    async def quiesce(self, limit_s: float) -> tuple[str, ...]:
        """Hold the writers of every database; who did not yield in time (``app.db: process 123 (python3)``)."""

    async def resume_writers(self) -> None:
        """Let them go on, whatever this node is by then."""

    async def acknowledged(self, node: str, limit_s: float) -> bool:
        """Whether a replica has everything that is committed here at the time of the call, waiting up to the limit."""

    async def drain(self, limit_s: float) -> None:
        """Return when every connected replica has what is committed here; the fence is closed. At the limit too."""

    async def ask_promises(self, nodes: frozenset[str], hold_s: float, limit_s: float) -> frozenset[str]:
        """Failsafe: which of ``nodes`` promise, over replication, to stand back for ``hold_s`` from when asked."""
