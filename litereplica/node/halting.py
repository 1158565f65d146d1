"""Who may write a database of this primary besides its own applications: locks and write leases.

Knows how the decisions of cluster.halts are carried out: SQLite's write lock through the applier, messages to nodes,
and who waits here for a change. Does not know how a lock is asked for (halt_client, on each node), or how a transaction
is committed (the committer asks ``turn`` and ``refusal`` before it is).

Applications of the primary itself are kept away by SQLite's own lock; when one of them has ``DB-halt`` open nothing of
SQLite is locked, and only transactions of other nodes wait. One that the applier has already comes first: the committer
says when it has none (``settled``).
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from litereplica.applier.link import ApplierLink
from litereplica.cluster.halts import (
    HOLD_LIMIT_S,
    NEVER,
    Action,
    Admission,
    Claim,
    Denied,
    Ended,
    Granted,
    Halts,
    Hold,
    Lost,
    Settle,
    Unhold,
    Waiting,
)
from litereplica.cluster.halts import Kind as ClaimKind
from litereplica.cluster.messages import (
    HALT_GRANTED,
    HALT_LOST,
    HALT_REFUSED,
    HALT_WAITING,
    Halt,
    HaltState,
    Unhalt,
)
from litereplica.cluster.status import HaltStatus
from litereplica.config import WritesSettings
from litereplica.errors import Refused, Unavailable
from litereplica.ltx.position import Position
from litereplica.store.database import Database
from litereplica.store.store import Store

log = structlog.get_logger()

STALE_LIMIT_S: Final = 0.25
"""The answer to a stale transaction waits so long for its lease: an application of the primary that is inside a
transaction is usually out of it by then, and the other node's application is held meanwhile."""
TURN_LIMIT_S: Final = 5.0
"""A transaction of one node waits so long while another has the database, then it is refused: long enough for every
lease. Never more than half of ``writes.timeout``, so that its application learns that nothing was committed."""


class Halted(Refused):
    """Another node has the database to itself."""


@dataclass(frozen=True, slots=True)
class HaltFigures:
    """Since this process started: leases given, and seconds that databases were held, by kind (lock, lease)."""

    leases: int
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class HaltChange:
    """For events: ``node`` has the lock of a database, or (``ended``) has it no more; ``reason``: why it was lost."""

    database: str
    node: str
    ended: bool
    reason: str = ""


class Halting:
    """One node's; refuses everything while the node is a replica. ``nursery.start_soon(halting.run)`` keeps times."""

    def __init__(
        self,
        settings: WritesSettings,
        node: str,
        store: Store,
        *,
        link: Callable[[], ApplierLink],
        tell: Callable[[str, HaltState], None],
        epoch: Callable[[], int],
    ) -> None:
        """``tell``: queue a message for a replica by name, dropped when it is not connected; never waits."""
        # Told what concerns this node's own applications (halt_client), and of each lock that begins or ends.
        self.tell_here: Callable[[HaltState], None] = lambda _state: None
        self.changed: Callable[[HaltChange], None] = lambda _change: None
        # Whether a transaction of another node is at the applier; ``settled`` is called when it is not any more.
        self.is_committing: Callable[[str], bool] = lambda _database: False
        self._lease_s = settings.conflict_lease_s
        self._turn_limit_s = min(TURN_LIMIT_S, settings.timeout_s / 2)
        self._node = node
        self._store = store
        self._link = link
        self._tell = tell
        self._epoch = epoch
        self._leads = False
        self._handing_over_since_ms: int | None = None
        # One for each database that was ever asked for: their numbers must not begin again.
        self._halts: dict[str, Halts] = {}
        # Who waits for the end of what the applier commits for another node: the number of a Settle by database.
        self._settling: dict[str, int] = {}
        # Who has what now, and since when (ms since 1970).
        self._since_ms: dict[str, int] = {}
        self._leases = 0
        self._seconds = {kind.value: 0.0 for kind in ClaimKind}
        # What is to be done, by database, in this order; and whether somebody is about it.
        self._todo: deque[tuple[str, Action]] = deque()
        self._doing = False
        self._change = trio.lowlevel.ParkingLot()
        self._alarm = trio.Event()
        self._alarm_at = NEVER

    async def run(self) -> None:
        """End what has lasted too long, and let the next one have it; for ever."""
        while True:
            self._alarm = trio.Event()
            self._alarm_at = min((each.next_at() for each in self._halts.values()), default=NEVER)
            with trio.move_on_at(self._alarm_at):
                await self._alarm.wait()
            now = trio.current_time()
            for name, each in list(self._halts.items()):
                if each.next_at() <= now:
                    self._do(name, each.tick(now))

    # -- what nodes ask --------------------------------------------------------------------------------------------

    def halt(self, node: str, message: Halt) -> None:
        """A node wants a database, or renews (the same token). Token 0: a write lease."""
        name, claim = message.database, Claim(node, message.token)
        problem = self._problem(name)
        if problem is None and not message.token and not self._lease_s:
            problem = "no leases are given: writes.conflict_lease is 0 on the primary"
        if problem is not None:
            self._answer(name, claim, HALT_REFUSED if self._leads else HALT_LOST, 0, problem)
            return
        halts = self._halts.get(name)
        if halts is None:
            halts = self._halts[name] = Halts(self._node, self._lease_s)
        self._do(name, halts.ask(claim, message.limit_ms / 1000, trio.current_time()))

    def unhalt(self, node: str, message: Unhalt) -> None:
        """It gives it back, or no longer wants it."""
        halts = self._halts.get(message.database)
        if halts is not None:
            self._do(message.database, halts.give_back(Claim(node, message.token), trio.current_time()))

    def node_gone(self, node: str) -> None:
        """Its connection has ended, or another one is about to be heard: whatever it had or waited for is over.

        Not called for a connection that another one of the same node has replaced: what that one asked for is not over.
        """
        now = trio.current_time()
        for name, each in list(self._halts.items()):
            self._do(name, each.gone(node, now))

    def _problem(self, name: str) -> str | None:
        if not self._leads:
            return "this node is not the primary, or is handing its role over"
        database = self._store.get(name)
        if database is None or not database.exists:
            return f"the primary has no database {name}: create it first, then it can be locked"
        return None

    # -- what the committer asks -----------------------------------------------------------------------------------

    async def turn(self, node: str, token: int, database: str) -> None:
        """Wait until a transaction of this node may be committed; before it queues for the database.

        Raises Refused: it was made under a lock that is lost; Halted: another node kept the database.
        """
        with trio.move_on_after(self._turn_limit_s):
            while self._admission(node, token, database) is Admission.LATER:
                await self._change.park()
        problem = self.refusal(node, token, database)
        if problem is not None:
            late = self._admission(node, token, database) is Admission.LATER
            raise Halted(problem) if late else Refused(problem)

    def refusal(self, node: str, token: int, database: str) -> str | None:
        """Why a transaction may not be committed in this instant; asked right before it is, without an await.

        When it is only not its turn (somebody took the lock after ``turn``), ``turn`` may be awaited again.
        """
        match self._admission(node, token, database):
            case Admission.YES:
                return None
            case Admission.LOST:
                return f"the lock of {database} that this transaction was made under is lost: nothing was committed"
            case Admission.LATER:
                holder = self._halts[database].holder
                who = f"node {holder.claim.node} has it" if holder is not None else "another node is about to have it"
                return f"{database} is locked ({who}): nothing was committed, try again"

    def _admission(self, node: str, token: int, database: str) -> Admission:
        halts = self._halts.get(database)
        if halts is None:
            return Admission.LOST if token else Admission.YES
        return halts.admits(node, token)

    async def stale(self, node: str, database: str) -> None:
        """A transaction was stale: returns when its node has the write lease, or after STALE_LIMIT_S without it."""
        if not self._lease_s or self._problem(database) is not None:
            await trio.lowlevel.checkpoint()
            return
        claim = Claim(node, 0)
        self.halt(node, Halt(self._epoch(), database, 0, 0))
        halts = self._halts[database]
        with trio.move_on_after(STALE_LIMIT_S):
            while halts.wants(claim):
                await self._change.park()
        await trio.lowlevel.checkpoint()

    def committed(self, node: str, database: str) -> None:
        """A transaction of this node was committed."""
        halts = self._halts.get(database)
        if halts is not None and halts.holder is not None:
            self._do(database, halts.committed(node, trio.current_time()))

    def settled(self, database: str) -> None:
        """The transaction of another node that was at the applier is there no more."""
        number = self._settling.pop(database, None)
        if number is not None:
            self.on_held(database, number)

    # -- what the applier says, and what happens to this node ------------------------------------------------------

    def on_held(self, database: str, number: int) -> None:
        """SQLite's write lock is had, for the claim that ``number`` was asked for."""
        halts = self._halts.get(database)
        if halts is not None:
            self._do(database, halts.held(number, trio.current_time()))

    def on_hold_refused(self, database: str, number: int, holder: str) -> None:
        """``holder`` kept it all the while; or why it cannot be had."""
        halts = self._halts.get(database)
        if halts is not None:
            reason = f"SQLite's write lock of {database} is not to be had on the primary: {holder}"
            self._do(database, halts.hold_refused(number, reason, trio.current_time()))

    def on_hold_lost(self, database: str, number: int, reason: str) -> None:
        """SQLite's write lock is held no more: whoever has the database is not alone."""
        halts = self._halts.get(database)
        if halts is not None:
            self._do(database, halts.hold_lost(number, reason, trio.current_time()))

    def on_restarted(self) -> None:
        """The applier died, and what it held with it."""
        now = trio.current_time()
        for name, each in list(self._halts.items()):
            self._do(name, each.applier_restarted(now))

    def begin(self) -> None:
        """This node is the primary (again): locks may be had."""
        self._leads = True
        self._handing_over_since_ms = None
        # What applications of this node had lost as a replica, or in an earlier time as primary, is their client's.
        self.node_gone(self._node)

    def end(self, reason: str, *, handing_over: bool = False) -> None:
        """It is not any more, or is about to hand its role over: every lock and lease is lost, and none is given."""
        self._leads = False
        if handing_over:
            self._handing_over_since_ms = time.time_ns() // 1_000_000
        now = trio.current_time()
        for name, each in list(self._halts.items()):
            self._do(name, each.end(reason, now))

    def _watch_drop(self, database: Database) -> None:
        """A listener of the store, while anybody has a database or waits for one."""
        if not database.exists and database.name in self._halts:
            halts = self._halts[database.name]
            self._do(database.name, halts.end(f"{database.name} was dropped on the primary", trio.current_time()))

    # -- what is shown ---------------------------------------------------------------------------------------------

    def statuses(self) -> dict[str, HaltStatus]:
        """Who has which database here."""
        since_ms = self._handing_over_since_ms
        if since_ms is not None:
            found = self._store.databases.values()
            return {each.name: HaltStatus("", "handoff", since_ms) for each in found if each.exists}
        return {
            name: HaltStatus(each.holder.claim.node, each.holder.claim.kind.value, self._since_ms[name], each.waiting)
            for name, each in self._halts.items()
            if each.holder is not None
        }

    def figures(self) -> HaltFigures:
        """What metrics show; what is held now counts up to now."""
        seconds = dict(self._seconds)
        now = trio.current_time()
        for each in self._halts.values():
            if each.holder is not None:
                seconds[each.holder.claim.kind.value] += max(0.0, now - each.holder.since)
        return HaltFigures(self._leases, seconds)

    # -- doing -----------------------------------------------------------------------------------------------------

    def _do(self, name: str, actions: list[Action]) -> None:
        """Do it, after what is being done: an answer to an application of this node may ask for more."""
        self._todo += [(name, action) for action in actions]
        if not self._doing:
            self._doing = True
            try:
                while self._todo:
                    self._do_one(*self._todo.popleft())
            finally:
                self._doing = False
        if actions:
            self._change.unpark_all()
            self._watch(self._watch_drop)
        if self._halts[name].next_at() < self._alarm_at:
            self._alarm.set()

    def _do_one(self, name: str, action: Action) -> None:
        """Raises nothing: what follows would be lost with it, an Unhold for ever."""
        match action:
            case Hold(number):
                self._hold(name, number)
            case Unhold():
                self._link().unhold(name)
            case Settle(number):
                self._settling[name] = number
                if not self.is_committing(name):
                    self.settled(name)
            case Granted(claim, limit_s):
                self._granted(name, claim)
                self._answer(name, claim, HALT_GRANTED, limit_s)
            case Waiting(claim):
                self._answer(name, claim, HALT_WAITING, 0)
            case Lost(claim, reason, held):
                self._lost(name, claim, reason, held=held)
            case Denied(claim, reason):
                self._answer(name, claim, HALT_REFUSED, 0, reason)
            case Ended():
                self._ended(name, action)

    def _hold(self, name: str, number: int) -> None:
        try:
            self._link().hold(name, number, HOLD_LIMIT_S)
        except Unavailable as error:
            # Far more is waiting for the applier than it should be; whoever asks again finds it better.
            log.warning("hold_not_asked", database=name, reason=error.message)

    def _granted(self, name: str, claim: Claim) -> None:
        if name in self._since_ms:
            return  # renewed
        self._since_ms[name] = time.time_ns() // 1_000_000
        if claim.kind is ClaimKind.LEASE:
            self._leases += 1
            log.debug("write_lease_given", database=name, to=claim.node)
        else:
            log.info("database_locked", database=name, by=claim.node)
            self.changed(HaltChange(name, claim.node, ended=False))

    def _ended(self, name: str, ended: Ended) -> None:
        claim, seconds = ended.claim, ended.until - ended.since
        self._since_ms.pop(name, None)
        self._seconds[claim.kind.value] += seconds
        if claim.kind is ClaimKind.LOCK:
            log.info("database_unlocked", database=name, by=claim.node, seconds=round(seconds, 3))
            self.changed(HaltChange(name, claim.node, ended=True, reason=ended.reason))

    def _lost(self, name: str, claim: Claim, reason: str, *, held: bool) -> None:
        if held and claim.kind is ClaimKind.LOCK:
            log.warning("lock_lost", database=name, by=claim.node, reason=reason)
        self._answer(name, claim, HALT_LOST, 0, reason)

    def _answer(self, name: str, claim: Claim, state: str, limit_s: float, message: str = "") -> None:
        database = self._store.get(name)
        position = database.position if database is not None else Position.ZERO
        answer = HaltState(self._epoch(), name, claim.token, state, position, int(limit_s * 1000), message)
        if claim.node == self._node:
            self.tell_here(answer)
        else:
            self._tell(claim.node, answer)

    def _watch(self, watch: Callable[[Database], None]) -> None:
        """Hear of drops while there is something to lose; commits pay nothing at other times."""
        wanted = any(not each.idle for each in self._halts.values())
        listeners = self._store.listeners
        if wanted and watch not in listeners:
            listeners.append(watch)
        elif not wanted and watch in listeners:
            listeners.remove(watch)
