"""A replica whose primary is a twin inside its own process, which commits, refuses or delays as a test says.

Knows how to log a transaction as the receiver of a replica does. All else of the node is real: mount, store, applier.
As a program it takes the commands of tests.roles.driver and these, one JSON line each, one as its answer:
{"do": "answer", "how": …} with one of ANSWERS, {"do": "go"} lets go what is held, {"do": "seen"} what the twin was
asked, {"do": "wrong", "reason": …} why it takes nothing, {"do": "arrive", "database": …}: a transaction of another node
is received, which changes page 1.
"""

import sys
from pathlib import Path
from typing import Any, Final

import trio

from litereplica.config import load_settings
from litereplica.errors import Refused, Unavailable
from litereplica.logs import configure_logs
from litereplica.ltx.checksum import page_checksum
from litereplica.ltx.decode import decode_record
from litereplica.ltx.encode import encode_record
from litereplica.ltx.format import Origin
from litereplica.mount.elsewhere import BecamePrimary, HoldHandle
from litereplica.node.main import run_node
from litereplica.node.node import Node
from litereplica.store.awaited import Awaited
from litereplica.store.database import Database
from litereplica.store.local import LocalTransaction, Stale
from litereplica.store.receive import LogReceiver
from tests.roles.driver import Director

ANSWERS: Final = (
    "commit",
    "hold",  # until "go"; then as the answer is by then
    "refuse",
    "other",  # the same pages come first as a transaction of another node
    "bump",  # the primary changes page 1 too, as it does in rollback mode
    "unknown",  # no answer, and never committed
    "undurable",  # the record comes; whether it is on the primary's disk is never answered
    "late",  # no answer; committed all the same, after the application has been told so
)
LIMIT_S: Final = 30.0


class Hold:
    def __init__(self, twin: "Twin", name: str) -> None:
        self._twin = twin
        self._name = name

    def release(self) -> None:
        self._twin.seen.append(["released", self._name])


class Twin:
    """An Elsewhere. ``seen``: what it was asked, [what, database, …]."""

    limit_s = LIMIT_S

    def __init__(self, node: Node, nursery: trio.Nursery) -> None:
        self.answer = "commit"
        self.wrong: str | None = None
        self.seen: list[list[Any]] = []
        self.go = trio.Event()
        self._node = node
        self._nursery = nursery

    def problem(self, name: str) -> str | None:  # noqa: ARG002  the port's
        return self.wrong

    async def ready(self, database: Database) -> None:
        with trio.move_on_after(1):
            while database.applied < database.position.txid:
                await trio.sleep(0.005)
        if database.applied < database.position.txid:
            raise Stale("not applied")

    async def begin(self, name: str) -> None:
        self.seen.append(["begin", name])

    async def make_durable(self, name: str) -> None:
        self.seen.append(["make_durable", name])

    async def hold(self, name: str) -> HoldHandle:
        self.seen.append(["hold", name])
        await self._wait_go()
        return Hold(self, name)

    async def _wait_go(self) -> None:
        with trio.move_on_after(LIMIT_S):
            while self.answer == "hold":
                await self.go.wait()
            return
        raise Unavailable("the twin was never told to go on")

    async def commit(self, transaction: LocalTransaction, awaited: Awaited, *, durable: bool) -> None:
        database = transaction.database
        self.seen.append(["commit", transaction.name, transaction.length, durable])
        await trio.lowlevel.checkpoint()
        until = trio.current_time() + LIMIT_S
        while self.answer == "hold" and not awaited.settled and not self._node.access.primary:
            if trio.current_time() >= until:
                raise Unavailable("the twin was never told to go on")
            with trio.move_on_after(0.02):
                await self.go.wait()
        if self._node.access.primary:
            raise BecamePrimary("it is here now")
        if self.answer == "refuse":
            raise Refused("the twin refuses")
        if self.answer == "unknown":
            raise Unavailable("the twin does not say")
        record = transaction.read(0, transaction.length)
        if self.answer == "late":
            self._nursery.start_soon(self._feed_later, database, record)
            raise Unavailable("the twin says it too late")
        if self.answer == "other":
            record = changed(database, record, Origin("other", 7))
        elif self.answer == "bump":
            record = changed(database, record, transaction.origin, bumped=True)
        if not awaited.settled:
            feed(database, record)
        await awaited.wait()
        if awaited.refused is not None:
            raise Stale(awaited.refused)
        if awaited.unknown is not None or self.answer == "undurable":
            raise Unavailable(awaited.unknown or "the twin does not say what is on its disk")

    @staticmethod
    async def _feed_later(database: Database, record: bytes) -> None:
        await trio.sleep(0.2)
        feed(database, record)


def feed(database: Database, record: bytes) -> None:
    """Log what a primary has sent."""
    LogReceiver(database).feed(record, max(database.epoch, database.store.epoch, 1))


def changed(database: Database, record: bytes, origin: Origin, *, bumped: bool = False) -> bytes:
    """The record as another node would have it: of another origin, or with the change counter in page 1 counted up."""
    found = decode_record(record)
    pages = dict(found.pages)
    if bumped:
        descriptor = database.store.disk.open(database.file_path)
        try:
            first = pages.get(1) or database.store.disk.pread(descriptor, found.header.page_size, 0)
        finally:
            database.store.disk.close(descriptor)
        counter = int.from_bytes(first[24:28], "big") + 1
        pages[1] = first[:24] + counter.to_bytes(4, "big") + first[28:92] + counter.to_bytes(4, "big") + first[96:]
    checksum = found.header.pre_checksum
    table = database.checksums.table
    for pgno, page in pages.items():
        checksum ^= page_checksum(pgno, page) ^ (table[pgno - 1] if pgno <= database.page_count else 0)
    if found.header.commit < database.page_count:
        checksum ^= database.checksums.xor_range(found.header.commit + 1, database.page_count)
    header = found.header._replace(origin=origin, page_count=len(pages))
    return encode_record(header, sorted(pages.items()), checksum)


def arrive(database: Database) -> None:
    """Log a transaction of another node."""
    with database.file_path.open("rb") as file:
        page = file.read(database.page_size)
    header = database.next_header(database.page_size, 1, database.page_count)
    record = encode_record(header, [(1, page)], database.position.checksum)
    feed(database, changed(database, record, Origin("other", 7), bumped=True))


class TwinDirector(Director):
    """A Director of a node with a twin."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._twin: Twin | None = None

    async def __call__(self, node: Node, nursery: trio.Nursery) -> None:
        self._twin = Twin(node, nursery)
        await super().__call__(node, nursery)
        node.access.elsewhere = self._twin

    async def _do(self, node: Node, command: dict[str, Any]) -> Any:
        twin = self._twin
        assert twin is not None
        match command["do"]:
            case "answer":
                twin.answer = command["how"]
                assert twin.answer in ANSWERS, twin.answer
                twin.go = trio.Event()
            case "go":
                twin.answer = command.get("how", "commit")
                twin.go.set()
            case "arrive":
                arrive(node.store.databases[command["database"]])
            case "wrong":
                twin.wrong = command["reason"]
            case "seen":
                seen, twin.seen = twin.seen, []
                return {"seen": seen}
            case _:
                return await super()._do(node, command)
        return {}


def main() -> None:
    settings = load_settings(Path(sys.argv[1]), {})
    configure_logs("text", "debug")
    sys.exit(run_node(settings, direct=TwinDirector(sys.argv[2])))


if __name__ == "__main__":
    main()
