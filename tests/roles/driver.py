"""A node whose role is decided by whoever writes to its control socket, instead of a lease; all else is real.

One JSON line for each command, one as its answer: {"do": "promote", "epoch": 5, "fence_s": 60}, {"do": "fence_s": 0.5},
{"do": "demote"}, {"do": "follow", "name": "a", "address": "127.0.0.1:1"}, {"do": "quiesce", "limit_s": 1},
{"do": "resume"}, {"do": "acknowledged", "node": "b", "limit_s": 1}, {"do": "standing"}; {"do": "durable",
"database": …}: whether all of its log is on the disk; {"do": "part"}: as if lost history were here. A promotion with a
"limit_s" is cancelled after it.

As long as the file FULL is there, no -wal takes anything: driver.py CONFIG CONTROL [FULL].
"""

import errno
import json
import math
import os
import socket
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import trio

from litereplica.cluster.lease import Endpoint
from litereplica.config import load_settings
from litereplica.errors import LitereplicaError
from litereplica.logs import configure_logs
from litereplica.mount.access import fence_clock
from litereplica.node.main import run_node
from litereplica.node.node import Node
from litereplica.store.disk import Disk
from litereplica.store.store import Store

_DESCRIPTORS: Final = Path("/proc/self/fd")


class Director:
    """Takes commands on a Unix socket."""

    def __init__(self, path: str) -> None:
        self._path = path

    async def __call__(self, node: Node, nursery: trio.Nursery) -> None:
        await node.plane.run_as_replica(may_lead=True)
        listener = trio.socket.socket(socket.AF_UNIX)
        await listener.bind(self._path)
        listener.listen()
        nursery.start_soon(self._serve, node, listener)
        # A node without a role answers HTTP and its mount: the tests wait for that.
        node.plane.following.caught_up.set()

    async def _serve(self, node: Node, listener: trio.socket.SocketType) -> None:
        with listener:
            while True:
                connection, _ = await listener.accept()
                with connection:
                    buffer = b""
                    while data := await connection.recv(65536):
                        buffer += data
                        while b"\n" in buffer:
                            line, _, buffer = buffer.partition(b"\n")
                            answer = await self._do(node, json.loads(line))
                            await connection.send(json.dumps(answer).encode() + b"\n")

    async def _do(self, node: Node, command: dict[str, Any]) -> Any:
        plane = node.plane
        try:
            match command["do"]:
                case "promote":
                    with trio.move_on_after(command.get("limit_s", math.inf)) as scope:
                        await plane.promote(command["epoch"])
                    if scope.cancelled_caught:
                        return {"error": "cancelled"}
                    plane.set_fence(fence_clock() + command.get("fence_s", 600))
                case "part":
                    node.store.remember(lambda state: replace(state, parted=True))
                case "fence":
                    plane.set_fence(fence_clock() + command["fence_s"])
                case "demote":
                    plane.set_fence(0.0)
                    await plane.demote()
                case "follow":
                    await plane.follow_primary(Endpoint(command["name"], command["address"], "", command["address"]))
                case "quiesce":
                    return {"unyielding": await plane.quiesce(command["limit_s"])}
                case "resume":
                    await plane.resume_writers()
                case "standing" | "durable":
                    return _asked(node, command)
                case "acknowledged":
                    return {"acknowledged": await plane.acknowledged(command["node"], command["limit_s"])}
        except LitereplicaError as error:
            return {"error": error.message}
        return {}


def _asked(node: Node, command: dict[str, Any]) -> dict[str, Any]:
    if command["do"] == "standing":
        return asdict(node.plane.standing())
    return {"durable": node.store.databases[command["database"]].log.durable}


class FullDisk(Disk):
    """Has no room in a -wal while ``full`` exists, and reads none either while ``unreadable`` does."""

    __slots__ = ("_full", "_unreadable")

    def __init__(self, full: Path) -> None:
        self._full = full
        self._unreadable = full.with_name("unreadable")

    def pread(self, descriptor: int, size: int, offset: int) -> bytes:
        if self._unreadable.exists() and (_DESCRIPTORS / str(descriptor)).readlink().name.endswith("-wal"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().pread(descriptor, size, offset)

    def pwrite(self, descriptor: int, data: bytes | memoryview, offset: int) -> int:
        if self._full.exists() and (_DESCRIPTORS / str(descriptor)).readlink().name.endswith("-wal"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().pwrite(descriptor, data, offset)


def main() -> None:
    settings = load_settings(Path(sys.argv[1]), {})
    configure_logs("text", "debug")
    disk = FullDisk(Path(sys.argv[3])) if len(sys.argv) > 3 else Disk()
    sys.exit(
        run_node(
            settings,
            lambda root, _, node, compression: Store.open(root, disk, node, compression),
            direct=Director(sys.argv[2]),
        )
    )


if __name__ == "__main__":
    main()
