"""What the node of this machine says, as it happens: ``GET /events``.

Knows the stream, its events, and what is forgotten when it ends. Does not know requests of clients.
"""

import asyncio
import contextlib
import json
from typing import Any, Final

import aiohttp
import structlog

from litereplica.errors import Unavailable
from litereplica.proxy.known import KnownDatabase
from litereplica.proxy.node_api import NodeApi

log = structlog.get_logger()

# A node that restarts is back within a second; asking more often finds it no sooner.
RECONNECT_S: Final = 0.25
CONNECT_LIMIT_S: Final = 2.0
# No connection, one that broke, or something that is no node's.
NO_STREAM: Final = (aiohttp.ClientError, OSError, Unavailable, ValueError, KeyError, TypeError)
_HEX: Final = frozenset("0123456789abcdef")


class LocalNode:
    """``live``: its events are being read. ``primary``: a node's name, None while nobody is primary or known."""

    def __init__(self, session: aiohttp.ClientSession, url: str, databases: tuple[str, ...]) -> None:
        self.url = url
        self.live = False
        self.is_primary = False
        self.primary: str | None = None
        self.databases = {name: KnownDatabase() for name in databases}
        self._session = session
        self._api = NodeApi(session)
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Listen for ever."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_LIMIT_S, sock_read=None)
        transactions = True
        while True:
            changed_role = False
            with contextlib.suppress(*NO_STREAM):
                address = f"{self.url}/events?tx={int(transactions)}"
                async with self._session.get(address, timeout=timeout, middlewares=()) as answer:
                    if answer.status == 200:
                        changed_role = await self._read(answer.content, transactions=transactions)
            if changed_role:
                transactions = not transactions
                continue
            self._lost()
            await asyncio.sleep(RECONNECT_S)

    async def wait_changed(self, limit_s: float) -> None:
        """Return when something was said about the primary, or after ``limit_s``."""
        changed = self._changed
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await changed.wait()

    async def _read(self, lines: aiohttp.StreamReader, *, transactions: bool) -> bool:
        """Until the stream ends (False), or is to begin anew with transactions or without (True).

        On the primary all positions come from its own answers, and each event would take time from its commits.
        """
        # What is told while the status is read waits in the stream: no transaction falls in between.
        while line := await lines.readline():
            event = json.loads(line)
            if event["type"] == "tx":
                self._applied(event["db"], event["data"])
                continue
            if event["type"] not in {"init", "primaryChange"}:
                continue
            self._role(event["data"])
            if self.is_primary == transactions:
                return True
            status = await self._api.status(self.url)
            for each in status["databases"]:
                checksum = each["checksum"] if each["txid"] == each["applied"] else ""
                # Its writer may not have shown it yet: /wait knows.
                self._applied(each["name"], {"txID": each["applied"], "postApplyChecksum": checksum, "shown": False})
            if not self.live:
                self.live = True
                log.info("node_found", node=status["node"], url=self.url, primary=self.primary)
        return False

    def _role(self, data: dict[str, Any]) -> None:
        """``init`` and ``primaryChange``. What was known of the databases may be of another history now."""
        self.is_primary = bool(data["isPrimary"])
        self.primary = str(data["hostname"]) or None
        for known in self.databases.values():
            known.forget()
        self._tell()

    def _applied(self, name: str, data: dict[str, Any]) -> None:
        known = self.databases.get(name)
        if known is not None:
            checksum = data["postApplyChecksum"]
            number = int(checksum, 16) if checksum and _HEX.issuperset(checksum) else None
            known.told(int(data["txID"], 16), number, shown=bool(data.get("shown")))

    def _lost(self) -> None:
        if self.live:
            log.warning("node_lost", url=self.url)
        self.live = self.is_primary = False
        self.primary = None
        for known in self.databases.values():
            known.forget()
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
