"""Nodes that ask one primary for its databases: the real Halting and HaltClient of each, and twins of what is between.

The applier is a twin that holds SQLite's lock or does not; messages take ``LATENCY_S``; a line can be cut and joined.
"""

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import trio

from litereplica.applier.link import ApplierLink
from litereplica.cluster.messages import Halt, HaltState, Unhalt
from litereplica.cluster.status import HaltStatus
from litereplica.config import WritesSettings
from litereplica.config.units import Seconds
from litereplica.node.halt_client import HaltClient
from litereplica.node.halting import HaltChange, Halting
from litereplica.store.store import Store
from tests.store.application import NAME, Application, open_store

LATENCY_S = 0.01
ANSWER_S = 0.001


class Applier:
    """``kept_by``: an application of the primary that keeps SQLite's write lock."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.kept_by = ""
        self.held: str | None = None
        self.halting: Halting | None = None
        self._nursery = nursery
        self._asked: tuple[str, int] | None = None

    def hold(self, database: str, number: int, limit_s: float) -> None:
        self._asked = (database, number)
        self._nursery.start_soon(self._take, database, number, limit_s)

    def unhold(self, database: str) -> None:
        assert self.held in {None, database}
        self.held = self._asked = None

    def die(self) -> None:
        assert self.halting is not None
        self.held = self._asked = None
        self.halting.on_restarted()

    def lose(self) -> None:
        """It could not be kept."""
        assert self.halting is not None
        assert self._asked is not None
        (database, number), self.held = self._asked, None
        self.halting.on_hold_lost(database, number, "the applier could not keep it")

    async def _take(self, database: str, number: int, limit_s: float) -> None:
        assert self.halting is not None
        until = trio.current_time() + limit_s
        await trio.sleep(ANSWER_S)
        while self.kept_by and trio.current_time() < until:
            await trio.sleep(ANSWER_S)
        if self._asked != (database, number):
            return
        if self.kept_by:
            self.halting.on_hold_refused(database, number, self.kept_by)
        else:
            self.held = database
            self.halting.on_held(database, number)


class Node:
    """``a`` is the primary to begin with; others are connected when ``join`` is called."""

    def __init__(self, group: "Group", name: str, store: Store, settings: WritesSettings) -> None:
        self.name = name
        self.store = store
        self.leads = False
        self.foreign: set[str] = set()
        self.changes: list[HaltChange] = []
        self.primary: Node | None = None
        # Frozen as by SIGSTOP: nothing that it is sent is read, and nothing of its own is done.
        self.line_delay_s = LATENCY_S
        self.inbox: deque[Callable[[], None]] = deque()
        self._group = group
        self.halting = Halting(
            settings, name, store,
            link=lambda: cast("ApplierLink", group.applier), tell=group.tell, epoch=lambda: 1,
        )  # fmt: skip
        self.client = HaltClient(
            settings, name, store, self.halting,
            is_primary=lambda: self.leads, is_foreign=self.foreign.__contains__, send=self._send, epoch=lambda: 1,
        )  # fmt: skip
        self.halting.changed = self.client.changed = self.changes.append

    def _send(self, message: Halt | Unhalt) -> bool:
        primary = self.primary
        if primary is None:
            return False

        def take() -> None:
            if isinstance(message, Halt):
                primary.halting.halt(self.name, message)
            else:
                primary.halting.unhalt(self.name, message)

        self._group.carry(self, take)
        return True

    def join(self, primary: "Node") -> None:
        self.primary = primary
        self.client.connected()

    def cut(self, reason: str = "the link is cut") -> None:
        """Both ends notice."""
        primary, self.primary = self.primary, None
        self.client.disconnected(reason)
        if primary is not None:
            self._group.lose(self)
            primary.halting.node_gone(self.name)

    def lead(self) -> None:
        self.leads = True
        self.halting.begin()
        self.client.role_changed()

    def follow(self) -> None:
        self.halting.end("the node that gave it is no longer the primary")
        self.leads = False
        self.client.role_changed()


class Group:
    """``nodes`` by name; ``database`` is there on each."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.applier = Applier(nursery)
        self.nodes: dict[str, Node] = {}
        self._nursery = nursery
        self._lines: dict[str, int] = {}

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def tell(self, name: str, state: HaltState) -> None:
        node = self.nodes[name]
        if node.primary is not None:
            self.carry(node, lambda: node.client.told(state))

    def carry(self, node: Node, take: Callable[[], None]) -> None:
        """Along a node's line, if it is still the same then."""
        line = self._lines.get(node.name, 0)

        async def arrive() -> None:
            await trio.sleep(node.line_delay_s)
            if self._lines.get(node.name, 0) == line:
                take()

        self._nursery.start_soon(arrive)

    def lose(self, node: Node) -> None:
        """What is on its line is lost."""
        self._lines[node.name] = self._lines.get(node.name, 0) + 1

    def halts(self) -> HaltStatus | None:
        """Who has the database, as the primary shows it."""
        (primary,) = (node for node in self.nodes.values() if node.leads)
        return primary.halting.statuses().get(NAME)

    def holder(self) -> str | None:
        halt = self.halts()
        return halt.node if halt is not None else None


@asynccontextmanager
async def group(
    folder: Path, *names: str, on_replica: Any = "forward", lease_s: float = 1.0, timeout_s: float = 10.0
) -> AsyncIterator[Group]:
    """The first of ``names`` is the primary, and the others are connected to it."""
    settings = WritesSettings(on_replica, Seconds(lease_s), Seconds(timeout_s))
    stores: list[Store] = []
    try:
        async with trio.open_nursery() as nursery:
            made = Group(nursery)
            for name in names:
                store = open_store(folder / name)
                stores.append(store)
                application = Application(store)
                application.start()
                application.commit()
                node = made.nodes[name] = Node(made, name, store, settings)
                nursery.start_soon(node.halting.run)
                nursery.start_soon(node.client.run)
            first, *others = made.nodes.values()
            first.lead()
            made.applier.halting = first.halting
            for node in others:
                node.join(first)
            yield made
            nursery.cancel_scope.cancel()
    finally:
        for store in stores:
            store.close()


class Outcome:
    """What became of something that was started."""

    def __init__(self) -> None:
        self.value: Any = None
        self.error: Exception | None = None
        self.done = trio.Event()
        self.scope = trio.CancelScope()


def started(nursery: trio.Nursery, function: Callable[..., Awaitable[Any]], *arguments: Any) -> Outcome:
    """Start it; what it returns or raises is in the Outcome when ``done`` is set."""
    outcome = Outcome()

    async def run() -> None:
        with outcome.scope:
            try:
                outcome.value = await function(*arguments)
            except Exception as error:  # noqa: BLE001  looked at by the test
                outcome.error = error
            outcome.done.set()

    nursery.start_soon(run)
    return outcome
