"""The locks that applications of this node have, or wait for: each open ``DB-halt`` is one.

Knows how a lock is asked for, renewed, given back and lost, on a replica (over the connection with the primary) and on
the primary itself. Does not know who else wants it (halting, on the primary), or whose file it is (mount.halt_file).

A lock that is lost stays in the way until its file is closed: no transaction of the database is taken from this node
meanwhile, because it might rest on the belief that nobody else has written. It is lost when the link to the primary is,
when another node becomes primary, when it could not be renewed in time, when the database is dropped, and when what is
here of it turns out not to be the primary's.
"""

import secrets
import time
from collections.abc import Callable
from typing import Final, Literal

import structlog
import trio

from litereplica.cluster.halts import LOCK_LIMIT_S, RENEW_EVERY_S
from litereplica.cluster.messages import HALT_GRANTED, HALT_REFUSED, HALT_WAITING, Halt, HaltState, Unhalt
from litereplica.cluster.status import LockStatus
from litereplica.config import WritesSettings
from litereplica.errors import Refused, Unavailable
from litereplica.mount.elsewhere import HoldHandle
from litereplica.node.halting import HaltChange, Halting
from litereplica.store.database import Database
from litereplica.store.store import Store

log = structlog.get_logger()

CATCH_UP_LIMIT_S: Final = 10.0
"""From the grant to having everything here; others wait for it meanwhile. A replica that is farther behind has hundreds
of megabytes to apply, and is better locked when it has them."""
ASK_AGAIN_S: Final = 0.5
"""After the primary said that it cannot now (it hands its role over): how soon it is asked again."""
LOOK_S: Final = 1.0
"""How often it is looked whether something is to be renewed, or has run out, while there is any lock."""
TOKEN_BITS: Final = 63
"""Of 2 ** 63 no two are the same in the life of a cluster; 0 stands for a lease."""

Outcome = Literal["", "granted", "refused", "again"]


class _Lock:
    """One open ``DB-halt``: the handle that the mount keeps. ``outcome``: of the asking that is under way."""

    __slots__ = (
        "_client",
        "expires_at",
        "name",
        "outcome",
        "reason",
        "since_ms",
        "state",
        "token",
        "txid",
        "unanswered",
    )

    def __init__(self, client: "HaltClient", name: str) -> None:
        self._client = client
        self.name = name
        self.state: Literal["waiting", "held", "lost"] = "waiting"
        self.reason = ""
        self.since_ms = time.time_ns() // 1_000_000
        self.expires_at = 0.0
        # What this node has to reach before the lock is worth anything.
        self.txid = 0
        self.ask_anew()

    def ask_anew(self) -> None:
        """Under another name: what the primary may still say of the last one does not count."""
        self.token = secrets.randbits(TOKEN_BITS) or 1
        self.outcome: Outcome = ""
        # When the oldest Halt was sent that is not answered.
        self.unanswered: float | None = None

    def enter(self, state: Literal["held", "lost"], reason: str = "") -> None:
        """It is held, or lost, from now on."""
        self.state, self.reason, self.since_ms = state, reason, time.time_ns() // 1_000_000

    def release(self) -> None:
        """The file is closed."""
        self._client.close(self)


class _Beginning:
    """A transaction under a rollback journal that waits for its lease; ``answer``: what the primary said last."""

    __slots__ = ("answer", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.answer: HaltState | None = None


class HaltClient:
    """One node's. ``nursery.start_soon(client.run)`` renews what is held."""

    def __init__(
        self,
        settings: WritesSettings,
        node: str,
        store: Store,
        halting: Halting,
        *,
        is_primary: Callable[[], bool],
        is_foreign: Callable[[str], bool],
        send: Callable[[Halt | Unhalt], bool],
        epoch: Callable[[], int],
    ) -> None:
        """``is_foreign``: whether what is here of a database is not (yet) of the primary's history.

        ``send``: queue a message for the primary; False when it is not connected (nothing is queued then).
        """
        # Told of locks that this node has and loses as a replica.
        self.changed: Callable[[HaltChange], None] = lambda _change: None
        # Database → why nothing of it is committed here, on a primary either, until a lost lock is closed.
        self.lost: dict[str, str] = {}
        self._needs_lock = settings.on_replica == "lock"
        self._limit_s = settings.timeout_s
        self._node = node
        self._store = store
        self._halting = halting
        self._is_primary = is_primary
        self._is_foreign = is_foreign
        self._send_away = send
        self._epoch = epoch
        self._locks: list[_Lock] = []
        self._beginning: list[_Beginning] = []
        self._change = trio.lowlevel.ParkingLot()
        # How many have ended: what was asked on one of them is not answered on the next.
        self._lines = 0
        self._some = trio.Event()
        halting.tell_here = self.told

    async def run(self) -> None:
        """Renew locks, and notice which have run out; for ever."""
        while True:
            if not self._locks:
                self._some = trio.Event()
                await self._some.wait()
            await trio.sleep(LOOK_S)
            self._expire()
            now = trio.current_time()
            for lock in list(self._locks):
                if lock.state != "lost" and lock.outcome in {"", "granted"} and self._is_due(lock, now):
                    self._ask(lock)

    def _is_due(self, lock: _Lock, now: float) -> bool:
        """After RENEW_EVERY_S without a Halt; ``expires_at`` says when the last that was answered was sent."""
        if lock.unanswered is not None:
            return now - lock.unanswered >= RENEW_EVERY_S
        return now >= lock.expires_at - LOCK_LIMIT_S + RENEW_EVERY_S

    # -- what the mount asks, through Elsewhere --------------------------------------------------------------------

    async def hold(self, name: str) -> HoldHandle:
        """Wait until this node alone may write the database and has all of it; on either role.

        Raises Refused (there is no such database, a lock of it was lost here and is still open, this node was not
        caught up in time), Unavailable (no primary is connected).
        """
        self._check_lost(name)
        lock = _Lock(self, name)
        self._locks.append(lock)
        self._some.set()
        try:
            while not await self._had(lock):
                self._send(Unhalt(self._epoch(), name, lock.token))
                lock.ask_anew()
        except BaseException:
            self.close(lock)
            raise
        lock.enter("held")
        if not self._is_primary():
            self.changed(HaltChange(name, self._node, ended=False))
        return lock

    async def _had(self, lock: _Lock) -> bool:
        """Ask once, and wait. False: to be asked again, of whoever is primary then."""
        with trio.move_on_after(self._limit_s) as connecting:
            while not self._ask(lock):
                await self._change.park()
        if connecting.cancelled_caught:
            raise Unavailable(f"no primary is connected for {self._limit_s:g} s: {lock.name} cannot be locked")
        while not lock.outcome:
            await self._change.park()
        if lock.outcome == "refused":
            raise Refused(lock.reason)
        if lock.outcome == "again":
            await trio.sleep(ASK_AGAIN_S)
            return False
        with trio.move_on_after(CATCH_UP_LIMIT_S) as catching_up:
            await self._catch_up(lock)
        if catching_up.cancelled_caught:
            raise Unavailable(
                f"{lock.name} is too far behind to be locked here: see the lag in /status, try again later"
            )
        # Another lock may have been lost while this one was waited for.
        self._check_lost(lock.name)
        return lock.outcome == "granted"

    async def _catch_up(self, lock: _Lock) -> None:
        """Return when readers here see what the primary had when it granted the lock, or it is lost again.

        A TXID says that only where the history is the primary's.
        """
        while lock.outcome == "granted":
            database, is_foreign = self._store.get(lock.name), self._is_foreign(lock.name)
            if database is not None and not is_foreign and database.applied >= lock.txid:
                return
            with trio.move_on_after(ASK_AGAIN_S):
                if database is None or is_foreign:
                    await self._change.park()
                else:
                    await database.waiters.wait(lock.txid)

    def _check_lost(self, name: str) -> None:
        if name in self.lost:
            raise Refused(f"{self.lost[name]}: end the process that has it open")

    async def begin(self, name: str) -> None:
        """A transaction under a rollback journal begins: the write lease is asked for, if it may be had soon.

        Returns too when it may not: then the transaction may turn out to be stale. Raises Refused when it is stale
        already, Unavailable when no primary is connected.

        A stale one does not wait for a primary: it keeps SQLite's lock, so that what it lacks is not applied here, and
        a promotion of this node waits for that.
        """
        database = self._store.get(name)
        if self._is_primary() or self._held(name) is not None or database is None:
            return
        beginning = _Beginning(name)
        self._beginning.append(beginning)
        try:
            with trio.move_on_after(self._limit_s):
                answer = await self._lease(database, beginning)
                if answer.state == HALT_GRANTED:
                    _check_base(database, answer)
                return
        finally:
            self._beginning.remove(beginning)
        raise Unavailable(f"the primary did not say within {self._limit_s:g} s whether {name} may be written")

    async def _lease(self, database: Database, beginning: _Beginning) -> HaltState:
        name = database.name
        while True:
            while not self._send(Halt(self._epoch(), name, 0, 0)):
                if database.is_behind:
                    raise _stale(name)
                await self._change.park()
            line = self._lines
            asked_again = trio.current_time() + RENEW_EVERY_S
            with trio.move_on_at(asked_again):
                while line == self._lines:
                    if (answer := beginning.answer) is not None and answer.state != HALT_WAITING:
                        return answer
                    await self._change.park()

    def problem(self, name: str) -> str | None:
        """Why no transaction of the database is taken here: a lost lock is open, or there is none and one is needed."""
        if self._locks:
            self._expire()
            if name in self.lost:
                return self.lost[name]
        return self._needed(name) if self._needs_lock and not self._is_primary() and self._held(name) is None else None

    @staticmethod
    def _needed(name: str) -> str:
        return f"writes.on_replica is lock: open {name}-halt for writing first (litereplica lock {name} -- COMMAND)"

    def token(self, name: str) -> int:
        """What Forward.token says of this database: of the lock that is held here, 0 for none."""
        held = self._held(name) if self._locks else None
        return held.token if held is not None else 0

    def _held(self, name: str) -> _Lock | None:
        return next((lock for lock in self._locks if lock.name == name and lock.state == "held"), None)

    def close(self, lock: _Lock) -> None:
        """Its file is closed, or was never opened: it is given back."""
        if lock not in self._locks:
            return
        self._locks.remove(lock)
        # Also of one that is lost: the primary need not remember it any more.
        self._send(Unhalt(self._epoch(), lock.name, lock.token))
        if lock.state == "held" and not self._is_primary():
            self.changed(HaltChange(lock.name, self._node, ended=True))
        if not any(each.name == lock.name and each.state == "lost" for each in self._locks):
            self.lost.pop(lock.name, None)
        self._change.unpark_all()

    # -- what the connection says ----------------------------------------------------------------------------------

    def told(self, message: HaltState) -> None:
        """The primary says something about a lock, or a lease."""
        if not message.token:
            for each in self._beginning:
                if each.name == message.database:
                    each.answer = message
            self._change.unpark_all()
            return
        lock = next((each for each in self._locks if each.token == message.token), None)
        if lock is None or lock.state == "lost":
            if message.state in {HALT_GRANTED, HALT_WAITING}:
                # Nobody here would give it back.
                self._send(Unhalt(self._epoch(), message.database, message.token))
            return
        if message.state == HALT_GRANTED:
            sent_at = lock.unanswered if lock.unanswered is not None else trio.current_time()
            lock.expires_at = sent_at + message.limit_ms / 1000
            if lock.outcome == "":
                lock.outcome, lock.txid = "granted", message.position.txid
        elif message.state == HALT_WAITING:
            # Renewed in the queue; from the grant on there is a new limit.
            lock.expires_at = trio.current_time() + LOCK_LIMIT_S
        elif message.state == HALT_REFUSED and lock.state == "waiting":
            lock.outcome, lock.reason = "refused", message.message
        else:
            self._lose(lock, message.message)
        lock.unanswered = None
        self._change.unpark_all()

    def connected(self) -> None:
        """A primary has welcomed this node: what waits is asked for."""
        self._change.unpark_all()

    def disconnected(self, reason: str) -> None:
        """The link is lost, or the primary is another one: what is held is lost."""
        self._lines += 1
        for lock in self._locks:
            self._lose(lock, reason)
        self._change.unpark_all()

    def parted(self, name: str) -> None:
        """What is here of a database is not the primary's: what was read under its lock may have been something else.

        The primary is not told. It ends the lock when the file is closed, or when nothing has renewed it.
        """
        for lock in self._locks:
            if lock.name == name and lock.state == "held":
                self._lose(lock, "what this node has of the database is replaced by what the primary has")
        self._change.unpark_all()

    def role_changed(self) -> None:
        """This node is the primary now, or no longer."""
        self.disconnected("another node is the primary now")

    # -- inside ----------------------------------------------------------------------------------------------------

    def _lose(self, lock: _Lock, reason: str) -> None:
        if lock.state == "waiting" and lock.outcome in {"", "granted"}:
            lock.outcome = "again"
        elif lock.state == "held":
            lock.enter("lost", reason)
            self.lost[lock.name] = (
                f"the lock of {lock.name} is lost ({reason}), and nothing is committed until its file is closed"
            )
            log.warning("lock_lost_here", database=lock.name, reason=reason)
            if not self._is_primary():
                self.changed(HaltChange(lock.name, self._node, ended=True, reason=reason))

    def _expire(self) -> None:
        now = trio.current_time()
        for lock in self._locks:
            if lock.outcome == "granted" and lock.state != "lost" and now >= lock.expires_at:
                self._lose(lock, f"it could not be renewed for {LOCK_LIMIT_S:g} s")

    def _ask(self, lock: _Lock) -> bool:
        """Ask, or renew; False when nobody can be asked."""
        is_first = lock.unanswered is None
        if is_first:
            lock.unanswered = trio.current_time()  # before it is sent: on the primary itself the answer is there after
        sent = self._send(Halt(self._epoch(), lock.name, lock.token, round(LOCK_LIMIT_S * 1000)))
        if not sent and is_first:
            lock.unanswered = None
        return sent

    def _send(self, message: Halt | Unhalt) -> bool:
        if not self._is_primary():
            return self._send_away(message)
        if isinstance(message, Halt):
            self._halting.halt(self._node, message)
        else:
            self._halting.unhalt(self._node, message)
        return True

    # -- what is shown ---------------------------------------------------------------------------------------------

    def statuses(self) -> list[LockStatus]:
        """Every open DB-halt of this node."""
        return [LockStatus(each.name, each.state, each.since_ms, each.reason) for each in self._locks]


def _check_base(database: Database, answer: HaltState) -> None:
    """The lease is worth nothing to a transaction that began before the primary's newest."""
    if answer.position.txid > database.position.txid:
        raise _stale(database.name)


def _stale(name: str) -> Refused:
    return Refused(f"the transaction of {name} is stale: others have been committed since it began")
