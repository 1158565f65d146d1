"""Transactions of applications on a replica, committed by the primary: what the mount asks (mount.elsewhere).

Knows the connection to the primary while there is one, what is on its way, what was answered, and when nobody can know.
Does not know how a transaction is found or held (mount), how the primary commits (node.committer), nor locks
(node.halt_client).

A transaction ends in one of four ways, and the first that happens counts:

- its record comes back in the log: the held bytes are completed in that very stretch (store.awaited);
- another record takes its place, or the primary says no: refused, and the application may begin again;
- this node becomes primary: what its log has not, no other node that counts has; it is committed here;
- ``timeout_s``: refused when it never left as a whole, else indeterminate (one log line with position and id).

A connection that ends decides nothing: with the next one, to whichever primary, all that is under way is sent again
with the same origin. A primary that has it in its log says so; one that was promoted without it cannot commit it any
more once it has gone on from the base.

Promotion, with an application that holds SQLite's write lock because its commit is held here, in the order of
data_plane.promote:

1. ``disconnect``: ``disconnected`` here; journeys stay, nothing can arrive any more.
2. drain: a held commit has ``position == applied`` (``ready``), so nothing of that database is to be applied. Had a
   record come after its base, it was refused in that stretch, and the application lets go of the lock. A writer that is
   not at its commit yet may keep the applier waiting: then the drain's limit decides, as for any other reason. But what
   is to be laid over (store.unlaid) is not waited for where an application has the database open: the first transaction
   that is committed here makes it needless (mount.first_page).
3. release: the applier reads the wal-index, where somebody has one, and gives up what it was to lay over while others
   have the lock. It asks for no lock that an application may have, be it SQLite's or the kernel's.
4. ``begin_as_primary`` of the mount, the role, then ``become_primary`` here: one stretch. What is held is woken with
   BecamePrimary and committed as on any primary; nobody can have been in between, for its application has the lock.

Demotion: nothing is under way here then; commits of those who write on wait for the next connection.
"""

import contextlib
from collections.abc import Callable
from typing import Final

import structlog
import trio

from litereplica.applier.link import ApplierLink
from litereplica.cluster.messages import (
    OUTCOME_BUSY,
    OUTCOME_COMMITTED,
    OUTCOME_NOT_PRIMARY,
    OUTCOME_REFUSED,
    OUTCOME_STALE,
    Outcome,
    SyncTo,
)
from litereplica.errors import LitereplicaError, Refused, Unavailable
from litereplica.mount.access import Access
from litereplica.mount.elsewhere import BecamePrimary, HoldHandle, Lost
from litereplica.node import forward_counts as counted
from litereplica.node.forward_counts import ForwardCounts
from litereplica.node.halt_client import HaltClient
from litereplica.node.journey import NEVER, Journey
from litereplica.replication.lines import UpLine
from litereplica.store.awaited import Awaited
from litereplica.store.database import Database
from litereplica.store.local import LocalTransaction, Stale
from litereplica.store.store import Store

log = structlog.get_logger()

SLOWEST_BYTES_PER_S: Final = 4 * 1024 * 1024
"""A long transaction gets its way to the primary, and its commit there, on top of ``timeout_s``: at this rate."""
AGAIN_S: Final = 0.1
"""A primary that cannot commit just now (its lease is being renewed, it is being demoted) is asked again after this."""
LEASE_LIMIT_S: Final = 0.3
"""A transaction that is found to be stale here is refused when its retry has the write lease, or after this: a little
more than the primary itself waits (node.halting)."""
STOPS: Final = "this node stops"
REPORT_LIMIT_S: Final = 1.0
"""The applier answers at once what it has published; a machine that has everything else to do."""


class _Question:
    """A SyncTo: ``outcome`` is None until it is answered, and for ever when the connection ends first."""

    __slots__ = ("ended", "outcome")

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.outcome: Outcome | None = None


class Forwarder:
    """``Elsewhere`` of a node; on a primary only ``hold`` is asked. All of it belongs to the loop's thread."""

    def __init__(
        self,
        store: Store,
        access: Access,
        halts: HaltClient,
        counts: ForwardCounts,
        *,
        timeout_s: float,
        link: Callable[[], ApplierLink],
        is_foreign: Callable[[str], bool],
        may_commit: Callable[[Database], bool],
    ) -> None:
        """``is_foreign``: whether what is here of a database is not (yet) of the primary's history.

        ``may_commit``: whether the applier has nothing under way that would come into the files after a commit.
        """
        # Told of each transaction that the primary did not commit, or may not have: (database, outcome, reason).
        self.not_committed: Callable[[str, str, str], None] = lambda _name, _outcome, _reason: None
        self._store = store
        self._access = access
        self._halts = halts
        self._counts = counts
        self._timeout_s = timeout_s
        self._link = link
        self._is_foreign = is_foreign
        self._may_commit = may_commit
        self._line: UpLine | None = None
        self._line_changed = trio.Event()
        self._is_promoted = False
        self._takes_none = False
        self._gives_up = False
        self._none_left = trio.Event()
        self._numbers = 0
        self._journeys: dict[str, Journey] = {}
        self._questions: dict[int, _Question] = {}
        self._reports: dict[int, trio.Event] = {}

    # -- what the mount asks ---------------------------------------------------------------------------------------

    def problem(self, name: str) -> str | None:
        """Why no transaction of the database is taken now; None when one is."""
        if self._is_foreign(name):
            return "what this node has of the database is not the primary's yet: wait until it has caught up"
        return self._halts.problem(name)

    async def ready(self, database: Database) -> None:
        """Return when readers here see all that is logged of it here. Raises Stale, its retry has a write lease."""
        if database.is_behind:
            await self._report(database.name)
        if database.is_behind:
            if self._line is not None:
                # Else at once: the applier wants the lock that the application keeps, and a promotion may wait for it.
                with trio.move_on_after(LEASE_LIMIT_S), contextlib.suppress(Refused, Unavailable):
                    await self._halts.begin(database.name)
                # The applier is awake when the application lets go of the lock, for a moment, after the refusal.
                await self._report(database.name)
            raise Stale(
                f"a transaction of {database.name} was made at {database.applied:016x}, the database is at "
                f"{database.position.txid:016x} by now: begin it again"
            )

    async def begin(self, name: str) -> None:
        """A transaction under a rollback journal begins. Raises Refused, Unavailable."""
        await self._halts.begin(name)

    @property
    def limit_s(self) -> float:
        """``writes.timeout``."""
        return self._timeout_s

    async def hold(self, name: str) -> HoldHandle:
        """Wait until this node alone may write the database, and has all of it. Raises Refused, Unavailable."""
        return await self._halts.hold(name)

    async def commit(self, transaction: LocalTransaction, awaited: Awaited, *, durable: bool) -> None:
        """Have the transaction committed; returns when its record is here, and durable on the primary if asked.

        Raises Refused, Unavailable, BecamePrimary.
        """
        name = transaction.name
        if self._access.primary:
            raise BecamePrimary(f"this node is the primary: the transaction of {name} is committed here")
        assert name not in self._journeys, f"two transactions of {name} at once"
        if not self._may_commit(transaction.database):
            raise Stale(f"what {name} has here is just being applied again: begin the transaction again")
        # The mount has asked before; now it counts, for in the same stretch the lock is noted that it was made under.
        problem = self._halts.problem(name)
        journey = self._journeys[name] = Journey(transaction, awaited, self._halts.token(name), durable=durable)
        if self._takes_none:
            problem = STOPS
        if problem is not None:
            journey.give_up(Refused(problem))
        self._counts.waiting += 1
        until = trio.current_time() + self._timeout_s + transaction.length / SLOWEST_BYTES_PER_S
        try:
            self._send(journey)
            await self._follow(journey, until)
        except LitereplicaError as error:
            outcome = _word_for(error)
            if outcome == counted.STALE and self._line is not None:
                await self._report(name)  # as in ``ready``
            self._counts.forwarded(outcome)
            self.not_committed(name, outcome, error.message)
            if outcome == counted.UNKNOWN:
                log.warning(
                    "commit_outcome_unknown", database=name, txid=f"{awaited.base.txid + 1:016x}",
                    base=str(awaited.base), origin=f"{awaited.origin.node}/{awaited.origin.id:016x}",
                    reason=error.message,
                )  # fmt: skip
            raise
        finally:
            journey.number = 0
            del self._journeys[name]
            if not self._journeys and self._takes_none:
                self._none_left.set()
            self._counts.waiting -= 1
        self._counts.forwarded(counted.COMMITTED)

    async def make_durable(self, name: str) -> None:
        """Return when the last transaction that was committed for this node is on the primary's disk.

        Raises Unavailable, Lost.
        """
        database = self._store.databases[name]
        await self._sync_to(database, database.own_txid, trio.current_time() + self._timeout_s)

    # -- one transaction -------------------------------------------------------------------------------------------

    async def _follow(self, journey: Journey, until: float) -> None:
        awaited = journey.awaited
        while not journey.has_ended():
            await journey.wait(min(until, journey.again_at))
            now = trio.current_time()
            if journey.has_ended():
                break
            if now >= until:
                raise self._too_late(journey)
            if now >= journey.again_at:
                self._send(journey)
        if awaited.committed:
            if journey.durable:
                await self._be_durable(journey, until)
            return
        if awaited.refused is not None:
            await self._await_lease(journey)
            raise Stale(awaited.refused)
        if awaited.unknown is not None:
            raise Unavailable(awaited.unknown) if journey.left else Refused(awaited.unknown)
        assert journey.verdict is not None
        raise journey.verdict

    async def _await_lease(self, journey: Journey) -> None:
        """The record that came first was faster than the primary's answer, which comes with a write lease."""
        with trio.move_on_after(LEASE_LIMIT_S):
            while journey.number and not journey.replied:
                await journey.heard()

    async def _be_durable(self, journey: Journey, until: float) -> None:
        with trio.CancelScope(deadline=until):
            while journey.number and not journey.done and not self._access.primary:
                await journey.heard()
        if not journey.done:
            # That answer does not come any more: another connection, or another primary, is asked.
            await self._sync_to(self._store.databases[journey.transaction.name], journey.awaited.base.txid + 1, until)

    def _too_late(self, journey: Journey) -> LitereplicaError:
        name, limit = journey.transaction.name, f"{self._timeout_s:g} s"
        if journey.left:
            return Unavailable(
                f"the primary did not say within {limit} what became of a transaction of {name}: it may be committed"
            )
        if self._line is None:
            return Refused(f"no primary could be reached for a transaction of {name} within {limit}: begin it again")
        return Refused(f"a transaction of {name} could not be sent to the primary within {limit}: begin it again")

    def _send(self, journey: Journey) -> None:
        """Send it, again or for the first time, if there is somebody to send it to."""
        line, name = self._line, journey.transaction.name
        journey.again_at = NEVER
        if journey.has_ended():
            return
        # What an earlier primary has said of its own disk and queue holds for no other one.
        journey.done = journey.replied = False
        if line is None or self._is_foreign(name):
            return
        self._numbers += 1
        journey.number = self._numbers
        line.send(journey.parcel(line.epoch, journey.number))

    def _answered(self, journey: Journey, outcome: Outcome) -> None:
        journey.replied = True
        journey.wake()
        if outcome.code == OUTCOME_COMMITTED:
            # Its record comes by itself, or is here already.
            journey.done = True
        elif journey.awaited.committed:
            # Committed, but whether it is durable this answer does not say.
            journey.number = 0
        elif outcome.code == OUTCOME_NOT_PRIMARY:
            journey.number = 0
            journey.again_at = trio.current_time() + AGAIN_S
            if outcome.position == journey.awaited.base:
                # Beyond its base it is another's, or this one: committed, and not durable when its lease ran out.
                journey.not_taken(outcome.epoch)
        elif outcome.code == OUTCOME_STALE:
            # Also in a later epoch: the transaction that came first goes with that one (docs/guarantees.md).
            journey.give_up(Stale(outcome.message))
        elif outcome.code == OUTCOME_BUSY:
            journey.refused(Busy(outcome.message), outcome.epoch)
        elif outcome.code == OUTCOME_REFUSED:
            journey.refused(Refused(outcome.message), outcome.epoch)
        else:
            journey.give_up(Unavailable(outcome.message))

    # -- what is durable on the primary ----------------------------------------------------------------------------

    async def _sync_to(self, database: Database, txid: int, until: float) -> None:
        """``txid``: of the newest transaction of this node, which nobody follows before this returns."""
        with trio.CancelScope(deadline=until):
            while not (self._access.primary or self._is_promoted):
                self._check_kept(database, txid)
                if self._gives_up:
                    raise Unavailable(f"{STOPS}: whether the primary has made {database.name} durable is not known")
                line = self._line
                if line is None:
                    await self._line_changed.wait()
                    continue
                outcome = await self._ask_sync(line, database.name, txid)
                if outcome is None:
                    continue
                if outcome.code == OUTCOME_COMMITTED:
                    self._check_kept(database, txid)
                    return
                if outcome.code != OUTCOME_NOT_PRIMARY:
                    raise Unavailable(outcome.message)
                await trio.sleep(AGAIN_S)
            # Here it is logged, and this node decides now (or is about to) what the cluster has.
            self._check_kept(database, txid)
            try:
                await database.log.sync()
            except OSError as error:
                raise Unavailable(f"the log of {database.name} cannot be made durable: {error.strerror}") from None
            return
        raise Unavailable(
            f"the primary did not say within {self._timeout_s:g} s that {database.name} is durable up to {txid:016x}"
        )

    def _check_kept(self, database: Database, txid: int) -> None:
        """The primary is asked by number: raises Lost, Unavailable unless it means the same transaction by it."""
        name = database.name
        if not txid or database.own_txid != txid:
            raise Lost(f"{name} was replaced since this node's last transaction was committed: it may be lost")
        if self._is_foreign(name):
            raise Unavailable(f"the primary has another history of {name}: what was committed last may be lost")

    async def _ask_sync(self, line: UpLine, name: str, txid: int) -> Outcome | None:
        self._numbers += 1
        number, question = self._numbers, _Question()
        self._questions[number] = question
        try:
            line.say(SyncTo(line.epoch, number, name, txid))
            await question.ended.wait()
        finally:
            self._questions.pop(number, None)
        return question.outcome

    # -- the connection, and the role ------------------------------------------------------------------------------

    def connected(self, line: UpLine) -> None:
        """A primary has welcomed this node: all that is under way is sent, again or for the first time."""
        self._line = line
        self._notice()
        for journey in self._journeys.values():
            self._send(journey)

    def disconnected(self) -> None:
        """The connection has ended: no answer comes any more to what was sent on it."""
        self._line = None
        self._notice()
        for journey in self._journeys.values():
            journey.number = 0
            journey.again_at = NEVER
            journey.wake()

    def told(self, outcome: Outcome) -> None:
        """The primary has answered; what nobody waits for is not heard."""
        question = self._questions.get(outcome.number)
        if question is not None:
            question.outcome = outcome
            question.ended.set()
            return
        for journey in self._journeys.values():
            if journey.number == outcome.number:
                self._answered(journey, outcome)

    def become_primary(self) -> None:
        """This node is the primary, in this very stretch: what is held is committed here."""
        for journey in self._journeys.values():
            name = journey.transaction.name
            journey.give_up(BecamePrimary(f"this node became primary: the transaction of {name} is committed here"))
        self._notice()

    def give_up_held(self) -> None:
        """A promotion does not get on: a held write may keep the applier in a system call on the same file.

        So may a held fsync of what is committed: until ``promotion_ended`` this node's own disk is what counts.
        """
        self._is_promoted = True
        self._notice()
        for journey in self._journeys.values():
            reason = f"this node's role changes, and a transaction of {journey.transaction.name} is in the way"
            journey.give_up(Unavailable(reason) if journey.left else Refused(f"{reason}: begin it again"))

    def promotion_ended(self) -> None:
        """This node is the primary, or it is not going to be."""
        self._is_promoted = False

    async def stop(self, limit_s: float) -> None:
        """Take no more transactions; what the primary has not answered by the limit is given up."""
        self._takes_none = True
        if self._journeys:
            with trio.move_on_after(limit_s):
                await self._none_left.wait()
        self.give_up()

    def give_up(self) -> None:
        """Nobody waits for a primary any more, nor begins to: this node stops, and its applier wants the same files."""
        self._takes_none = self._gives_up = True
        self._notice()
        for journey in self._journeys.values():
            journey.give_up(Unavailable(f"{STOPS}: it may be committed") if journey.left else Refused(STOPS))
            if journey.awaited.committed:
                # Whether it is durable is not waited for either (``_be_durable``).
                journey.number = 0
            journey.wake()

    def _notice(self) -> None:
        changed, self._line_changed = self._line_changed, trio.Event()
        changed.set()
        for question in self._questions.values():
            question.ended.set()

    # -- the applier -----------------------------------------------------------------------------------------------

    async def _report(self, name: str) -> None:
        """Return when the applier has told all that it has published, or cannot."""
        self._numbers += 1
        number, told = self._numbers, trio.Event()
        self._reports[number] = told
        try:
            with trio.move_on_after(REPORT_LIMIT_S):
                self._link().report(name, number)
                await told.wait()
        except Unavailable as error:
            log.warning("applier_not_asked", database=name, reason=error.message)
        finally:
            del self._reports[number]

    def on_reported(self, number: int) -> None:
        """As ApplierEvents."""
        if (told := self._reports.get(number)) is not None:
            told.set()

    def on_restarted(self) -> None:
        """The applier died: what it had published is known, or comes again."""
        for told in self._reports.values():
            told.set()


class Busy(Refused):
    """Another application kept SQLite's write lock on the primary for as long as a busy timeout lasts."""


def _word_for(error: LitereplicaError) -> str:
    if isinstance(error, BecamePrimary):
        return counted.BECAME_PRIMARY
    if isinstance(error, Stale):
        return counted.STALE
    if isinstance(error, Busy):
        return counted.BUSY
    return counted.REFUSED if isinstance(error, Refused) else counted.UNKNOWN
