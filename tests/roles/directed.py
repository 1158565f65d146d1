"""The test's end of a node whose role it decides (driver.py is the node's)."""

import json
import socket
import sys
from pathlib import Path
from typing import Any, Final

from tests.support.nodes import Node, free_ports

DRIVER: Final = Path(__file__).with_name("driver.py")
LIMIT_S: Final = 60.0


class DirectedNode(Node):
    """A node that begins as a replica of nobody."""

    def __init__(self, folder: Path, name: str, on_replica: str) -> None:
        """``on_replica``: what becomes of writes while it is a replica (writes.on_replica)."""
        # Somebody else is primary, as far as the configuration goes: it is never asked.
        first, second = free_ports(2)
        self.control = folder / "control"
        # As long as this file is there, no -wal takes anything.
        self.full = folder / "full"
        # The same, and nobody reads a -wal.
        self.unreadable = folder / "unreadable"
        super().__init__(
            folder, name, ports=(first, second), primary=("nobody", 1, 1),
            replication={"heartbeat": "500ms", "timeout": "2s"}, writes={"on_replica": on_replica},
        )  # fmt: skip

    def program(self) -> list[str]:
        self.control.unlink(missing_ok=True)
        return [sys.executable, str(DRIVER), str(self.config), str(self.control), str(self.full)]

    def tell(self, do: str, **more: Any) -> dict[str, Any]:
        """Give a command, wait until it is done; its answer."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(LIMIT_S)
            connection.connect(str(self.control))
            connection.sendall(json.dumps({"do": do, **more}).encode() + b"\n")
            line = connection.makefile("rb").readline()
            assert line, f"{self.name} did not answer {do}:\n{self.log}"
            found: dict[str, Any] = json.loads(line)
            return found

    def promote(self, epoch: int, fence_s: float = 600.0) -> None:
        assert self.tell("promote", epoch=epoch, fence_s=fence_s) == {}, self.log

    def demote(self) -> None:
        assert self.tell("demote") == {}, self.log

    def follow(self, primary: Node) -> None:
        address = f"127.0.0.1:{primary.replication_port}"
        assert self.tell("follow", name=primary.name, address=address) == {}, self.log

    def is_durable(self, database: str = "app.db") -> bool:
        """Whether all that is logged of it is on the disk."""
        return bool(self.tell("durable", database=database)["durable"])

    def standing(self) -> dict[str, Any]:
        """How far it is, and whether it may be promoted, as it would say in an election."""
        return self.tell("standing")
