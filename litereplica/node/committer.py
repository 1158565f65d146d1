"""Transactions of replicas, committed on this primary by its applier.

Knows one at a time per database, the applier as the one that writes, and the log as the one that knows: whatever the
applier says, or does not say because it died, a transaction is committed if and only if the record after its base has
its origin. Does not know how they arrive (node.intake), locks and leases (node.halting), or how the mount captures a
commit.

What may happen in between:

- Sent twice, because the connection was lost: the later one waits until the earlier one has an end, then looks.
- Another transaction comes first: answered as stale in the stretch in which that is counted. The applier may still wait
  for SQLite's write lock; the mount refuses what it writes then, and the database's turn ends with its answer.
- The applier dies: what it had written without the mount's consent was never committed. The replica sends it again.
- The lease runs out, or is handed over: no new one is begun (``pause``), the mount refuses those that are not counted
  yet (the fence), and ``end`` returns when the applier has none under way: it is about to become a replica's. The
  replica is told to ask the next primary.

An answer that says "not committed" is given only when the log has just been looked at and no earlier sending of the
same transaction is under way. None is given to say that one is committed, unless it had to be durable: its record goes
to the replica as any other, and says it.
"""

from collections.abc import Callable
from typing import Final

import structlog
import trio

from litereplica.applier.link import ApplierLink
from litereplica.applier.protocol import RECORD_LIMIT_BYTES
from litereplica.cluster.messages import (
    OUTCOME_BUSY,
    OUTCOME_COMMITTED,
    OUTCOME_NOT_PRIMARY,
    OUTCOME_REFUSED,
    OUTCOME_STALE,
    OUTCOME_UNKNOWN,
    Forward,
    ForwardPart,
    Outcome,
    SyncTo,
)
from litereplica.errors import LitereplicaError, Refused, Unavailable
from litereplica.ltx.position import Position
from litereplica.mount.access import Access
from litereplica.mount.files import fence
from litereplica.mount.operations import Operations
from litereplica.node.forward_counts import ForwardCounts
from litereplica.node.halting import Halted, Halting
from litereplica.node.intake import Arrival, Intake
from litereplica.replication.lines import DownLine
from litereplica.store.database import Database
from litereplica.store.log import Trimmed
from litereplica.store.store import Store

log = structlog.get_logger()

LOCK_LIMIT_S: Final = 5.0
"""How long the applier waits for SQLite's write lock: the busy timeout that applications usually have."""
SLOWEST_BYTES_PER_S: Final = 4 * 1024 * 1024
"""A long transaction is written at least at this rate; then the applier is taken for stuck."""
ANSWER_SLACK_S: Final = 30.0
"""What the applier may take beyond that: a machine that has everything else to do."""
END_LIMIT_S: Final = 1.0
"""A change of role waits so long for the applier to give up what it waits for; then it is ended and starts anew."""
AGAIN_S: Final = 0.002
"""Before a database whose lock somebody took in the last moment is asked for again."""

Settled = tuple[str, str]
"""Code of an Outcome, and a message."""


class _UnderWay:
    """One transaction at the applier."""

    __slots__ = ("answer", "answered", "arrival", "decided", "died", "number")

    def __init__(self, number: int, arrival: Arrival) -> None:
        self.number = number
        self.arrival = arrival
        # Set when the log has gone on from its base, or the applier has answered.
        self.decided = trio.Event()
        self.answered = trio.Event()
        # Of the applier, if it is not that it is committed.
        self.answer: Settled | None = None
        self.died = False


class Committer:
    """One node's. ``run`` must be running before the first replica joins."""

    def __init__(
        self,
        store: Store,
        access: Access,
        operations: Operations,
        halting: Halting,
        counts: ForwardCounts,
        *,
        timeout_s: float,
        link: Callable[[], ApplierLink],
        kill_applier: Callable[[], None],
    ) -> None:
        """``timeout_s``: nobody waits longer for a transaction that is not begun."""
        self._store = store
        self._access = access
        self._operations = operations
        self._halting = halting
        self._counts = counts
        self._timeout_s = timeout_s
        self._link = link
        self._kill_applier = kill_applier
        self._intake = Intake(store)
        self._lines: set[DownLine] = set()
        self._numbers = 0
        # By database: who is at the applier, and who waits for that.
        self._under_way: dict[str, _UnderWay] = {}
        self._waiting: dict[str, trio.lowlevel.ParkingLot] = {}
        self._paused: trio.Event | None = None
        self._idle = trio.lowlevel.ParkingLot()
        self._nursery: trio.Nursery | None = None
        halting.is_committing = self._under_way.__contains__

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do what replicas ask, for ever."""
        self._store.listeners.append(self._changed)
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._store.listeners.remove(self._changed)

    # -- what replicas send ----------------------------------------------------------------------------------------

    def joined(self, line: DownLine) -> None:
        """A replica is connected; nobody is there for what an earlier connection of it has brought and is not begun."""
        for older in [each for each in self._lines if each.replica == line.replica]:
            self.left(older)
        self._lines.add(line)

    def left(self, line: DownLine) -> None:
        """It is not any more: what has not begun is not begun, it will be sent again."""
        self._lines.discard(line)
        self._intake.forget(line)

    def take(self, line: DownLine, message: Forward | ForwardPart | SyncTo) -> None:
        """A piece of a transaction, or a question. Raises Corrupt."""
        assert self._nursery is not None
        if isinstance(message, SyncTo):
            self._nursery.start_soon(self._sync_to, line, message)
            return
        forward = message if isinstance(message, Forward) else self._intake.arriving(line, message.number)
        if forward is None:
            return  # nobody wants it any more
        try:
            if isinstance(message, Forward):
                arrival = self._intake.begin(line, message)
            else:
                arrival = self._intake.go_on(line, message)
        except Refused as error:
            settled = OUTCOME_BUSY, error.message
        except OSError as error:
            reason = f"the primary's data directory cannot take it ({error.strerror}): free some room on its disk"
            settled = OUTCOME_REFUSED, reason
        else:
            if arrival is not None:
                self._nursery.start_soon(self._serve, arrival)
            return
        self._nursery.start_soon(self._settle, line, forward, self._say(forward, settled))

    async def _sync_to(self, line: DownLine, message: SyncTo) -> None:
        database = self._store.get(message.database)
        if database is None or database.position.txid < message.txid:
            settled = (OUTCOME_UNKNOWN, f"the primary does not have {message.txid:016x} of {message.database}")
            self._answer(line, message.number, Position.ZERO, settled)
        else:
            self._answer(line, message.number, database.position, await self._make_durable(database))

    async def _make_durable(self, database: Database) -> Settled:
        try:
            await database.log.sync()
        except OSError as error:
            fence(self._access, database, error)
            return OUTCOME_UNKNOWN, f"the primary's disk failed ({error.strerror}): what is durable is not known"
        if (problem := self._access.problem()) is not None:
            return OUTCOME_NOT_PRIMARY, problem
        return OUTCOME_COMMITTED, ""

    def _answer(self, line: DownLine, number: int, position: Position, settled: Settled) -> None:
        line.say(Outcome(self._store.epoch, number, settled[0], position, settled[1]))

    # -- one transaction -------------------------------------------------------------------------------------------

    async def _serve(self, arrival: Arrival) -> None:
        """Have it committed, and answer."""
        settled = await self._wait_turn(arrival)
        if settled is None:
            settled = await self._commit(arrival)
        else:
            self._intake.done(arrival)
        await self._settle(arrival.line, arrival.forward, settled)

    async def _settle(self, line: DownLine, forward: Forward, settled: Settled) -> None:
        """Answer what became of it."""
        name = forward.database
        database = self._store.get(name)
        if settled[0] == OUTCOME_COMMITTED:
            assert database is not None
            self._halting.committed(line.replica, name)
            if forward.durable:
                settled = await self._make_durable(database)
        elif settled[0] == OUTCOME_STALE:
            await self._halting.stale(line.replica, name)
        self._counts.taken(settled[0])
        position = database.position if database is not None else Position.ZERO
        log.debug("forward_answered", replica=line.replica, database=name, code=settled[0], reason=settled[1])
        if forward.durable or settled[0] != OUTCOME_COMMITTED:
            self._answer(line, forward.number, position, settled)

    async def _wait_turn(self, arrival: Arrival) -> Settled | None:
        """Return None when it may be given to the applier now: its database has nobody else there. Else the answer."""
        forward, replica = arrival.forward, arrival.line.replica
        name = forward.database
        refusal = f"the primary had no turn for a transaction of {name} within {self._timeout_s:g} s"
        with trio.move_on_after(self._timeout_s):
            while True:
                while self._paused is not None:
                    await self._paused.wait()
                if (found := self._look(forward)) is not None:
                    return found
                try:
                    await self._halting.turn(replica, forward.token, name)
                except Refused as error:
                    code = OUTCOME_BUSY if isinstance(error, Halted) else OUTCOME_REFUSED
                    return self._say(forward, (code, error.message))
                while name in self._under_way:
                    await self._waiting.setdefault(name, trio.lowlevel.ParkingLot()).park()
                if (found := self._look(forward) or self._obstacle(arrival)) is not None:
                    return found
                if self._paused is None:
                    refused = self._halting.refusal(replica, forward.token, name)
                    if refused is None:
                        return None
                    refusal = refused
                    await trio.sleep(AGAIN_S)
        return self._say(forward, (OUTCOME_BUSY, refusal))

    def _obstacle(self, arrival: Arrival) -> Settled | None:
        """Why nothing is committed here now, which says nothing of the next time, or of another node."""
        problem = self._access.problem()
        if arrival.line not in self._lines:
            problem = "the connection has ended"
        elif problem is None and self._link().pid is None:
            problem = "the primary's applier is being started"
        return (OUTCOME_NOT_PRIMARY, problem) if problem is not None else None

    def _look(self, forward: Forward) -> Settled | None:
        """What the log says of it; None: it may be committed."""
        name, base = forward.database, forward.base
        database = self._store.get(name)
        position = database.position if database is not None else Position.ZERO
        if position == base:
            return None
        if database is not None and position.txid > base.txid:
            try:
                origin = database.origin_at(base.txid + 1)
            except (Trimmed, OSError, LitereplicaError) as error:
                return OUTCOME_UNKNOWN, f"the log of {name} no longer tells what came after {base}: {error}"
            if origin == forward.origin:
                return OUTCOME_COMMITTED, ""
        return OUTCOME_STALE, f"a transaction of {name} was made at {base}, it is at {position} by now: begin it again"

    def _say(self, forward: Forward, settled: Settled) -> Settled:
        """``settled``, which says that it is not committed, if that is certain."""
        if (found := self._look(forward)) is not None:
            return found
        under_way = self._under_way.get(forward.database)
        if under_way is not None and under_way.arrival.forward.origin == forward.origin:
            return OUTCOME_UNKNOWN, f"an earlier sending of it is under way still: {settled[1]}"
        return settled

    async def _commit(self, arrival: Arrival) -> Settled:
        """Give it to the applier; the answer comes as soon as the log has it, or can never have it."""
        forward = arrival.forward
        name = forward.database
        self._numbers += 1
        under_way = self._under_way[name] = _UnderWay(self._numbers, arrival)
        try:
            record = arrival.spool.whole(RECORD_LIMIT_BYTES)
            self._operations.expect(name, forward.base, forward.origin)
            arrival.line.expect(name)
            self._link().commit(name, under_way.number, record, forward.length, LOCK_LIMIT_S)
        except OSError as error:
            self._end(under_way)
            reason = f"the primary's data directory cannot take it ({error.strerror}): free some room on its disk"
            return OUTCOME_REFUSED, reason
        except Unavailable as error:
            self._end(under_way)
            return OUTCOME_BUSY, error.message
        assert self._nursery is not None
        self._nursery.start_soon(self._end_when_answered, under_way)
        await under_way.decided.wait()
        if (found := self._look(forward)) is not None:
            return found
        if (problem := self._access.problem()) is not None:
            return OUTCOME_NOT_PRIMARY, problem
        if under_way.answer is None:
            log.error("forward_lost", database=name, base=str(forward.base), replica=arrival.line.replica)
            return OUTCOME_UNKNOWN, "the primary's applier says it is committed, the log has it not"
        return under_way.answer

    async def _end_when_answered(self, under_way: _UnderWay) -> None:
        forward = under_way.arrival.forward
        limit_s = LOCK_LIMIT_S + ANSWER_SLACK_S + forward.length / SLOWEST_BYTES_PER_S
        with trio.move_on_after(limit_s):
            await under_way.answered.wait()
        if not under_way.answered.is_set():
            log.error("applier_stuck", database=forward.database, seconds=round(limit_s), then="it is ended")
            self._kill_applier()
            await under_way.answered.wait()
        if under_way.died:
            # The mount may still be logging what the dead one has written.
            with trio.move_on_after(ANSWER_SLACK_S):
                await self._access.wait_idle()
            under_way.decided.set()
        self._end(under_way)

    def _end(self, under_way: _UnderWay) -> None:
        """The applier has done with it: the next one has its turn."""
        name = under_way.arrival.forward.database
        self._operations.expect_nothing(name)
        del self._under_way[name]
        self._halting.settled(name)
        self._intake.done(under_way.arrival)
        if (waiting := self._waiting.get(name)) is not None:
            waiting.unpark_all()
            if not waiting:
                del self._waiting[name]
        if not self._under_way:
            self._idle.unpark_all()

    def _changed(self, database: Database) -> None:
        """Something was committed (a listener of the store): decides what is under way."""
        under_way = self._under_way.get(database.name) if self._under_way else None
        if under_way is not None and database.position != under_way.arrival.forward.base:
            if not under_way.decided.is_set():
                self._operations.expect_nothing(database.name)
            under_way.decided.set()

    # -- what the applier says -------------------------------------------------------------------------------------

    def on_committed(self, database: str, number: int) -> None:
        """As ApplierEvents."""
        self._answered(database, number, None)

    def on_commit_refused(self, database: str, number: int, reason: str, *, busy: bool) -> None:
        """As ApplierEvents."""
        self._answered(database, number, (OUTCOME_BUSY if busy else OUTCOME_REFUSED, reason))

    def _answered(self, database: str, number: int, answer: Settled | None) -> None:
        under_way = self._under_way.get(database)
        if under_way is not None and under_way.number == number:
            under_way.answer = answer
            under_way.decided.set()
            under_way.answered.set()

    def on_restarted(self) -> None:
        """The applier died, and there is a new one: nothing of what was under way goes on."""
        for under_way in self._under_way.values():
            under_way.answer = OUTCOME_NOT_PRIMARY, "the applier of the primary died: it is to be sent again"
            under_way.died = True
            self._operations.expect_nothing(under_way.arrival.forward.database)
            under_way.answered.set()

    # -- a change of role ------------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Begin no other one: the role is about to be handed over."""
        if self._paused is None:
            self._paused = trio.Event()

    def resume(self) -> None:
        """It is known who is primary: go on, or say that this is another node."""
        if self._paused is not None:
            self._paused.set()
            self._paused = None

    async def end(self) -> None:
        """Return when none is at the applier. The fence is closed: no other one is begun."""
        with trio.move_on_after(END_LIMIT_S):
            await self._wait_idle()
            return
        log.warning("applier_ended", reason="it waits for a lock on behalf of a replica, and the role changes")
        self._kill_applier()
        await self._wait_idle()

    async def _wait_idle(self) -> None:
        while self._under_way:
            await self._idle.park()
