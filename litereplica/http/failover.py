"""A change of primary that somebody asks for, whichever node is asked.

Knows which node has to do it, passes the question on to that one, and answers when the new primary serves. Does not
know how it is done (node.keeper).

With the primary alive, only it can hand over. Without it, with ``force``, only the node that is to be primary can take
over. So a node that is neither passes the question on, once.
"""

from http import HTTPStatus
from typing import Any, Final

import trio

from litereplica.cluster.lease import Endpoint, Member
from litereplica.errors import Refused, Unavailable
from litereplica.http.gathering import gather
from litereplica.http.health import is_serving_primary
from litereplica.http.node import Node
from litereplica.http.peers import Peers
from litereplica.http.problem import Problem

FORWARDED: Final = "X-Litereplica-Forwarded"
# The keeper's own limits, one after the other, are some 15 s; a ttl (a person may choose a long one) comes on top.
HANDOFF_LIMIT_S: Final = 60.0
# From having the lease to accepting commits: what is logged is applied first, at most 30 s (node.data_plane).
SERVE_LIMIT_S: Final = 35.0
# The new primary is asked again after this; a handoff's whole pause is to be some 0.3 s.
SERVE_RETRY_S: Final = 0.05
SERVE_ANSWER_LIMIT_S: Final = 2.0
# With force, a primary that does not say within this that it lives is gone.
LIVE_LIMIT_S: Final = 2.0


class Failover:
    """One at a time on each node."""

    def __init__(self, node: Node, peers: Peers) -> None:
        self._node = node
        self._peers = peers
        self._under_way = False

    async def ask(self, to: str | None, *, force: bool, forwarded: bool) -> dict[str, Any]:
        """``{"primary": …, "http": …}`` when the new primary serves. Raises Refused, Unavailable, Problem."""
        if self._under_way:
            raise Refused("a failover is under way at this node: wait for its end, then look at the status")
        self._under_way = True
        try:
            return await self._ask(to, force=force, forwarded=forwarded)
        finally:
            self._under_way = False

    async def _ask(self, to: str | None, *, force: bool, forwarded: bool) -> dict[str, Any]:
        own = self._node.status()
        if to is not None and to == own.primary and (serving := await self._already(to)) is not None:
            return serving  # so that after an unknown outcome it is safe to ask again
        if own.role == "primary" or forwarded:
            return await self._here(to, force=force)
        primary = self._member(own.primary)
        if primary is not None and (not force or await self._lives(primary)):
            return await self._forward(primary, to, force=force)
        if not force:
            return await self._here(to, force=False)
        target = to or await self._most_advanced(without=own.primary)
        if target == own.node:
            return await self._here(target, force=True)
        found = self._member(target)
        if found is None:
            raise Refused(f"no node {target!r} is known here: check the name ('litereplica status' lists them)")
        return await self._forward(found, target, force=True)

    async def _here(self, to: str | None, *, force: bool) -> dict[str, Any]:
        with trio.move_on_after(HANDOFF_LIMIT_S):
            found = await self._node.failover(to, force)
            await self._wait_serving(found)
            return {"primary": found.node, "http": found.http}
        raise Unavailable(
            f"no outcome within {HANDOFF_LIMIT_S:g} s: 'litereplica status' shows who is primary; it is safe to ask "
            "again"
        )

    async def _wait_serving(self, found: Endpoint) -> None:
        why = ""
        with trio.move_on_after(SERVE_LIMIT_S):
            while True:
                why = await self._not_serving(found)
                if not why:
                    return
                await trio.sleep(SERVE_RETRY_S)
        raise Unavailable(
            f"{found.node} has the lease and does not serve after {SERVE_LIMIT_S:g} s ({why}): look at its status "
            "and log"
        )

    async def _not_serving(self, found: Endpoint) -> str:
        """Why a node does not serve as the primary now; "" when it does."""
        own = self._node.status()
        if found.node == own.node:
            return "" if is_serving_primary(own) else own.reason or "it is a replica"
        try:
            answer = await self._peers.ask(found.http, "/primary", SERVE_ANSWER_LIMIT_S)
        except Unavailable as error:
            return error.message
        return "" if answer.status == HTTPStatus.OK else answer.message

    async def _already(self, to: str) -> dict[str, Any] | None:
        own = self._node.status()
        member = self._member(to)
        if to == own.node:
            http = member.endpoint.http if member is not None else ""
            return {"primary": to, "http": http} if is_serving_primary(own) else None
        if member is None or await self._not_serving(member.endpoint):
            return None
        return {"primary": to, "http": member.endpoint.http}

    async def _lives(self, primary: Member) -> bool:
        try:
            await self._peers.ask(primary.endpoint.http, "/livez", LIVE_LIMIT_S)
        except Unavailable:
            return False
        return True

    async def _forward(self, member: Member, to: str | None, *, force: bool) -> dict[str, Any]:
        name, url = member.endpoint.node, member.endpoint.http
        try:
            answer = await self._peers.ask(
                url,
                "/failover",
                HANDOFF_LIMIT_S + LIVE_LIMIT_S,
                {"to": to, "force": force},
                {FORWARDED: self._node.status().node},
            )
        except Unavailable as error:
            advice = "ask again" if force else "ask again, or use --force when it is gone for good"
            raise Unavailable(
                f"{name} at {url} was asked and gave no outcome ({error.message}): 'litereplica status' shows who is "
                f"primary; {advice}"
            ) from None
        if answer.status == HTTPStatus.OK:
            return answer.document
        try:
            status = HTTPStatus(answer.status)
        except ValueError:
            status = HTTPStatus.SERVICE_UNAVAILABLE
        raise Problem(status, str(answer.document.get("error") or "unavailable"), answer.message)

    async def _most_advanced(self, *, without: str | None) -> str:
        """Of the candidates that answer now, by what they say now."""
        found = (await gather(self._node, self._peers))["nodes"]
        totals = {each["name"]: _total(each["status"]) for each in found if each["answers"]}
        candidates = [
            each
            for each in self._node.members()
            if each.candidate and each.standing.whole and each.endpoint.node in totals.keys() - {without}
        ]
        if not candidates:
            raise Refused("no candidate answers: start one, or look at the status of the nodes")

        def rank(member: Member) -> tuple[int, int, int, str]:  # as in an election, with totals of this moment
            name = member.endpoint.node
            return -member.standing.epoch, -totals[name], -member.priority, name

        return min(candidates, key=rank).endpoint.node

    def _member(self, name: str | None) -> Member | None:
        return next((each for each in self._node.members() if each.endpoint.node == name), None)


def _total(status: dict[str, Any]) -> int:
    """The sum of a node's TXIDs."""
    try:
        return sum(int(database["txid"], 16) for database in status["databases"])
    except (TypeError, ValueError, KeyError):
        return 0
