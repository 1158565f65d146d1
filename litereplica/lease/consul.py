"""A lease that Consul keeps.

Knows which keys there are, and who may call themselves a member of this cluster:

==========================  ====================================================================  ====================
``KEY``                     the lease: who has it, epoch, counter, ttl                            locked by the session
``KEY/cluster``             the cluster's id, the highest epoch, who acquired the lease last      for good
``KEY/members/NAME``        what each node says of itself                                         locked by the session
``KEY/history/EPOCH``       who was primary when                                                  the 100 newest
==========================  ====================================================================  ====================

How the lease itself is taken and kept is consul_key.py; how agents are talked to consul_client.py.
"""

import contextlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import structlog
import trio

from litereplica.cluster.lease import PROTOCOL, Endpoint, Holding, Member, Reign, View
from litereplica.config import ConsulSettings
from litereplica.errors import LitereplicaError, Refused, Unavailable
from litereplica.lease.consul_client import (
    Agents,
    Denied,
    Entry,
    NotDone,
    Tls,
    call_limit_s,
    delete,
    get,
    get_below,
    keys_below,
    operation,
    transact,
)
from litereplica.lease.consul_key import WRITES_LIMIT, LeaseKey, Steps
from litereplica.lease.consul_session import RETRY_S, Session
from litereplica.lease.records import (
    Foreign,
    MemberRecord,
    read_lease,
    read_member,
    read_reign,
    write_member,
    write_reign,
)
from litereplica.lease.will import Will

log = structlog.get_logger(__name__)

LONGEST_HISTORY: Final = 100
# Of a name that two processes want at once, in which the one's entry goes while the other reads it.
_NAME_ATTEMPTS: Final = WRITES_LIMIT


@dataclass(frozen=True, slots=True)
class ConsulOptions:
    """Where Consul is, and which key is ours."""

    urls: Sequence[str]
    key: str
    ttl_s: float
    token: str = field(default="", repr=False)
    tls: Tls = field(default_factory=Tls)

    @classmethod
    def of(cls, settings: ConsulSettings) -> "ConsulOptions":
        """From the configuration."""
        tls = settings.tls
        return cls(
            settings.urls, settings.key, settings.ttl_s, settings.token, Tls(tls.ca, tls.cert, tls.key, tls.verify)
        )

    def document(self) -> dict[str, Any]:
        """What the child of will.py needs of it."""
        files = {"ca": self.tls.ca, "cert": self.tls.cert, "key": self.tls.key}
        tls = {name: None if path is None else str(path) for name, path in files.items()}
        return {
            "urls": list(self.urls),
            "token": self.token,
            "tls": tls | {"verify": self.tls.verify},
            "limit_s": self.ttl_s,
        }


class ConsulLease:
    """Implements Lease (base.py). ``node_id`` is the same at every start of this node and of no other node.

    ``will`` (started by the caller) is told what to undo in Consul when this process dies. Raises Misconfigured when
    the files for TLS cannot be used.
    """

    def __init__(self, options: ConsulOptions, instance: str, node_id: str, will: Will | None = None) -> None:
        self._options = options
        self._instance = instance
        self._node_id = node_id
        self._will = will
        self._agents = Agents(options.urls, options.token, options.tls, call_limit_s(options.ttl_s))
        self._session = Session(self._agents, f"litereplica {instance}", options.ttl_s)
        self._lease = LeaseKey(self._agents, self._session, options.key, options.ttl_s, self._bequeath)
        self._steps: Steps = []
        self._member: Member | None = None
        self._member_session = ""
        self._member_index = 0
        self._held: Holding | None = None

    # -- coming and going ------------------------------------------------------------------------------------------

    async def join(self, known_cluster: str, member: Member) -> str:
        try:
            self._lease.cluster = known_cluster
            await self._check_protocols()
            found = await get(self._agents, self._options.key)
            named = "" if found is None else read_lease(found.key, found.value, found.index)[0]
            await self._lease.look()
            await self._session.ensure()
            cluster = await self._lease.make_record(known_cluster or named or uuid.uuid4().hex)
            self._lease.cluster = cluster
            await self._lease.look()  # now it has to be this cluster's
            await self._publish(member)
        except (Denied, Foreign) as error:
            raise Refused(error.message) from error
        return cluster

    async def _check_protocols(self) -> None:
        for each in await self._member_entries():
            protocol = read_member(each.key, each.value).member.protocol
            assert protocol <= PROTOCOL  # read_member has refused a newer one

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        task_status.started()
        failing = False
        while True:
            pause_s = self._session.renew_every_s
            try:
                await self._session.renew()
                if self._member is not None and self._member_session != self._session.id:
                    await self._lease.make_record(self._lease.cluster)
                    await self._publish(self._member)
                failing = False
            except LitereplicaError as error:
                if not failing:
                    log.warning("consul_session_not_renewed", reason=error.message)
                failing = True
                pause_s = min(pause_s, RETRY_S)
            await trio.sleep(pause_s)

    async def close(self) -> None:
        try:
            if self._held is not None:
                with contextlib.suppress(Refused):  # somebody else has it, or may have it: fine
                    await self.release(self._held, alone=False)
        except LitereplicaError as error:
            log.warning("lease_not_released", reason=error.message)
        try:
            await self._session.end()
        except (LitereplicaError, NotDone) as error:
            log.warning("consul_session_not_ended", reason=str(error))
        await self._agents.close()

    # -- the lease -------------------------------------------------------------------------------------------------

    async def watch(self, known: View | None, limit_s: float) -> View:
        return await self._lease.watch(known, limit_s)

    async def acquire(self, seen: View, me: Endpoint, ttl_s: float, seen_epoch: int) -> Holding:
        self._held = await self._lease.acquire(seen, me, ttl_s, seen_epoch)
        return self._held

    async def renew(self, mine: Holding, offered_to: str = "", *, alone: bool = True) -> Holding:
        try:
            self._held = await self._lease.renew(mine, offered_to, alone=alone)
        except Refused:
            self._held = None
            raise
        return self._held

    async def release(self, mine: Holding, *, alone: bool = True) -> None:
        self._held = None
        await self._lease.release(mine, alone=alone)

    def _bequeath(self, steps: Steps) -> None:
        """Tell the child what it does when this process dies."""
        self._steps = steps
        if self._will is not None and self._session.id:
            self._will.update(self._options.document() | {"session": self._session.id, "steps": steps})

    # -- members ---------------------------------------------------------------------------------------------------

    async def publish(self, member: Member) -> None:
        await self._publish(member)

    async def members(self) -> tuple[Member, ...]:
        found = []
        for entry in await self._member_entries():
            try:
                found.append(read_member(entry.key, entry.value).member)
            except Foreign as error:
                log.warning("member_not_understood", reason=error.message)
        return tuple(sorted(found, key=lambda member: member.endpoint.node))

    async def _member_entries(self) -> list[Entry]:
        return await get_below(self._agents, f"{self._options.key}/members/")

    async def _publish(self, member: Member) -> None:
        name = member.endpoint.node
        key = f"{self._options.key}/members/{name}"
        value = write_member(MemberRecord(member, self._node_id))
        self._member = member
        for _ in range(_NAME_ATTEMPTS):
            session = await self._session.ensure()
            if self._member_session != session:
                self._member_index = 0
            where = "check-index" if self._member_index else "check-not-exists"
            steps = [
                operation(where, key, index=self._member_index),
                operation("lock", key, value, session=session),
            ]
            try:
                found = await transact(self._agents, *steps)
            except NotDone as refused:
                if any("invalid session" in reason for reason in refused.reasons):
                    self._session.lost(session)
                self._member_index = await self._make_room(key, name, session)
                continue
            self._member_index, self._member_session = found[key].index, session
            self._bequeath(self._steps)
            return
        raise Unavailable(f"the key '{key}' in Consul changes all the time")

    async def _make_room(self, key: str, name: str, session: str) -> int:
        """Remove an earlier life's entry of this node. The index of an entry that is ours. Raises Refused."""
        entry = await get(self._agents, key)
        if entry is None:
            return 0
        if entry.session == session:
            return entry.index
        record = read_member(key, entry.value)
        at = record.member.endpoint
        if record.node_id != self._node_id:
            raise Refused(
                f"another node named '{name}' is there (at {at.replication}): give one of them another node.name; if "
                f"it has died, that is noticed within {self._session.gone_within_s:g} s"
            )
        if self._member_session and at.instance != self._instance:
            raise Refused(
                f"node '{name}' was started a second time (at {at.replication}) with a copy of this data directory: "
                f"stop one of them, and start it again with another node.name and an empty data directory"
            )
        with contextlib.suppress(NotDone):  # it has changed; the next turn looks again
            await transact(self._agents, operation("delete-cas", key, index=entry.index))
        return 0

    # -- history ---------------------------------------------------------------------------------------------------

    async def add_reign(self, reign: Reign) -> None:
        folder = f"{self._options.key}/history/"
        await transact(self._agents, operation("set", f"{folder}{reign.epoch:016x}", write_reign(reign)))
        for key in (await keys_below(self._agents, folder))[:-LONGEST_HISTORY]:
            await delete(self._agents, key)

    async def history(self) -> tuple[Reign, ...]:
        entries = await get_below(self._agents, f"{self._options.key}/history/")
        return tuple(sorted((read_reign(each.key, each.value) for each in entries), key=lambda reign: reign.epoch))
