"""From settings to a running node and back to nothing.

Knows the order in which parts are made and unmade: each cleanup stands next to what it cleans. Does not know what the
parts do.

Order of a clean stop: the proxy, the application, HTTP, replication (replicas get what they have not yet), the applier,
the mount, the store. Nothing is acknowledged after the unmount, and everything that was is in the log before the store
closes. Whatever fails, the mount is served until everything else has ended: application and applier may have to close
files of it, and an end that waits for a mount which nobody serves is none. But that has a limit too.
"""

import contextlib
import errno
import gc
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Final

import structlog
import trio

from litereplica.config import Settings
from litereplica.errors import LitereplicaError, Refused, Unavailable
from litereplica.http.app import build
from litereplica.http.listener import bind
from litereplica.http.server import serve
from litereplica.mount.session import prepare_mount_point, unmount
from litereplica.node.child import KILL_LIMIT_S, STOP_LIMIT_S, Child
from litereplica.node.leased import opened_will
from litereplica.node.node import Direct, Node
from litereplica.node.proxy_child import ProxyChild, opened_proxy
from litereplica.store.disk import Disk
from litereplica.store.store import Store

log = structlog.get_logger()

# Retention is looked at this often. At full speed a primary logs some 40 MB/s, so the size cap is exceeded by no more
# than a few hundred MB.
MAINTENANCE_S: Final = 5.0
# Once the parts end: this long for what the application and the applier still ask of the mount.
CUT_LIMIT_S: Final = 5.0
EXIT_INTERRUPTED: Final = 130
# They mean nothing to us: they are the application's, and without one they are ignored.
PASSED_ON: Final = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# Data directory, disk, node, compression.
OpenStore = Callable[[Path, Disk, str, str], Store]


def run_node(settings: Settings, open_store: OpenStore = Store.open, direct: Direct | None = None) -> int:
    """Be a node until told to stop; the exit code. Raises our errors, each with what to do.

    ``open_store`` may put a twin in the disk's place: tests record what a crash could fall between. ``direct`` decides
    the role instead of the configuration: tests change it when they like.
    """
    with opened_proxy(settings) as proxy, _opened(settings, open_store, direct) as node:
        # Everything made so far lives as long as the node: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        # Commits make no cycles to speak of; fewer passes, fewer pauses.
        gc.set_threshold(50_000, 50, 100)
        told = _stay_to_the_end()
        try:
            return trio.run(_serve, node, settings, proxy, told)
        except BaseExceptionGroup as group:
            raise _cause(group) from group


def _stay_to_the_end() -> threading.Event:
    """Let no signal end the process while the node does not hear any: its mount would stay. Set when one came.

    That is before it begins to hear them, and when it has stopped and is about to unmount.
    """
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        # A function, unlike SIG_IGN, is nothing that the processes which we start inherit.
        signal.signal(number, lambda *_: told.set())
    return told


def _cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error that a person can act on, out of what several tasks raised; else the whole group."""
    for error in group.exceptions:
        found = _cause(error) if isinstance(error, BaseExceptionGroup) else error
        if isinstance(found, LitereplicaError):
            return found
    return group


@contextlib.contextmanager
def _opened(settings: Settings, open_store: OpenStore, direct: Direct | None) -> Iterator[Node]:
    prepare_mount_point(settings.mount.dir, early=True, data=settings.data.dir)
    with contextlib.ExitStack() as cleanups:
        http = bind(settings.http.listen, "http.listen")
        cleanups.callback(http.close)
        with _disk_errors(settings, "nothing of it was lost"):
            store = open_store(settings.data.dir, Disk(), settings.node.name, settings.data.compression)
        cleanups.callback(store.close)
        will = cleanups.enter_context(opened_will(settings))
        node = Node(settings, store, http, will=will, direct=direct)
        with _disk_errors(settings, "nothing of it was lost"):
            node.make_wals()
        node.mount()
        cleanups.callback(node.unmount)
        try:
            yield node
        finally:
            # Clean or not, what is in the log is made durable before the directory is given back.
            try:
                node.unmount()
            finally:
                with _disk_errors(settings, "the next start finishes from the log what this stop could not"):
                    store.stop()


@contextlib.contextmanager
def _disk_errors(settings: Settings, comfort: str) -> Iterator[None]:
    """What the disk refuses while nothing is served yet, or any more."""
    try:
        yield
    except OSError as error:
        advice = "make room there" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "check the disk and its rights"
        what = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
        message = (
            f"the data directory {settings.data.dir} cannot be used ({what}): {advice}, then start again; {comfort}"
        )
        raise Unavailable(message) from error


async def _serve(node: Node, settings: Settings, proxy: ProxyChild | None, told: threading.Event) -> int:
    code = 0
    stop, http_ends, ending = trio.Event(), trio.Event(), trio.Event()
    child = Child(settings.exec) if settings.exec else None

    def ended(child_code: int) -> None:
        nonlocal code
        code = child_code
        stop.set()

    async with (
        _signals(stop, child, node, told),
        _mounted(node, child, ending) as mounted,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(_tell_end, node, ending)
        await nursery.start(node.run)
        nursery.start_soon(serve, build(node, node.metrics, str(settings.data.dir)), node.http, http_ends.wait)
        nursery.start_soon(_maintain, node, settings)
        nursery.start_soon(_watch_mount, mounted, stop, node)
        log.info(
            "ready_to_serve",
            node=settings.node.name,
            role=node.status().role,
            mount=str(settings.mount.dir),
            http=str(settings.http.listen),
        )
        async with trio.open_nursery() as application:
            if child is not None:
                application.start_soon(_supervise, child, node, ended)
            # Inside: it finishes its requests while the application still answers them.
            async with trio.open_nursery() as front:
                if proxy is not None:
                    front.start_soon(proxy.run)
                await stop.wait()
                log.info("stopping", node=settings.node.name)
                node.is_stopping = True
                front.cancel_scope.cancel()
            application.cancel_scope.cancel()
        http_ends.set()
        await node.stop()
        nursery.cancel_scope.cancel()
    if node.mount_lost:
        message = f"the mount {settings.mount.dir} was taken away (umount) while this node served it: start it again"
        raise Unavailable(message)
    return code


@contextlib.asynccontextmanager
async def _mounted(node: Node, child: Child | None, ending: trio.Event) -> AsyncIterator[trio.Event]:
    """Serve the mount for as long as anything else runs; ``ending`` is told when that has begun to end."""
    async with trio.open_nursery() as nursery:
        mounted = await nursery.start(node.serve_mount)

        async def cut() -> None:
            await ending.wait()
            if child is not None and child.is_alive:
                with trio.move_on_after(STOP_LIMIT_S + KILL_LIMIT_S):
                    await child.gone.wait()
            await trio.sleep(CUT_LIMIT_S)
            log.error("mount_cut", reason="something here does not end: what still waits for the mount fails now")
            nursery.cancel_scope.cancel()

        nursery.start_soon(cut)
        try:
            yield mounted
        finally:
            nursery.cancel_scope.cancel()


async def _tell_end(node: Node, ending: trio.Event, task_status: trio.TaskStatus[None]) -> None:
    """A sibling of all parts: it hears in the same instant that they are to end.

    Nothing is awaited before ``give_up``: an application that is told to end in that instant may try to commit.
    """
    task_status.started()
    try:
        await trio.sleep_forever()
    finally:
        node.give_up()
        ending.set()


async def _supervise(child: Child, node: Node, ended: Callable[[int], None]) -> None:
    await node.wait_ready()
    await child.run(ended)


async def _watch_mount(ended: trio.Event, stop: trio.Event, node: Node) -> None:
    await ended.wait()
    if not stop.is_set():
        node.mount_lost = True
        stop.set()


async def _maintain(node: Node, settings: Settings) -> None:
    store, retention = node.store, settings.data.retention
    while True:
        await trio.sleep(MAINTENANCE_S)
        node.look_at_versions()
        try:
            await store.maintain(retention.age_s, retention.size_bytes)
        except OSError as error:
            log.error("retention_failed", reason=error.strerror)  # noqa: TRY400  a person needs the reason, not the stack


@contextlib.asynccontextmanager
async def _signals(stop: trio.Event, child: Child | None, node: Node, told: threading.Event) -> AsyncIterator[None]:
    """First SIGTERM or SIGINT: stop cleanly; second: at once. A stop for another reason is no signal."""

    async def listen(task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, *PASSED_ON) as received:
            # Whoever was not heard here before was heard there.
            heard = told.is_set()
            if heard:
                stop.set()
            task_status.started()
            async for number in received:
                if number in PASSED_ON:
                    if child is not None:
                        child.signal(number)
                    continue
                if heard:
                    _stop_at_once(node, child)
                heard = True
                stop.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(listen)
        try:
            yield
        finally:
            nursery.cancel_scope.cancel()


def _stop_at_once(node: Node, child: Child | None) -> None:
    """Leave without waiting for anybody: what was acknowledged is in the log, the next start does the rest."""
    log.warning("stopped_at_once")
    if child is not None:
        child.signal(signal.SIGKILL)
    node.kill_applier()
    with contextlib.suppress(Refused, Unavailable, OSError):
        unmount(node.settings.mount.dir)
    os._exit(EXIT_INTERRUPTED)
