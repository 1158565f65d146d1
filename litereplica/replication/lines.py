"""What else goes over a connection between a replica and its primary: transactions to commit, locks, and the answers.

Knows the ports only: who is told what a connection brings, and what it can be asked to send. Does not know what becomes
of it (node.forwarder on the replica, node.committer on the primary).
"""

from collections.abc import Iterator
from typing import Protocol

from litereplica.cluster.messages import (
    Forward,
    ForwardPart,
    Halt,
    HaltState,
    Message,
    Outcome,
    SyncTo,
    Unhalt,
)

Wish = Forward | ForwardPart | SyncTo | Halt | Unhalt
"""What a replica asks of its primary."""
Answer = Outcome | HaltState


class UpLine(Protocol):
    """A replica's connection, from its Welcome to its end."""

    epoch: int

    def say(self, message: Message) -> None:
        """Send a message soon; never waits."""
        ...

    def send(self, parcel: Iterator[bytes]) -> None:
        """Send whole messages one by one, as the line takes them, in turns with everything else that is to be sent."""
        ...


class Upstream(Protocol):
    """Whoever wants something of the primary. Called on the loop, and quick."""

    def connected(self, line: UpLine) -> None:
        """A primary has welcomed this node."""
        ...

    def disconnected(self, reason: str) -> None:
        """That connection has ended."""
        ...

    def parted(self, database: str) -> None:
        """What is here of a database is not the primary's, or is replaced: found since ``connected``."""
        ...

    def told(self, answer: Answer) -> None:
        """The primary has answered."""
        ...


class DownLine(Protocol):
    """A primary's connection with one replica."""

    replica: str

    def say(self, message: Message) -> None:
        """Send a message soon; nothing when the connection has ended. Never waits."""
        ...

    def expect(self, database: str) -> None:
        """The next transaction of this database is the replica's own: it is sent without gathering others."""
        ...


class Downstream(Protocol):
    """Whoever does what replicas ask of their primary. Called on the loop, and quick."""

    def joined(self, line: DownLine) -> None:
        """A replica was welcomed. Another line of the same name is as good as ended."""
        ...

    def left(self, line: DownLine) -> None:
        """Its connection has ended."""
        ...

    def take(self, line: DownLine, wish: Wish) -> None:
        """A replica wants something. Raises Corrupt when that cannot be; the connection ends then."""
        ...
