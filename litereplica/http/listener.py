"""Listening sockets for HTTP.

Knows addresses and socket options. Does not know who accepts (http.server, and the proxy's process, which must not load
this one's libraries).
"""

import socket
from typing import Final

from litereplica.config.units import Address
from litereplica.errors import Refused

BACKLOG: Final = 1024
# A client whose machine is gone is noticed after 60 + 3 x 10 s, also by a stream that has nothing to say. Connections
# have it from the socket that they came in by.
KEEP_ALIVE: Final = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))


def bind(address: Address, key: str) -> socket.socket:
    """A listening socket. Raises Refused naming the configuration key when the port is taken."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEP_ALIVE:
            listener.setsockopt(socket.IPPROTO_TCP, option, value)
        listener.bind((address.host, address.port))
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        message = f"cannot listen on {address} ({reason}): stop what uses the port, or set {key} to another address"
        raise Refused(message) from None
    return listener
