"""Several nodes of one process, the lease's store between them, and what happens to them."""

import math
from collections.abc import Callable
from dataclasses import replace
from random import Random

import trio

from litereplica.cluster.lease import Timing
from litereplica.errors import Refused, Unavailable
from litereplica.lease.memory import LOST, UNANSWERED, Turn
from litereplica.node.keeper import Keeper
from tests.sim.checker import Checker, Violated
from tests.sim.node import SeenStore, SimNode
from tests.sim.plane import Mutation, SimPlane


class MutatedTiming(Timing):
    """Another margin than the rules give."""

    margin = 0.0

    @property
    def margin_s(self) -> float:
        return self.margin


class World:
    """One schedule. Network of the planes, hook of the lease's store."""

    def __init__(self, seed: int, mutation: Mutation | None = None) -> None:
        self.rng = Random(seed)
        self.mutation = mutation or Mutation()
        self.checker = Checker()
        self.calm = False
        self.quiet = False
        """Applications commit nothing."""
        self.continues = self.rng.random() < 0.35
        self.timing = self._timing(self.rng.choice((1.0, 3.0, 5.0)))
        self.store = SeenStore(self.hook)
        self.store.world = self
        count = self.rng.randint(3, 5)
        spectator = count - 1 if self.rng.random() < 0.5 else None
        self.nodes = [
            SimNode(self, f"n{place}", candidate=place != spectator, priority=self.rng.randint(0, 2))
            for place in range(count)
        ]
        self.by_name = {each.name: each for each in self.nodes}
        self.cut: set[tuple[str, str]] = set()
        """(from, to) between which nothing gets through."""
        self.away: dict[str, Callable[[], Turn]] = {}
        """Node → what becomes of its calls to the lease's store."""
        self.by_offer: dict[tuple[str, int], int] = {}
        self.outcomes: dict[str, int] = {}
        self._values = 0

    def _timing(self, ttl_s: float) -> Timing:
        if self.mutation.margin_s is None:
            return Timing(ttl_s)
        timing = MutatedTiming(ttl_s)
        MutatedTiming.margin = self.mutation.margin_s
        return timing

    def count(self, what: str) -> None:
        self.outcomes[what] = self.outcomes.get(what, 0) + 1

    # -- the lease's store -----------------------------------------------------------------------------------------

    def hook(self, node: str, method: str) -> Turn:
        fault = self.away.get(node)
        if fault is not None:
            return fault()
        turn = Turn(self.rng.uniform(0.0, 0.01), self.rng.uniform(0.0, 0.01))
        if self.calm:
            return turn
        luck = self.rng.random()
        if luck < 0.01:
            turn = LOST
        elif luck < 0.02:
            turn = UNANSWERED
        elif luck < 0.04:
            turn = Turn(self.rng.uniform(0.0, 2 * self.timing.ttl_s), 0.0)
        elif luck < 0.05 and method == "watch":
            turn = replace(turn, behind=self.rng.randint(1, 3))
        return turn

    # -- Network ---------------------------------------------------------------------------------------------------

    def plane(self, node: str) -> SimPlane | None:
        found = self.by_name.get(node)
        return found.plane if found is not None else None

    def linked(self, a: str, b: str) -> bool:
        return (a, b) not in self.cut

    def new_value(self) -> int:
        self._values += 1
        return self._values

    def promise(self, node: str, epoch: int, hold_s: float) -> bool:
        keeper = self.by_name[node].keeper
        if self.mutation.promises_are_broken:
            return True
        return keeper is not None and keeper.promise(epoch, hold_s)

    def saw_epoch(self, node: str, epoch: int) -> None:
        keeper = self.by_name[node].keeper
        if keeper is not None:
            keeper.saw_epoch(epoch)

    def offered(self, node: str, epoch: int) -> int:
        return self.by_offer.get((node, epoch), 0)

    # -- one schedule ----------------------------------------------------------------------------------------------

    async def run(self, faults_s: float) -> None:
        async with trio.open_nursery() as nursery:
            for each in self.nodes:
                each.start(nursery)
            with trio.move_on_after(faults_s):
                async with trio.open_nursery() as unrest:
                    for _ in range(2):
                        unrest.start_soon(self._disturb, nursery)
            await self._calm_down(nursery)
            await self._settle()
            nursery.cancel_scope.cancel()

    def primaries(self) -> list[SimNode]:
        return [each for each in self.nodes if each.keeper is not None and each.keeper.role == "primary"]

    async def _calm_down(self, nursery: trio.Nursery) -> None:
        self.calm = True
        self.cut.clear()
        self.away.clear()
        for each in self.nodes:
            if each.plane is not None:
                each.plane.frozen, each.plane.whole = False, True
            each.gate.open()
            if each.keeper is not None and each.keeper.stops:  # a stop that the end of the unrest has cut short
                await each.crash()
            if not each.up:
                await each.ended.wait()
                each.start(nursery)

    async def _settle(self) -> None:
        """One primary within a bound, that goes on accepting; and everybody equal."""
        # Requests under way may arrive for two ttls; the lease lapses; a promise or a rest ends; an election.
        bound_s = 5 * self.timing.ttl_s + 10.0
        with trio.move_on_after(bound_s):
            while not self._agree():
                await trio.sleep(0.1)
        if not self._agree():
            states = {each.name: each.keeper.state.value for each in self.nodes if each.keeper is not None}
            raise Violated(
                f"no primary that all agree on {bound_s:g} s after the last fault: {states}, {self.store.view}"
            )
        before = len(self.checker.acknowledged)
        await trio.sleep(2.0)
        if len(self.checker.acknowledged) == before:
            node = self.primaries()[0]
            plane = node.plane
            assert plane is not None
            open_s = plane._fence - node.clock()
            raise Violated(f"{node.name} accepts nothing: {plane.epoch=}, {plane._held=}, {open_s=}, {self.store.view}")
        for each in self.nodes:
            assert each.plane is not None
            each.plane._held = True
        with trio.move_on_after(20.0):
            while not self._equal():
                await trio.sleep(0.1)
        if not self._equal():
            raise Violated(f"logs differ: {[(each.name, len(each.durable.log)) for each in self.nodes]}")
        logs, kept = [self.nodes[0].durable.log], [each.durable.diverged for each in self.nodes]
        self.checker.nothing_lost(logs, kept)

    def _agree(self) -> bool:
        primaries = self.primaries()
        if len(primaries) != 1:
            return False
        keepers = [each.keeper for each in self.nodes if each.keeper is not None]
        me = primaries[0].name
        return all(keeper.primary is not None and keeper.primary.node == me for keeper in keepers)

    def _equal(self) -> bool:
        first = self.nodes[0].durable.log
        return all(each.durable.log == first for each in self.nodes)

    # -- unrest ----------------------------------------------------------------------------------------------------

    async def _disturb(self, nursery: trio.Nursery) -> None:
        faults = (
            self._crash,
            self._crash,
            self._freeze,
            self._freeze,
            self._lose_the_store,
            self._lose_the_store,
            self._lose_the_store_everywhere,
            self._cut_links,
            self._isolate,
            self._isolate,
            self._hand_off,
            self._hand_off,
            self._hand_off,
            self._stop,
            self._force,
            self._end_session,
            self._wipe,
            self._fetch_snapshot,
        )
        while True:
            await trio.sleep(self.rng.expovariate(1.0 / self.timing.ttl_s))
            await self.rng.choice(faults)(nursery)

    def _pick(self) -> SimNode:
        """A node; the primary more often than not."""
        primaries = self.primaries()
        return self.rng.choice(primaries) if primaries and self.rng.random() < 0.6 else self.rng.choice(self.nodes)

    def _some_time(self) -> float:
        return self.rng.uniform(0.0, self.rng.choice((0.5, 1.5, 3.0)) * self.timing.ttl_s)

    async def _crash(self, nursery: trio.Nursery) -> None:
        node = self._pick()
        if not node.up:
            return
        self.count("crash")
        assert node.plane is not None
        instance = node.plane.me.instance
        await node.crash()
        ending = self.rng.choice((self.store.last_will, self.store.end_session, None))
        await trio.sleep(self.rng.choice((0.0, 0.01, 0.5)))
        if ending is not None:
            ending(instance)
        await trio.sleep(self._some_time())
        if not node.up:
            node.start(nursery)

    async def _freeze(self, _: trio.Nursery) -> None:
        node = self._pick()
        if node.plane is None:
            return
        self.count("freeze")
        plane, gate = node.plane, node.gate
        plane.frozen = True
        gate.close()
        try:
            await trio.sleep(self._some_time())
        finally:
            plane.frozen = False
            gate.open()

    def _store_fault(self) -> Callable[[], Turn]:
        longest = self.timing.ttl_s
        return self.rng.choice(
            (
                lambda: LOST,
                lambda: UNANSWERED,
                lambda: Turn(self.rng.uniform(0.0, longest), self.rng.uniform(0.0, longest)),
                lambda: self.rng.choice((LOST, UNANSWERED, Turn(), Turn(0.3, 0.3))),
                lambda: Turn(math.inf if self.rng.random() < 0.5 else 0.0),
            )
        )

    async def _lose_the_store(self, _: trio.Nursery) -> None:
        self.count("store lost")
        name = self._pick().name
        self.away[name] = self._store_fault()
        await trio.sleep(self._some_time())
        self.away.pop(name, None)

    async def _lose_the_store_everywhere(self, _: trio.Nursery) -> None:
        self.count("store lost everywhere")
        fault = self._store_fault()
        self.away.update({each.name: fault for each in self.nodes})
        await trio.sleep(self._some_time())
        self.away.clear()

    async def _cut_links(self, _: trio.Nursery) -> None:
        self.count("links cut")
        names = [each.name for each in self.nodes]
        cut = {(a, b) for a in names for b in names if a != b and self.rng.random() < 0.4}
        self.cut |= cut
        await trio.sleep(self._some_time())
        self.cut -= cut

    async def _isolate(self, _: trio.Nursery) -> None:
        self.count("isolated")
        node = self._pick().name
        cut = {pair for each in self.nodes if each.name != node for pair in ((node, each.name), (each.name, node))}
        self.cut |= cut
        self.away[node] = lambda: LOST
        await trio.sleep(self._some_time())
        self.cut -= cut
        self.away.pop(node, None)

    async def _hand_off(self, _: trio.Nursery) -> None:
        node = self._pick()
        keeper = node.keeper
        if keeper is None:
            return
        to = self.rng.choice([None, *(each.name for each in self.nodes)])
        await self._command(keeper, to, force=self.rng.random() < 0.3)

    async def _force(self, _: trio.Nursery) -> None:
        keeper = self.rng.choice(self.nodes).keeper
        if keeper is not None:
            await self._command(keeper, None, force=True)

    async def _command(self, keeper: Keeper, to: str | None, *, force: bool) -> None:
        was = keeper.role
        try:
            with trio.move_on_after(40.0) as scope:
                await keeper.failover(to, force=force)
        except Refused:
            self.count(f"failover on {was} refused")
        except Unavailable:
            self.count(f"failover on {was} unavailable")
        else:
            self.count(f"failover on {was} {'hung' if scope.cancelled_caught else 'done'}")

    async def _stop(self, nursery: trio.Nursery) -> None:
        node = self._pick()
        if not node.up:
            return
        self.count("stop")
        with trio.move_on_after(60.0):
            await node.stop()
        await trio.sleep(self._some_time())
        if not node.up:
            await node.ended.wait()
            node.start(nursery)

    async def _end_session(self, _: trio.Nursery) -> None:
        plane = self._pick().plane
        if plane is not None:
            self.count("session ended")
            self.store.end_session(plane.me.instance)
        await trio.lowlevel.checkpoint()

    async def _wipe(self, _: trio.Nursery) -> None:
        # Whoever has not seen the lease before knows nothing of it, and afterwards nobody could tell it.
        if self._agree() and not self.away and not self.cut and self.rng.random() < 0.3:
            self.count("store wiped")
            self.store.wipe()
        await trio.lowlevel.checkpoint()

    async def _fetch_snapshot(self, _: trio.Nursery) -> None:
        """A replica is in the middle of a snapshot."""
        plane = self.rng.choice(self.nodes).plane
        if plane is not None and plane.epoch == 0:
            self.count("snapshot")
            plane.whole = False
            await trio.sleep(self._some_time())
            plane.whole = True
