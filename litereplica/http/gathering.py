"""The whole cluster in one document.

Knows whom to ask and how the answers are put together. Does not know how a node is asked (http.peers).
"""

from dataclasses import asdict
from typing import Any, Final

import trio

from litereplica.errors import Unavailable
from litereplica.http.node import Node
from litereplica.http.peers import Peers

# A node that lives answers in milliseconds; whoever watches a cluster does not want to wait for one that does not.
ANSWER_LIMIT_S: Final = 2.0
# Enough for every cluster that one lease makes sense for; beyond that they take turns.
AT_ONCE: Final = 64


async def gather(node: Node, peers: Peers) -> dict[str, Any]:
    """``node`` (who was asked), ``primary`` (who says that it is, and is ready) and ``nodes``, by name.

    Each of them: ``name http answers``, and ``status`` or the ``reason`` why there is none.
    """
    own = node.status()
    known = {each.endpoint.node: each for each in node.members()}
    mine = known.pop(own.node, None)
    found: dict[str, dict[str, Any]] = {
        own.node: {
            "name": own.node,
            "http": mine.endpoint.http if mine is not None else "",
            "answers": True,
            "status": asdict(own),
        }
    }
    limiter = trio.CapacityLimiter(AT_ONCE)

    async def ask(name: str, url: str) -> None:
        async with limiter:
            found[name] = {"name": name, "http": url} | await _status(peers, name, url)

    async with trio.open_nursery() as nursery:
        for name, member in known.items():
            nursery.start_soon(ask, name, member.endpoint.http)
    nodes = [each for _, each in sorted(found.items())]
    return {"node": own.node, "primary": _primary(nodes), "nodes": nodes}


async def _status(peers: Peers, name: str, url: str) -> dict[str, Any]:
    try:
        answer = await peers.ask(url, "/status", ANSWER_LIMIT_S)
    except Unavailable as error:
        return {"answers": False, "reason": error.message}
    if answer.status != 200:
        return {"answers": False, "reason": answer.message}
    if (other := answer.document.get("node")) != name:
        return {"answers": False, "reason": f"at its URL is {other!r}: check http.advertise of both"}
    return {"answers": True, "status": answer.document}


def _primary(nodes: list[dict[str, Any]]) -> str | None:
    """Who leads, of those that say so: the highest epoch. An old one may not have noticed yet that it does not."""
    leading = [each["status"] for each in nodes if each["answers"] and each["status"].get("role") == "primary"]
    leading = [each for each in leading if each.get("ready") and isinstance(each.get("epoch"), int)]
    return str(max(leading, key=lambda each: each["epoch"])["node"]) if leading else None
