"""The lease's own key in Consul, and the record of the cluster beside it: look, wait, take, keep, give up.

Knows which transaction makes each step safe. A key that is gone is not a lease that was given up: a session may end and
an operator may delete while its holder still accepts commits. So the record says who acquired the lease last, and a
release clears that in the same transaction. A record that is gone too is never taken for a release: whoever knows an
epoch takes it for held, by whoever is remembered or FORGOTTEN, and writes it so. Does not know members or the history.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import structlog
import trio

from litereplica.cluster.lease import Endpoint, Holding, View, epochs_forgotten, forgotten, next_epoch
from litereplica.errors import Refused, Unavailable
from litereplica.lease.consul_client import Agents, Entry, NotDone, get, get_changed, operation, transact
from litereplica.lease.consul_session import Session
from litereplica.lease.records import (
    ClusterRecord,
    Foreign,
    read_cluster,
    read_lease,
    read_member,
    write_cluster,
    write_lease,
)

log = structlog.get_logger(__name__)

Steps = list[dict[str, Any]]

WRITES_LIMIT: Final = 4
"""The second finds out what became of an earlier call, the third makes a lost session anew; then something is wrong."""
SPURIOUS_PAUSE_S: Final = 0.05
"""While nobody has the lease, every write to any key of Consul wakes a watch up; they are not followed one by one."""


class LeaseKey:
    """One node's view of it. ``cluster`` is set by ``join``; ``on_change`` hears what is to be undone after a crash."""

    def __init__(
        self, agents: Agents, session: Session, key: str, ttl_s: float, on_change: Callable[[Steps], None]
    ) -> None:
        self._agents = agents
        self._session = session
        self._key = key
        self._record_key = f"{key}/cluster"
        self._members_key = f"{key}/members/"
        self._ttl_s = ttl_s
        self._on_change = on_change
        # Of the highest epoch that this node knows; epoch 0: it knows none.
        self._last = forgotten(0, ttl_s)
        # The version in which an epoch below that was found; 0: none was.
        self._outdated_index = 0
        # Whom the record says that our lease counts on; None: what was written last may not be there.
        self._recorded: tuple[str, ...] | None = None
        self.cluster = ""

    # -- reading ---------------------------------------------------------------------------------------------------

    async def look(self) -> View:
        """The lease as it is now. Raises Unavailable (Foreign: not ours)."""
        return await self._view(await get(self._agents, self._key))

    async def watch(self, known: View | None, limit_s: float) -> View:
        end = trio.current_time() + limit_s
        index = 0 if known is None or known.holding is None else known.index
        while known is not None and (left_s := end - trio.current_time()) > 0:
            found_index, entry = await get_changed(self._agents, self._key, index, left_s)
            view = await self._view(entry)
            if view != known:
                return view
            if index and found_index != index:
                await trio.sleep(SPURIOUS_PAUSE_S)
            # It falls when Consul was restored or wiped; going on with the old one would wait for ever.
            index = found_index if found_index >= index else 0
        # A blocking query that ends without a change says what was true when it began; ask once more.
        return await self.look()

    async def record(self) -> tuple[ClusterRecord | None, int]:
        """The cluster's record and its index; (None, 0) when there is none. Raises Unavailable (Foreign)."""
        return self._read_record(await get(self._agents, self._record_key))

    async def _view(self, entry: Entry | None) -> View:
        if entry is not None:
            cluster, holding = read_lease(entry.key, entry.value, entry.index)
            self._check_cluster(cluster)
            if self._is_outdated(holding):
                return View(self._last, entry.index, gone=True)
            if holding.epoch:
                self._remember(holding)
            return View(holding, entry.index)
        record, index = await self.record()
        if (record.epoch if record is not None else 0) < self._last.epoch:
            # Consul forgot it, or whoever wrote the record did not know.
            return View(self._last, index, gone=True)
        if record is not None and record.holder is not None:
            return View(record.holder, index, gone=True)
        return View(None, index)

    def _read_record(self, entry: Entry | None) -> tuple[ClusterRecord | None, int]:
        if entry is None:
            return None, 0
        record = read_cluster(entry.key, entry.value, entry.index)
        self._check_cluster(record.cluster)
        if record.epoch > self._last.epoch:
            holder = record.holder
            if holder is None or holder.epoch < record.epoch:
                holder = forgotten(record.epoch, self._ttl_s)
            self._remember(holder)
        return record, entry.index

    def _check_cluster(self, cluster: str) -> None:
        if self.cluster and cluster != self.cluster:
            raise Foreign(
                f"the key '{self._key}' in Consul belongs to cluster {cluster}, and this node's data to cluster "
                f"{self.cluster}: set lease.consul.key to this cluster's, or start with an empty data directory"
            )

    def _remember(self, holding: Holding) -> None:
        if holding.epoch >= self._last.epoch:
            self._last = holding
            self._outdated_index = 0

    def _is_outdated(self, holding: Holding) -> bool:
        """Consul was restored from a snapshot, and says who had the lease then.

        Whoever writes it after that has it, though: a node that had not heard of a newer epoch.
        """
        if not 0 < holding.epoch < self._last.epoch:
            return False
        self._outdated_index = self._outdated_index or holding.index
        return holding.index <= self._outdated_index

    # -- writing ---------------------------------------------------------------------------------------------------

    async def make_record(self, cluster: str) -> str:
        """Write the record unless there is one; the id in force. Raises Unavailable (Foreign: another cluster's)."""
        for _ in range(WRITES_LIMIT):
            record, _index = await self.record()
            if record is not None:
                return record.cluster
            record = ClusterRecord(cluster, self._last.epoch, self._last if self._last.epoch else None)
            try:
                await transact(self._agents, operation("cas", self._record_key, write_cluster(record)))
            except NotDone:
                continue  # somebody was faster
            return cluster
        raise Unavailable(f"the key '{self._record_key}' in Consul appears and vanishes")

    async def acquire(self, seen: View, me: Endpoint, ttl_s: float, seen_epoch: int) -> Holding:
        entry = await get(self._agents, self._key)
        now = await self._view(entry)
        beside = [operation("get-tree", self._record_key), operation("get-tree", self._members_key)]
        there = now.holding if entry is not None and entry.session == self._session.id and not now.gone else None
        if there is not None and there.holder == me:
            # An earlier call took it, and its answer was lost: nobody has committed anything in that epoch.
            beside_it = await transact(self._agents, *beside)
            return await self._say_epoch(seen, there, seen_epoch, beside_it, was_there=False)
        if now != seen:
            raise Refused("the lease has changed since")
        if entry is None:
            conditions = [operation("check-not-exists", self._key), self._record_is(seen.index)]
        else:
            conditions = [operation("delete-cas", self._key, index=seen.index)]
        taken = Holding(me, 0, 0, ttl_s, 0)
        found = await self._take(conditions, write_lease(self.cluster, taken), beside)
        mine = replace(taken, index=found[self._key].index)
        return await self._say_epoch(seen, mine, seen_epoch, found, was_there=entry is not None and not now.gone)

    async def _take(self, conditions: Steps, value: bytes, beside: Steps) -> Mapping[str, Entry]:
        for _ in range(WRITES_LIMIT):
            session = await self._session.ensure()
            # A process that dies between the two writes leaves the record as it was: what it knows of the epochs may
            # be less than what that says, or than what a wiped Consul said.
            self._on_change(self._given_back())
            lock = operation("lock", self._key, value, session=session)
            try:
                return await transact(self._agents, *conditions, lock, *beside)
            except NotDone as refused:
                if not self._heed(refused):
                    raise Refused(f"another node was faster ({refused})") from refused
        raise Unavailable("every session in Consul ends as soon as it is made")

    async def _say_epoch(
        self, seen: View, taken: Holding, seen_epoch: int, beside: Mapping[str, Entry], *, was_there: bool
    ) -> Holding:
        """``was_there``: another's holding was taken over, so every later one would have been seen."""
        known = max(seen_epoch, self._last.epoch)
        record, record_index = self._read_record(beside.get(self._record_key))
        was_released = record is not None and record.holder is None and record.epoch >= known
        before = 0 if seen.holding is None else seen.holding.epoch
        members = _highest_epoch([entry for key, entry in beside.items() if key.startswith(self._members_key)])
        epoch = next_epoch(taken.index, seen_epoch, before, members, self._last.epoch)
        if not was_there and not was_released and known:
            epoch += epochs_forgotten(taken.holder.instance)
        # What an earlier call of this node's left there may still be offered to another: not in the new epoch.
        mine = replace(taken, epoch=epoch, counter=taken.counter + 1, offered_to="", counts_on=())
        try:
            found = await transact(
                self._agents,
                operation("check-session", self._key, session=await self._session.ensure()),
                operation("cas", self._key, write_lease(self.cluster, mine), index=taken.index),
                self._record_is(record_index),
                self._set_record(mine),
            )
        except NotDone as refused:
            self._heed(refused)
            raise Refused(f"the lease was lost while it was taken ({refused})") from refused
        return self._have(replace(mine, index=found[self._key].index))

    async def renew(self, mine: Holding, offered_to: str = "", *, alone: bool = True) -> Holding:
        written = replace(mine, counter=mine.counter + 1, offered_to=offered_to)
        todo = [
            operation("check-session", self._key, session=await self._session.ensure()),
            operation("cas", self._key, write_lease(self.cluster, written), index=mine.index),
            *self._record_if_changed(written),
        ]
        for _ in range(WRITES_LIMIT):
            try:
                found = await transact(self._agents, *todo)
            except NotDone as refused:
                self._heed(refused)
            else:
                return self._have(replace(written, index=found[self._key].index))
            view, entry = await self._look_at_mine(mine)
            assert view.holding is not None
            written = replace(written, counter=max(written.counter, view.holding.counter) + 1)
            session = await self._session.ensure()
            lock = operation("lock", self._key, write_lease(self.cluster, written), session=session)
            if view.gone:
                if not alone:
                    raise Refused("the lease is gone from Consul, and another node may have taken it meanwhile")
                log.warning("lease_key_made_anew", key=self._key, epoch=mine.epoch)
                self._recorded = None
            if entry is None:
                conditions = [operation("check-not-exists", self._key), self._record_is(view.index)]
            else:
                conditions = [operation("delete-cas", self._key, index=entry.index)]
            todo = [*conditions, lock, *self._record_if_changed(written)]
        raise Unavailable("the lease changes faster than it can be renewed")

    async def release(self, mine: Holding, *, alone: bool = True) -> None:
        session = await self._session.ensure()
        clear = self._clear_record(mine.epoch)
        todo = [
            operation("check-session", self._key, session=session),
            operation("delete-cas", self._key, index=mine.index),
            clear,
        ]
        for _ in range(WRITES_LIMIT):
            try:
                await transact(self._agents, *todo)
            except NotDone as refused:
                self._heed(refused)
            else:
                return self._have_not()
            record, index = await self.record()
            if record is not None and record.holder is None and record.epoch == mine.epoch:
                return self._have_not()  # an earlier call did it
            view, entry = await self._look_at_mine(mine)
            # It says so also where somebody has made it anew who did not hear of the next one.
            is_known = record is not None and record.holder is not None and record.epoch == mine.epoch
            if view.gone and not (alone and is_known):
                raise Refused("the lease is gone from Consul, and it is not known who took it last")
            if entry is None:
                todo = [operation("check-not-exists", self._key), self._record_is(index), clear]
            else:
                todo = [operation("delete-cas", self._key, index=entry.index), clear]
        raise Unavailable("the lease changes faster than it can be released")

    async def _look_at_mine(self, mine: Holding) -> tuple[View, Entry | None]:
        """The lease and its key, None when that went. Raises Refused when it is somebody else's now.

        It is ``gone`` where the key went by accident, and where it is an older one.
        """
        entry = await get(self._agents, self._key)
        try:
            view = await self._view(entry)
        except Foreign as foreign:
            raise Refused(foreign.message) from foreign
        if view.holding is None or view.holding.holder != mine.holder or view.holding.epoch != mine.epoch:
            raise Refused("the lease is no longer ours")
        return view, entry

    # -- steps and what follows from them --------------------------------------------------------------------------

    def _record_is(self, index: int) -> dict[str, Any]:
        if index:
            return operation("check-index", self._record_key, index=index)
        return operation("check-not-exists", self._record_key)

    def _set_record(self, mine: Holding) -> dict[str, Any]:
        return operation("set", self._record_key, write_cluster(ClusterRecord(self.cluster, mine.epoch, mine)))

    def _record_if_changed(self, mine: Holding) -> Steps:
        """The record is all that is left of the lease when its session ends: it says too on whom its holder counts."""
        if self._recorded == mine.counts_on:
            return []
        self._recorded = None
        return [self._set_record(mine)]

    def _clear_record(self, epoch: int) -> dict[str, Any]:
        return operation("set", self._record_key, write_cluster(ClusterRecord(self.cluster, epoch)))

    def _heed(self, refused: NotDone) -> bool:
        """Whether it was for our session, which Consul does not know any more."""
        lost = any("invalid session" in reason for reason in refused.reasons)
        if lost:
            self._session.lost(self._session.id)
        return lost

    def _have(self, mine: Holding) -> Holding:
        self._remember(mine)
        self._recorded = mine.counts_on
        self._tell(mine.epoch)
        return mine

    def _have_not(self) -> None:
        # What is remembered of it stays: should Consul forget the record too, somebody may have taken it since.
        self._on_change([])

    def _tell(self, epoch: int) -> None:
        """Say what a process that dies now leaves to be undone."""
        self._on_change([*self._given_back(), self._clear_record(epoch)])

    def _given_back(self) -> Steps:
        return [operation("check-session", self._key, session=self._session.id), operation("delete", self._key)]


def _highest_epoch(members: list[Entry]) -> int:
    found = 0
    for entry in members:
        try:
            found = max(found, read_member(entry.key, entry.value).member.standing.epoch)
        except Foreign:
            continue
    return found
