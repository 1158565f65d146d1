"""A replica whose history is not the primary's finds the last common position, keeps what is beyond it, and goes back.

Knows the dialogue with the primary and the order of the steps. Does not know how something is kept (store/keep.py), how
content is had from the past (store/rewind.py), or connections (receiver.py).

Search and Found alternate until the common position is exact. Then, each durable before the next: what this node has
beyond it is kept; its content there is built from its own log and file, and installed. Resume asks for the records
after it. Where this node does not have the content, Resync asks for a snapshot. A cut at any step begins anew with the
next connection, and finds what is kept already. What cannot be kept whole, because the file is damaged, stays as it is.
"""

from typing import TYPE_CHECKING, Final

import structlog
import trio

from litereplica.cluster.catch_up import Narrowing
from litereplica.cluster.messages import Found, Resume, Resync, Search, Welcome
from litereplica.errors import Corrupt, Refused, Unavailable
from litereplica.ltx.position import Point, Position
from litereplica.replication.wake import Wake
from litereplica.store.cursor import Trimmed
from litereplica.store.database import Database
from litereplica.store.diverged import Entry, forget_log, logs_set_aside
from litereplica.store.keep import NotKept, keep
from litereplica.store.regain import OldLog
from litereplica.store.rewind import content_at, dropped_content, remove_content
from litereplica.store.snapshot import FinishedSnapshot

if TYPE_CHECKING:
    from litereplica.replication.client import ReplicationClient
    from litereplica.replication.receiver import Receiver

log = structlog.get_logger(__name__)

ANSWER_LIMIT_S: Final = 30.0
"""A primary looks up 64 positions in some milliseconds; one that has lost the indexes of its log reads up to a GiB."""
LOOKS_IN_A_TURN: Final = 8
"""Own positions that are looked up before other tasks have their turn."""


class Reconciler:
    """The databases of one connection whose history here is another one, one after the other."""

    def __init__(self, receiver: "Receiver", client: "ReplicationClient", welcome: Welcome) -> None:
        self._receiver = receiver
        self._client = client
        self._store = client.store
        self._welcome = welcome
        self._asked: Search | None = None
        self._found = 0
        self._wake = Wake()
        # Who keeps something clears away what an earlier attempt has left half kept.
        self._keeping = trio.Lock()

    async def run(self) -> None:
        """Until nothing is left. Raises Corrupt (what the primary says), Unavailable (also NotKept), OSError."""
        welcome = self._welcome
        for name in sorted(welcome.diverged):
            database = self._store.get(name)
            if database is None:
                raise Corrupt(f"the primary says that {name} diverged, which this node does not have")
            await self._reconcile(database, welcome.databases[name].position)
        for name, database in sorted(self._store.databases.items()):
            if name not in welcome.databases and database.exists and database.epoch < welcome.epoch:
                await self._drop(database)

    def found(self, message: Found) -> None:
        """The primary's answer. Raises Corrupt when it is one to nothing that was asked."""
        asked = self._asked
        if asked is None or asked.database != message.database:
            raise Corrupt(f"the primary answers a search of {message.database} that this node has not begun")
        if message.txid and message.txid not in {each.txid for each in asked.samples}:
            raise Corrupt(f"the primary has found {message.txid:016x} of {message.database}, which was not asked for")
        self._asked = None
        self._found = message.txid
        self._wake.set()

    # -- one database ----------------------------------------------------------------------------------------------

    async def _reconcile(self, database: Database, theirs: Position) -> None:
        name = database.name
        position = database.position
        try:
            point, common = await self._search(database, theirs)
            base = point.position
            log.warning(
                "history_diverged", database=name, position=str(position), primary=self._welcome.node,
                common=str(base) if common else "none in the log here",
            )  # fmt: skip
            reason = (
                f"{self._welcome.node} has another history" if theirs.txid > base.txid else "the primary ends there"
            )
            await self._keep(database, base, common=common, reason=reason)
            # From here on all that this node has is in the primary's history, or kept.
            self._receiver.superseded(name)
            if not common:
                raise Refused("nothing of the log here is common history")  # noqa: TRY301  the one way to a snapshot
            old_log = OldLog(database, base.txid)
            finished = await content_at(database, base)
        except NotKept as error:
            if not error.lasting:
                raise
            # It is not installed over, nor does it hold up the others.
            log.error(  # noqa: TRY400  a person needs the reason, not the stack
                "transactions_not_kept", database=name, reason=error.message, then="it stays as it is"
            )
            return
        except (Refused, Corrupt) as error:
            log.warning("snapshot_needed", database=name, reason=error.message)
            self._receiver.say(Resync(self._welcome.epoch, name, error.message))
            return
        finally:
            if database.position != position:
                log.error("history_changed_meanwhile", database=name)
        await self._install(database, finished, old_log)
        log.info("went_back", database=name, position=str(base), pages=finished.page_count)
        self._receiver.say(Resume(self._welcome.epoch, name, point))
        self._receiver.settled(database)

    async def _keep(self, database: Database, base: Position, *, common: bool, reason: str) -> Entry | None:
        if database.position == base and not database.exists:
            return None  # dropped, and nothing came after it
        return await keep(
            database, base, common=common, primary=self._welcome.node, primary_epoch=self._welcome.epoch, reason=reason
        )

    async def keep_own(self, database: Database) -> bool:
        """Before a snapshot that nobody could compare with what is here: whether that ends with commits of this node.

        They were acknowledged to its applications, and the cluster may not have them: they are kept then, once.
        Raises NotKept, OSError: then the snapshot must not take the place of what is here.
        """
        async with self._keeping:
            return await self._keep_own(database)

    async def _keep_own(self, database: Database) -> bool:
        try:
            end = database.position.txid
            if end < database.log.first_txid or database.log.header(end).node != self._store.node:
                return False
            base = self._own_point(database, database.log.first_txid - 1).position
            reason = f"the log of {self._welcome.node} does not go back to it"
            return await self._keep(database, base, common=False, reason=reason) is not None
        except (Refused, Corrupt) as error:
            log.warning("own_transactions_not_kept", database=database.name, reason=error.message, then="its log is")
            return False

    async def _install(self, database: Database, finished: FinishedSnapshot, old_log: OldLog | None = None) -> None:
        """``old_log``: the part of the log that stays; the rest is the primary's too, or kept."""
        name = database.name
        self._client.forget_marks(name)
        before = logs_set_aside(self._store, name)
        try:
            await self._client.install(finished)
        finally:
            remove_content(database)
            if database.position == finished.position and database.install_failure is None:
                # Some milliseconds, also when the connection has just been cut: what is set aside is not needed there.
                with trio.CancelScope(shield=True):
                    for each in logs_set_aside(self._store, name) - before:
                        if old_log is not None:
                            await old_log.take_back(each)
                        forget_log(self._store.disk, each)

    # -- the search ------------------------------------------------------------------------------------------------

    async def _search(self, database: Database, theirs: Position) -> tuple[Point, bool]:
        """The last point that both have; or the one before all that the log here has, and False."""
        records = database.log
        first = max(1, records.first_txid - 1)
        # The primary has nothing beyond its own position: a replica that is just ahead needs one round.
        narrowing = Narrowing(first - 1, max(first - 1, min(database.position.txid, theirs.txid)) + 1)
        while not narrowing.done:
            found = await self._ask(database, narrowing.samples())
            narrowing = narrowing.narrowed(found)
        if narrowing.low >= first:
            return self._own_point(database, narrowing.low), True
        return self._own_point(database, records.first_txid - 1), False

    async def _ask(self, database: Database, txids: list[int]) -> int:
        samples = []
        for number, txid in enumerate(txids, 1):
            samples.append(self._own_point(database, txid))
            if number % LOOKS_IN_A_TURN == 0:
                await trio.lowlevel.checkpoint()
        self._asked = Search(self._welcome.epoch, database.name, tuple(samples))
        self._receiver.say(self._asked)
        with trio.move_on_after(ANSWER_LIMIT_S) as scope:
            await self._wake.wait()
        if scope.cancelled_caught:
            raise Unavailable(f"{self._welcome.node} has not answered a search for {ANSWER_LIMIT_S:g} s")
        return self._found

    @staticmethod
    def _own_point(database: Database, txid: int) -> Point:
        """Raises Trimmed when the log has lost it, since the search began."""
        point = database.log.point_at(txid)
        if point is None:
            raise Trimmed(f"the log of {database.name} was trimmed meanwhile")
        return point

    # -- databases that the primary does not know ------------------------------------------------------------------

    async def _drop(self, database: Database) -> None:
        """A database that only this node has, of an epoch that is over: kept whole, then dropped, as everywhere."""
        name, position = database.name, database.position
        reason = f"{self._welcome.node} does not have this database"
        async with self._keeping:
            base = self._own_point(database, database.log.first_txid - 1).position
            try:
                entry = await self._keep(database, base, common=False, reason=reason)
            except (Refused, Corrupt, NotKept) as error:
                log.warning("database_unknown_to_primary", database=name, reason=error.message, then="it stays")
                return
        # The primary may have made one of this name meanwhile: its snapshot has the place of what would be installed.
        is_expected = name in self._client.foreign
        if entry is None or not entry.whole or database.position != position or is_expected:
            log.warning("database_unknown_to_primary", database=name, primary=self._welcome.node, then="it stays")
            return
        self._receiver.hide(name)
        await self._install(database, dropped_content(database))
        log.warning("database_unknown_to_primary", database=name, primary=self._welcome.node, then="it was dropped")
        self._receiver.settled(database)
