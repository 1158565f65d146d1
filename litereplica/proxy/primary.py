"""Where the primary is, and where its proxy is.

Knows how they are found: this machine's node names the primary and its URL, and that node says where its proxy is.
Does not know what is sent there.
"""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from litereplica.errors import LitereplicaError, Unavailable
from litereplica.proxy.local_node import LocalNode
from litereplica.proxy.node_api import NodeApi

# While nothing is settled: as soon as this node hears of a primary, or after so long.
AGAIN_S: Final = 0.1


class Circle(LitereplicaError):
    """Two nodes hold each other to be the primary, for longer than a handoff takes."""


@dataclass(frozen=True, slots=True)
class Place:
    """The primary's name, and its proxy's URL; None when that is this proxy."""

    node: str
    proxy: str | None


class Primaries:
    """Finds, and remembers until the primary changes or does not answer."""

    def __init__(self, local: LocalNode, api: NodeApi) -> None:
        self._local = local
        self._api = api
        self._found: Place | None = None

    def known(self) -> Place | None:
        """Where writes go, without asking anybody."""
        if self._local.is_primary:
            return Place(self._local.primary or "", None)
        found = self._found
        return found if found is not None and found.node == self._local.primary else None

    def forget(self) -> None:
        """It did not answer: ask anew."""
        self._found = None

    async def find(self, limit_s: float, not_to: Collection[str] = ()) -> Place:
        """Where writes go, as soon as it is known. ``not_to``: nodes through whose proxies the request has come.

        Raises Unavailable with the reason after ``limit_s``; Circle when a node of ``not_to`` is the primary still.
        """
        deadline = asyncio.get_running_loop().time() + limit_s
        while True:
            found, problem = self.known(), "nobody is primary"
            if found is None and self._local.primary is not None:
                try:
                    found = self._found = await self._look()
                except Unavailable as error:
                    problem = error.message
            if found is not None and (found.proxy is None or found.node not in not_to):
                return found
            if asyncio.get_running_loop().time() >= deadline:
                if found is not None:
                    raise Circle(
                        f"the request goes in a circle: it came from the proxy of {found.node}, which is the primary "
                        "as this node knows it: look at the status of both nodes"
                    )
                raise Unavailable(problem)
            self.forget()
            await self._local.wait_changed(AGAIN_S)

    async def http_url(self) -> str:
        """The HTTP interface of the primary's node. Raises Unavailable."""
        return _url_of(*await self._named())

    async def _look(self) -> Place:
        status, name = await self._named()
        its = await self._api.status(_url_of(status, name))
        if its.get("node") != name:
            raise Unavailable(f"at the URL of {name} is {its.get('node')!r}: check http.advertise of both")
        if its.get("role") != "primary":
            raise Unavailable(f"{name} is not primary yet, or not any more")
        proxy = its.get("proxy")
        if not proxy:
            raise Unavailable(
                f"the primary {name} has no proxy that others can reach: set proxy.listen and proxy.advertise there"
            )
        return Place(name, str(proxy))

    async def _named(self) -> tuple[dict[str, Any], str]:
        status = await self._api.status(self._local.url)
        name = status.get("primary")
        if not name:
            raise Unavailable("nobody is primary")
        return status, str(name)


def _url_of(status: dict[str, Any], name: str) -> str:
    for member in status.get("members", ()):
        if member.get("name") == name and member.get("http"):
            return str(member["http"])
    raise Unavailable(f"the HTTP address of the primary {name} is not known: set http.advertise there")
