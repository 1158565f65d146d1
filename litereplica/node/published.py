"""Whether replicas are sent to this machine at all.

Knows the fixed primary's published address, and whether it is one of this machine's. Does not know who else has the
same configuration: of two nodes that both take themselves for the fixed primary, replicas ask one alone.
"""

import errno
import socket
from typing import Any, Final

import structlog
import trio

from litereplica.config import Address

log = structlog.get_logger()

ADVICE: Final = (
    "right if that address is forwarded to this machine; else this is a copy of the primary's configuration, and what "
    "applications commit here reaches nobody: stop it, and give it a node.name of its own"
)


async def warn_when_elsewhere(name: str, published: Address) -> None:
    """Say once that ``published``, where replicas look for this primary, is no address of this machine."""
    try:
        found = await trio.socket.getaddrinfo(published.host, published.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return  # nobody knows, and replicas say so themselves
    if not any(_may_be_here(family, place) for family, _, _, _, place in found):
        log.warning("primary_is_elsewhere", node=name, address=str(published), advice=ADVICE)


def _may_be_here(family: int, place: tuple[Any, ...]) -> bool:
    """Whether a socket can have that address; True when that cannot be told."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((place[0], 0, *place[2:]))
    except OSError as error:
        return error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
    return True
