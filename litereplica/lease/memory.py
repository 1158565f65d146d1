"""A lease in memory: several nodes of one process, for simulations and for what does not care where a lease is kept.

Knows the rules that every store of leases keeps (compare-and-set, rising epochs, what a lost session takes along), and
how calls fail: each asks a hook what becomes of it. Does not know Consul. Draws no random numbers and looks at no
clock but trio's, so that a simulation with trio's MockClock repeats itself.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

import trio

from litereplica.cluster.lease import (
    PROTOCOL,
    Endpoint,
    Holding,
    Member,
    Reign,
    View,
    epochs_forgotten,
    forgotten,
    next_epoch,
)
from litereplica.errors import Refused, Unavailable

LONGEST_HISTORY: Final = 100
# What stale answers can come from; no simulation needs a server that is further behind.
_REMEMBERED_VIEWS: Final = 32
# A third of a short ttl, as the real one: a call that takes longer is given up.
CALL_LIMIT_S: Final = 0.5

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Turn:
    """What becomes of one call.

    ``request_s``: until it takes effect; ``answer_s``: from then to the answer; math.inf: never. A call that takes
    longer than its limit raises Unavailable at the limit, and its request takes effect nevertheless when its time comes
    (also when its caller was cancelled meanwhile). ``behind``: a watch answers from a server that has missed the last
    so many changes.
    """

    request_s: float = 0.0
    answer_s: float = 0.0
    behind: int = 0


LOST: Final = Turn(request_s=math.inf)
"""The request never arrives: Unavailable, without effect."""
UNANSWERED: Final = Turn(answer_s=math.inf)
"""The request takes effect and its answer never comes: Unavailable."""

Hook = Callable[[str, str], Turn]
"""(node, method) → what becomes of this call. Methods are those of Lease; acquire also asks for "acquire epoch" in
between, and watch for "watch answer" when it wakes up (only ``answer_s`` counts)."""


def _fair(_node: str, _method: str) -> Turn:
    return Turn()


class MemoryStore:
    """What is stored, as Consul would. Its public methods are accidents; nodes use MemoryLease."""

    def __init__(self, hook: Hook = _fair, cluster: str = "memory") -> None:
        self.hook = hook
        self.cluster = ""
        self.holding: Holding | None = None
        self.lapsed: Holding | None = None
        """Went without being released."""
        self.members: dict[str, tuple[Member, str]] = {}
        """Name → its entry, the node's id."""
        self.reigns: list[Reign] = []
        self.new_cluster = cluster
        self.top_epoch = 0
        self.index = 0
        self.view = View(None, 0)
        self.past: deque[View] = deque([self.view], maxlen=_REMEMBERED_VIEWS)
        self.changed = trio.Event()

    def end_session(self, instance: str) -> None:
        """A process died without a word, and its session ended: its entry goes, and its lease without a release."""
        self._remove_member(instance)
        if self.holding is not None and self.holding.holder.instance == instance:
            self.put(None, lapsed=self.holding)

    def last_will(self, instance: str) -> None:
        """A process died, and its child ended the lease."""
        self._remove_member(instance)
        if self.holding is not None and self.holding.holder.instance == instance:
            self.put(None)

    def wipe(self) -> None:
        """Everything is lost, and the index begins anew."""
        self.cluster, self.top_epoch, self.index = "", 0, 0
        self.members.clear()
        self.reigns.clear()
        self.put(None)

    def _remove_member(self, instance: str) -> None:
        self.members = {name: entry for name, entry in self.members.items() if entry[0].endpoint.instance != instance}

    def put(self, holding: Holding | None, *, lapsed: Holding | None = None) -> None:
        """Change the lease and wake whoever watches it."""
        self.index += 1
        self.holding = None if holding is None else replace(holding, index=self.index)
        self.lapsed = lapsed
        self.view = View(self.holding or lapsed, self.index, gone=lapsed is not None)
        self.past.append(self.view)
        self.changed.set()
        self.changed = trio.Event()


class MemoryLease:
    """A node's lease in a MemoryStore. ``node_id`` is the same for every start of a node, the instance is not."""

    def __init__(
        self, store: MemoryStore, node: str, ttl_s: float, node_id: str = "", *, call_limit_s: float = CALL_LIMIT_S
    ) -> None:
        self._store = store
        self._node = node
        self._node_id = node_id or node
        self._limit_s = call_limit_s
        self._cluster = ""
        self._member: Member | None = None
        self._ttl_s = ttl_s
        # Of the highest epoch that this node knows; epoch 0: it knows none.
        self._last = forgotten(0, ttl_s)
        self._sent = 0

    async def join(self, known_cluster: str, member: Member) -> str:
        def effect() -> str:
            store = self._store
            if known_cluster and store.cluster and known_cluster != store.cluster:
                raise Refused(f"this node belongs to cluster {known_cluster}, and the lease to {store.cluster}")
            newer = max((each.protocol for each, _ in store.members.values()), default=0)
            if newer > PROTOCOL:
                raise Refused(f"the cluster has nodes of protocol {newer}, and this is {PROTOCOL}: update litereplica")
            self._cluster = store.cluster or known_cluster or store.new_cluster
            self._publish(member)
            return self._cluster

        return await self._call("join", effect)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    async def watch(self, known: View | None, limit_s: float) -> View:
        store = self._store
        began = trio.current_time()
        turn = store.hook(self._node, "watch")
        if turn.request_s > self._limit_s:
            await trio.sleep(limit_s + self._limit_s)
            raise Unavailable("the lease's store does not answer")
        await trio.sleep(turn.request_s)
        with trio.move_on_after(limit_s):
            while known is not None and self._seen(turn.behind) == known:
                await store.changed.wait()
        view, epoch = self._seen(turn.behind), store.top_epoch
        answer_s = store.hook(self._node, "watch answer").answer_s + turn.answer_s
        if answer_s > self._limit_s:
            await trio.sleep_until(began + limit_s + self._limit_s)
            raise Unavailable("the lease's store does not answer")
        await trio.sleep(answer_s)
        if view.holding is not None:
            self._remember(view.holding)
        elif epoch > self._last.epoch and not turn.behind:
            self._last = forgotten(epoch, self._ttl_s)
        return view

    async def acquire(self, seen: View, me: Endpoint, ttl_s: float, seen_epoch: int) -> Holding:
        leap = 0

        def take() -> Holding:
            there = self._store.holding
            if there is not None and there.holder == me:
                return there  # an earlier call took it, and its answer was lost
            if self._seen(0) != seen:
                raise Refused("the lease has changed since")
            nonlocal leap
            if there is None and (seen.gone or self._store.top_epoch < seen_epoch):
                leap = epochs_forgotten(me.instance)
            self._remake_cluster()
            return self._written(Holding(me, 0, 0, ttl_s, 0))

        def say_epoch() -> Holding:
            store = self._store
            if store.holding != taken:
                raise Refused("the lease was taken by another node")
            before = 0 if seen.holding is None else seen.holding.epoch
            members = max((each.standing.epoch for each, _ in store.members.values()), default=0)
            epoch = next_epoch(taken.index, seen_epoch, before, members, store.top_epoch) + leap
            store.top_epoch = epoch
            # What an earlier call of this node's left there may still be offered to another: not in the new epoch.
            return self._written(replace(taken, epoch=epoch, counter=1, offered_to="", counts_on=()))

        taken = await self._call("acquire", take)
        return await self._call("acquire epoch", say_epoch)

    async def renew(self, mine: Holding, offered_to: str = "", *, alone: bool = True) -> Holding:
        def write(found: Holding) -> Holding:
            if not alone and self._seen(0).gone:
                raise Refused("the lease is gone, and another node may have taken it meanwhile")
            self._remake_cluster()
            counter = found.counter + 1
            return self._written(
                replace(found, epoch=mine.epoch, counter=counter, offered_to=offered_to, counts_on=mine.counts_on)
            )

        return await self._change("renew", mine, write)

    async def release(self, mine: Holding, *, alone: bool = True) -> None:
        def write(_found: Holding) -> None:
            if self._seen(0).gone and (not alone or self._store.top_epoch < mine.epoch):
                raise Refused("the lease is gone, and it is not known who took it last")
            self._store.put(None)

        await self._change("release", mine, write)

    async def _change(self, method: str, mine: Holding, write: Callable[[Holding], Result]) -> Result:
        """Compare and set; when the version is another one, look whether an earlier call of ours wrote it."""

        def effect(expected: int) -> tuple[Result] | None:
            found = self._seen(0).holding
            if found is None or found.holder != mine.holder or found.epoch != mine.epoch:
                raise Refused("the lease is no longer ours")
            return (write(found),) if self._store.index == expected else None

        index = mine.index
        while (done := await self._call(method, partial(effect, index))) is None:
            index = await self._call(method, lambda: self._store.index)
        return done[0]

    def _written(self, holding: Holding) -> Holding:
        self._store.put(holding)
        written = self._store.holding
        assert written is not None
        self._remember(written)
        return written

    def _remember(self, holding: Holding) -> None:
        if holding.epoch and holding.epoch >= self._last.epoch:
            self._last = holding

    async def publish(self, member: Member) -> None:
        self._sent += 1
        number = self._sent

        def effect() -> None:
            if number == self._sent:  # one that comes late does not undo a later one
                self._publish(member)

        await self._call("publish", effect)

    async def members(self) -> tuple[Member, ...]:
        def effect() -> tuple[Member, ...]:
            return tuple(member for _, (member, _) in sorted(self._store.members.items()))

        return await self._call("members", effect)

    async def add_reign(self, reign: Reign) -> None:
        def effect() -> None:
            reigns = {each.epoch: each for each in self._store.reigns} | {reign.epoch: reign}
            self._store.reigns = [reigns[epoch] for epoch in sorted(reigns)][-LONGEST_HISTORY:]

        await self._call("add_reign", effect)

    async def history(self) -> tuple[Reign, ...]:
        return await self._call("history", lambda: tuple(self._store.reigns))

    async def close(self) -> None:
        def effect() -> None:
            if self._member is not None:
                self._store.last_will(self._member.endpoint.instance)

        await self._call("close", effect)

    # -- rules -----------------------------------------------------------------------------------------------------

    def _seen(self, behind: int) -> View:
        """What this node makes of what a server says: a wiped one does not end a holding that was seen."""
        past = self._store.past
        view = past[max(0, len(past) - 1 - behind)]
        if self._store.top_epoch < self._last.epoch and (view.holding is None or view.gone):
            return View(self._last, view.index, gone=True)
        return view

    def _publish(self, member: Member) -> None:
        endpoint = member.endpoint
        there = self._store.members.get(endpoint.node)
        if there is not None and there[0].endpoint.instance != endpoint.instance:
            if there[1] != self._node_id:
                raise Refused(f"another node named {endpoint.node!r} is there: give one of them another node.name")
            if self._member is not None:
                raise Refused(f"node {endpoint.node!r} was started a second time")
        self._remake_cluster()
        self._member = member
        self._store.members[endpoint.node] = (member, self._node_id)

    def _remake_cluster(self) -> None:
        """After a wipe: what this node knows."""
        store = self._store
        if store.cluster and store.cluster != self._cluster:
            raise Refused(f"this node belongs to cluster {self._cluster}, and the lease to {store.cluster}")
        if not store.cluster:
            store.cluster = self._cluster
            store.top_epoch = self._last.epoch
            if self._last.epoch and store.holding is None:
                store.put(None, lapsed=self._last)

    # -- calls -----------------------------------------------------------------------------------------------------

    async def _call(self, method: str, effect: Callable[[], Result]) -> Result:
        turn = self._store.hook(self._node, method)
        begun = trio.current_time()
        if turn.request_s > self._limit_s:
            self._arrive_later(effect, begun + turn.request_s)
            await trio.sleep(self._limit_s)
            raise Unavailable("the lease's store does not answer")
        try:
            await trio.sleep(turn.request_s)
        except trio.Cancelled:
            self._arrive_later(effect, begun + turn.request_s)
            raise
        result, refused = _outcome(effect)
        if turn.request_s + turn.answer_s > self._limit_s:
            await trio.sleep_until(begun + self._limit_s)
            raise Unavailable("the lease's store does not answer")
        await trio.sleep(turn.answer_s)
        if refused is not None:
            raise refused
        assert result is not None
        return result[0]

    @staticmethod
    def _arrive_later(effect: Callable[[], object], at: float) -> None:
        """The request is under way, and nobody waits for its answer."""

        async def arrive() -> None:
            await trio.sleep_until(at)
            _outcome(effect)

        if at < math.inf:
            trio.lowlevel.spawn_system_task(arrive)


def _outcome(effect: Callable[[], Result]) -> tuple[tuple[Result] | None, Refused | None]:
    try:
        return (effect(),), None
    except Refused as refused:
        return None, refused
