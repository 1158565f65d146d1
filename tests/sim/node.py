"""One simulated node: a machine with its data directory, and the process on it when there is one."""

from typing import TYPE_CHECKING

import trio

from litereplica.cluster.lease import Endpoint, Holding, View
from litereplica.lease.memory import MemoryLease, MemoryStore
from litereplica.node.keeper import Keeper
from tests.sim.gate import Gate
from tests.sim.plane import Durable, SimPlane

if TYPE_CHECKING:
    from tests.sim.world import World


class SeenStore(MemoryStore):
    """Tells the checker which epochs are given."""

    world: "World"

    def put(self, holding: Holding | None, *, lapsed: Holding | None = None) -> None:
        super().put(holding, lapsed=lapsed)
        if holding is not None and holding.epoch > 0:
            self.world.checker.granted(holding.holder.node, holding.epoch)


class SeenLease(MemoryLease):
    """Tells the world which attempts took what was offered to them."""

    world: "World"

    async def acquire(self, seen: View, me: Endpoint, ttl_s: float, seen_epoch: int) -> Holding:
        mine = await super().acquire(seen, me, ttl_s, seen_epoch)
        if seen.holding is not None and seen.holding.offered_to == me.node:
            self.world.by_offer[me.node, mine.epoch] = seen.holding.epoch
        return mine


class SimNode:
    """A machine with a data directory, and the process on it when there is one."""

    def __init__(self, world: "World", name: str, *, candidate: bool, priority: int) -> None:
        self.world = world
        self.name = name
        self.candidate = candidate
        self.priority = priority
        self.durable = Durable()
        self.starts = 0
        self.plane: SimPlane | None = None
        self.keeper: Keeper | None = None
        self.gate = Gate()
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.ended.set()
        # Clocks begin anywhere, and run as fast as quartz does.
        self._offset = world.rng.uniform(0.0, 1e5)
        self.slept_s = 0.0
        self._rate = 1.0 + world.rng.uniform(-5e-4, 5e-4)

    @property
    def up(self) -> bool:
        return self.plane is not None

    def awake(self) -> float:
        return self._offset + self._rate * trio.current_time()

    def clock(self) -> float:
        return self.awake() + self.slept_s

    def start(self, nursery: trio.Nursery) -> None:
        assert not self.up
        self.starts += 1
        me = Endpoint(self.name, f"{self.name}-{self.starts}", f"http://{self.name}", f"{self.name}:1")
        world = self.world
        ttl_s = world.timing.ttl_s
        lease = SeenLease(world.store, self.name, ttl_s, call_limit_s=min(0.5, ttl_s / 6))
        lease.world = world
        self.plane = SimPlane(world, me, self.durable, self.clock, candidate=self.candidate)
        self.keeper = Keeper(
            lease,
            self.plane,
            me,
            world.timing,
            candidate=self.candidate or world.mutation.candidate_is_ignored,
            priority=self.priority,
            outage="continue" if world.continues else "stop",
            clock=self.clock,
            awake=self.awake,
            known_cluster=self.durable.cluster,
        )
        self.gate, self.scope, self.ended = Gate(), trio.CancelScope(), trio.Event()
        self.gate.start_soon(nursery, self._live, self.plane, self.keeper, self.scope, self.ended)

    async def _live(self, plane: SimPlane, keeper: Keeper, scope: trio.CancelScope, ended: trio.Event) -> None:
        with scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(keeper.run)
                nursery.start_soon(plane.write)
                nursery.start_soon(plane.replicate)
        ended.set()

    async def crash(self) -> None:
        """Nothing of the process is left, at once."""
        if self.plane is None:
            return
        self.plane.alive = False
        self.plane = self.keeper = None
        self.scope.cancel()
        self.gate.open()
        await self.ended.wait()

    async def stop(self) -> None:
        """As SIGTERM does."""
        keeper, plane = self.keeper, self.plane
        assert keeper is not None
        await keeper.stop()
        if self.keeper is keeper and plane is self.plane:
            await self.crash()
