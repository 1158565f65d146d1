"""Whether this node is where a client has been before, and waiting until it is.

Knows what each answer about a position means, and when a position can never come: it was lost with its primary. Does
not know HTTP requests of clients (proxy.handler).
"""

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

from litereplica.errors import Unavailable
from litereplica.ltx.position import Position, format_txid
from litereplica.proxy.local_node import LocalNode
from litereplica.proxy.node_api import ANSWER_LIMIT_S, NodeApi, position_in
from litereplica.proxy.primary import Primaries

# Replication takes milliseconds. After this long the primary is asked whether it has the transaction at all.
DOUBT_S: Final = 0.3
# Each waits in memory; more than this is an attack, and gets what a read gets at its limit.
WAITING_LIMIT: Final = 10_000


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """What became of a client's positions.

    ``lost``: databases in which it has seen transactions that are not in the cluster's history, with where this node
    is instead. ``behind``: databases that did not get there in time.
    """

    lost: dict[str, Position] = field(default_factory=dict)
    behind: tuple[str, ...] = ()


EVERYTHING: Final = CaughtUp()


class CatchUp:
    """Waits on behalf of requests. ``waiting``: how many do."""

    def __init__(self, local: LocalNode, api: NodeApi, primaries: Primaries, limit_s: float) -> None:
        self._local = local
        self._api = api
        self._primaries = primaries
        self._limit_s = limit_s
        self.waiting = 0

    def is_there(self, positions: Mapping[str, Position]) -> bool:
        """Whether nothing is to be waited for or asked."""
        databases = self._local.databases
        return all(databases[name].has(at) for name, at in positions.items())

    async def reach(self, positions: Mapping[str, Position]) -> CaughtUp:
        """Wait until readers here see all of them, at most for the limit."""
        missing = [(name, at) for name, at in positions.items() if not self._local.databases[name].has(at)]
        if not missing:
            return EVERYTHING
        if self.waiting >= WAITING_LIMIT:
            return CaughtUp(behind=tuple(name for name, _ in missing))
        self.waiting += 1
        try:
            deadline = asyncio.get_running_loop().time() + self._limit_s
            lost: dict[str, Position] = {}
            behind = []
            # One after the other: while one is waited for, the others get there too.
            for name, at in missing:
                try:
                    found = await self._reach(name, at, deadline)
                except Unavailable:
                    behind.append(name)
                    continue
                if found is not None:
                    lost[name] = found
            return CaughtUp(lost, tuple(behind))
        finally:
            self.waiting -= 1

    async def _reach(self, name: str, at: Position, deadline: float) -> Position | None:
        """None when readers here see it; this node's own position when it is lost. Raises Unavailable: not in time."""
        known = self._local.databases[name]
        loop = asyncio.get_running_loop()
        doubted = False
        while True:
            rest_s = deadline - loop.time()
            if self._local.live and not self._local.is_primary:
                step_s = rest_s if doubted else min(rest_s, DOUBT_S)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, step_s)):
                        await known.wait(at.txid)
            if known.has(at):
                return None
            # Applied and not shown yet: the node answers as soon as it is shown.
            look_s = max(0.0, min(rest_s, DOUBT_S)) if known.applied >= at.txid else 0.0
            code, here = await self._ask(name, at, look_s)
            if code == HTTPStatus.OK:
                known.advance(at)
                return None
            reached = position_in(here)
            # This node has other transactions than the client saw: those of one of the two are lost.
            differs = code == HTTPStatus.CONFLICT
            if not doubted or differs or loop.time() >= deadline:
                if await self.is_lost(name, at, differs=differs):
                    return reached or Position.ZERO
                doubted = True
            if loop.time() >= deadline:
                raise Unavailable(f"{name} has not reached {at}")
            if differs or not self._local.live or self._local.is_primary:
                await asyncio.sleep(min(DOUBT_S, max(0.0, deadline - loop.time())))

    async def _ask(self, name: str, at: Position, timeout_s: float) -> tuple[int, dict[str, object]]:
        """What the node says, after ``timeout_s`` at the latest."""
        query = {"db": name, "txid": format_txid(at.txid), "checksum": f"{at.checksum:016x}"}
        return await self._api.ask(self._local.url, "/wait", query | {"timeout": f"{timeout_s * 1000:.0f}ms"})

    async def is_lost(self, name: str, at: Position, *, differs: bool = False) -> bool:
        """Whether the cluster's history does not have it; False also when no primary that accepts commits says so.

        ``differs``: this node has something else at that TXID, which may itself be what is lost.
        """
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                return await self._primary_lacks(name, at, differs=differs)
        except (TimeoutError, Unavailable):
            return False

    async def _primary_lacks(self, name: str, at: Position, *, differs: bool) -> bool:
        """Raises Unavailable."""
        url = self._local.url if self._local.is_primary else await self._primaries.http_url()
        # Whoever was paused may hold itself to be the primary still, without what its successor has committed. Its
        # fence is closed then, and this looks at it. It is asked before the position: when the fence was open after
        # the client had seen something, that is in this node's history, or lost.
        serves, _ = await self._api.ask(url, "/primary")
        if serves != HTTPStatus.OK:
            return False
        code, document = await self._api.ask(url, "/position", {"db": name})
        newest = position_in(document)
        if newest is None:
            return code == HTTPStatus.NOT_FOUND
        if newest.txid <= at.txid or not differs:
            return newest.txid <= at.txid and newest != at
        code, document = await self._api.ask(url, "/position", {"db": name, "txid": format_txid(at.txid)})
        # null: so old that the primary does not know its checksum any more; then this node's own is as good.
        return code == HTTPStatus.OK and document.get("checksum") != f"{at.checksum:016x}"
