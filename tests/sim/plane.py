"""The data of a simulated node: a log, replicated over links that lose and delay."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

import trio

from litereplica.cluster.lease import Endpoint, Holding, Reign, Standing
from litereplica.errors import Unavailable
from tests.sim.checker import Checker, Entry

BATCH = 20


@dataclass
class Durable:
    """What a node finds again after a crash."""

    log: list[Entry] = field(default_factory=list)
    diverged: list[Entry] = field(default_factory=list)
    epoch: int = 0
    cluster: str = ""
    reigns: dict[int, Reign] = field(default_factory=dict)


@dataclass
class Mutation:
    """Deliberate mistakes; the simulation has to find them."""

    fence_is_ignored: bool = False
    acknowledges_blindly: bool = False
    tail_is_dropped: bool = False
    diverged_log_is_kept: bool = False
    margin_s: float | None = None
    candidate_is_ignored: bool = False
    promises_are_broken: bool = False


class Network(Protocol):
    """What a plane knows of the others."""

    rng: Random
    checker: Checker
    mutation: Mutation
    calm: bool
    quiet: bool

    def plane(self, node: str) -> "SimPlane | None":
        """Of a node that runs."""

    def linked(self, a: str, b: str) -> bool:
        """Whether bytes from a reach b now."""

    def new_value(self) -> int: ...

    def promise(self, node: str, epoch: int, hold_s: float) -> bool: ...

    def saw_epoch(self, node: str, epoch: int) -> None: ...

    def offered(self, node: str, epoch: int) -> int:
        """The epoch of the lease that was offered to ``node`` and is ``epoch`` since; 0: it was not."""


class SimPlane:
    """Plane, and what replication and applications do with it."""

    def __init__(
        self, network: Network, me: Endpoint, durable: Durable, clock: Callable[[], float], *, candidate: bool
    ) -> None:
        self._network = network
        self._rng = network.rng
        self.me = me
        self.durable = durable
        self._clock = clock
        self._candidate = candidate
        self.alive = True
        self.frozen = False
        self.whole = True
        self.epoch = 0
        """Of which this is the primary; 0: a replica."""
        self._fence = 0.0
        self._following: Holding | None = None
        self._generation = 0
        self._source: tuple[str, int] | None = None
        self.replica_positions: dict[str, tuple[float, int]] = {}
        """Replica → when it was last heard of, and what it has."""
        self._in_flight = 0
        self._held = False
        self.unyielding: tuple[str, ...] = ()
        self.fails_to_promote = False
        self.told: list[tuple[str, str, int, str]] = []

    # -- Plane -----------------------------------------------------------------------------------------------------

    def standing(self) -> Standing:
        log = self.durable.log
        return Standing(log[-1].epoch if log else 0, len(log), self.whole)

    def positions(self) -> dict[str, str]:
        return {"app.db": f"{len(self.durable.log):016x}/{0:016x}"} if self.durable.log else {}

    def seen_epoch(self) -> int:
        return self.durable.epoch

    def replicas(self) -> tuple[str, ...]:
        now = trio.current_time()
        return tuple(sorted(name for name, (at, _) in self.replica_positions.items() if now - at < 1.0))

    def set_fence(self, until: float) -> None:
        self._fence = until

    def renewed(self, outcome: str) -> None:
        assert outcome in {"done", "refused", "unknown"}

    def role_changed(self, role: str, primary: Endpoint | None, epoch: int, reason: str) -> None:
        assert reason
        self.told.append((role, primary.node if primary else "", epoch, reason))

    async def note_cluster(self, cluster: str) -> None:
        await self._disk()
        self.durable.cluster = cluster

    async def note_epoch(self, epoch: int) -> None:
        await self._disk()
        self.durable.epoch = max(self.durable.epoch, epoch)

    async def note_reigns(self, reigns: tuple[Reign, ...]) -> None:
        self.durable.reigns.update({each.epoch: each for each in reigns})
        await trio.lowlevel.checkpoint()

    async def _disk(self) -> None:
        await trio.sleep(self._rng.uniform(0.0, 0.01))

    async def follow(self, holding: Holding | None) -> None:
        assert holding is None or holding.holder.node != self.me.node, "it follows an earlier life of itself"
        if self.epoch == 0 and holding != self._following:
            same = holding is not None and self._following is not None and holding.holder == self._following.holder
            self._following = holding
            if not same:
                self._disconnect()
        await trio.lowlevel.checkpoint()

    def _disconnect(self) -> None:
        self._generation += 1
        self._source = None

    async def promote(self, epoch: int) -> None:
        self._following = None
        self._disconnect()
        await trio.sleep(self._rng.choice((0.0, 0.005, 0.02, 0.1, 0.5)))
        if self.fails_to_promote or (not self._network.calm and self._rng.random() < 0.03):
            raise Unavailable("what is logged could not be applied")
        if not self.alive:
            return
        self._network.checker.promoted(self.me.node, epoch, candidate=self._candidate)
        if offered := self._network.offered(self.me.node, epoch):
            self._network.checker.handed_off(self.me.node, self.durable.log, offered)
        self.replica_positions = {}
        self.epoch = epoch

    async def demote(self) -> None:
        self.epoch = 0
        self._disconnect()
        while self._in_flight:
            await trio.sleep(0.005)

    async def quiesce(self, limit_s: float) -> tuple[str, ...]:
        if self.unyielding or (not self._network.calm and self._rng.random() < 0.2):
            await trio.sleep(limit_s)
            return self.unyielding or ("app.db: process 7 (writer)",)
        self._held = True
        with trio.move_on_after(limit_s):
            while self._in_flight:
                await trio.sleep(0.002)
            return ()
        return ("app.db: process 8 (slow)",)

    async def resume_writers(self) -> None:
        self._held = False
        await trio.lowlevel.checkpoint()

    async def acknowledged(self, node: str, limit_s: float) -> bool:
        if self._network.mutation.acknowledges_blindly:
            await trio.lowlevel.checkpoint()
            return True
        wanted = len(self.durable.log)
        with trio.move_on_after(limit_s):
            while self.replica_positions.get(node, (0.0, -1))[1] < wanted:
                await trio.sleep(0.005)
            return True
        return False

    async def drain(self, limit_s: float) -> None:
        with trio.move_on_after(limit_s):
            while self._in_flight or any(
                self._reaches(name) and have < len(self.durable.log)
                for name, (_, have) in self.replica_positions.items()
            ):
                await trio.sleep(0.005)

    async def ask_promises(self, nodes: frozenset[str], hold_s: float, limit_s: float) -> frozenset[str]:
        promised = []
        for node in sorted(nodes):
            await trio.sleep(self._rng.uniform(0.0, limit_s / 10))
            if self._reaches(node) and self._network.promise(node, self.epoch, hold_s):
                promised.append(node)
                await trio.sleep(self._rng.uniform(0.0, limit_s / 10))
        return frozenset(promised)

    def _reaches(self, node: str) -> bool:
        other = self._network.plane(node)
        there_and_back = self._network.linked(self.me.node, node) and self._network.linked(node, self.me.node)
        return other is not None and not other.frozen and there_and_back

    # -- applications ----------------------------------------------------------------------------------------------

    async def write(self) -> None:
        """An application that commits whenever it may."""
        while True:
            await trio.sleep(self._rng.expovariate(20.0))
            if not self._held and not self._network.quiet:
                await self._commit()

    def _accepts(self, epoch: int) -> bool:
        if not self.alive or self.epoch == 0 or self.epoch != epoch:
            return False
        return self._clock() < self._fence or self._network.mutation.fence_is_ignored

    async def _commit(self) -> None:
        epoch = self.epoch
        if not self._accepts(epoch):
            return
        self._in_flight += 1
        try:
            entry = Entry(len(self.durable.log) + 1, epoch, self._network.new_value())
            self.durable.log.append(entry)
            self._network.checker.entered(self.me.node, entry)
            if self._rng.random() < 0.5:
                await trio.sleep(self._rng.uniform(0.0, 0.03))
            if self._accepts(epoch):
                self._network.checker.answered(self.me.node, entry)
        finally:
            self._in_flight -= 1

    # -- replication -----------------------------------------------------------------------------------------------

    async def replicate(self) -> None:
        while True:
            await trio.sleep(self._rng.uniform(0.005, 0.05))
            holding = self._following
            source = self._network.plane(holding.holder.node) if holding is not None else None
            if holding is None or source is None or source is self or source.me != holding.holder:
                continue
            if not self._reaches(source.me.node) or self.epoch or not source.epoch:
                self._source = None
                continue
            if source.epoch < self.durable.epoch:
                self._network.saw_epoch(source.me.node, self.durable.epoch)
                self._source = None
                continue
            await self._receive_from(source)

    async def _receive_from(self, source: "SimPlane") -> None:
        """One answer of the primary: what follows after the common position."""
        generation, connection = self._generation, (source.me.instance, source.epoch)
        log = self.durable.log
        common = self._common(source.durable.log) if self._source != connection else len(log)
        batch = source.durable.log[common : common + BATCH]
        await trio.sleep(self._rng.expovariate(100.0) if self._rng.random() < 0.9 else self._rng.uniform(0.0, 0.5))
        if not self.alive or generation != self._generation or connection[1] < self.durable.epoch:
            return
        self.durable.epoch = max(self.durable.epoch, connection[1])
        if common < len(log) and not self._network.mutation.diverged_log_is_kept:
            if not self._network.mutation.tail_is_dropped:
                self.durable.diverged += log[common:]
            del log[common:]
        self._source = connection
        for entry in batch:
            if entry.txid == len(log) + 1:
                log.append(entry)
                self._network.checker.entered(self.me.node, entry)
        if source.alive and (source.me.instance, source.epoch) == connection and self._reaches(source.me.node):
            source.replica_positions[self.me.node] = (trio.current_time(), len(log))

    def _common(self, other: list[Entry]) -> int:
        """Length of the common history."""
        low, high = 0, min(len(self.durable.log), len(other))
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.durable.log[:middle] == other[:middle] else (low, middle - 1)
        return low
